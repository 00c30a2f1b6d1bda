"""The undo store of a target volume: one file per generation, the way back from it to its base (`_native/disk.h` has the bytes).

The lanes write the batches; here files are made, found, restored from and removed. A file is believed only if its header
names this volume and the very generations and attempt asked for.
"""

import contextlib
import ctypes
import errno
import logging
import os
from typing import NamedTuple

from qrep._native import disk, undo
from qrep.crashpoint import crashpoint
from qrep.digestmap import NO_ID
from qrep.errors import DamagedError, DeviceWriteError, Refused, UndoSpaceError
from qrep.retention import POINTS_MAX
from qrep.store import Directory, flush, read_exact, write_all
from qrep.target.undolog import MORE_ROOM
from qrep.target.undoplaces import Places
from qrep.units import format_size

log = logging.getLogger("qrep.target")
SUFFIX = ".undo"
SEGMENT = disk.UNDO_SEGMENT_SIZE
PAGE = 4096
COPY_OFFSET = disk.UNDO_COPY_OFFSET
SLACK = 16 * SEGMENT  # on top of twice the volume: lanes take whole segments, however little they write
TRIM_MAX = 1 << 30  # bytes of a file; in a larger one the unused ends of segments do not matter, and finding them costs reading it
GROUP = 64 << 20  # bytes put back between two looks at how far it is; a rollback flushes its undo file as often
CHAIN_MAX = POINTS_MAX + 64  # ids that a chain may have: so many sync points may wait to be merged away
PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


def groups(batches, size=GROUP):
    """Consecutive batches of about `size` bytes together."""
    group, taken = [], 0
    for batch in batches:
        group.append(batch)
        taken += batch.size
        if taken >= size:
            yield group
            group, taken = [], 0
    if group:
        yield group


def undo_directory(own, elsewhere, volume_id, committed):
    """The store.Directory of a volume's undo files: in `own`, its state directory, or below the path `elsewhere`.

    committed: the volume holds a generation, so its directory was made long ago. If it is not there, its filesystem is not, and what would be
    written below the mount point would be lost when it is mounted: Refused.
    """
    if not elsewhere:
        below = own.sub("undo")
    else:
        path = os.path.join(elsewhere, volume_id.hex())
        if committed and not os.path.isdir(path):
            raise Refused(
                f"the undo directory {path} is not there", code="undo-missing",
                hint=f"mount the filesystem of {elsewhere}; if it is lost for good, remove the volume and add it again: its sync points are lost with it",
            )  # fmt: skip
        with Directory(elsewhere) as parent:
            below = parent.sub(volume_id.hex())
    below.sweep()
    return below


class Chain(NamedTuple):
    """ids: the generations within reach, newest first. damage: why what lies behind the last is out of reach; None: there is nothing. unread: it could not
    be read now, and may be well: what leads there must stay."""

    ids: tuple
    damage: str | None = None
    unread: bool = False


class UndoStore:
    """The undo files of one volume in a store.Directory of their own.

    limit: bytes all of them may take; None: twice the volume and SLACK. geometry may be replaced while there are no files.
    """

    def __init__(self, directory, volume_id, geometry, limit=None):
        self.directory, self.volume_id, self.geometry, self._limit = directory, volume_id, geometry, limit
        self.reserved = 0  # bytes that a merge may take for a while, beside the files that count

    @property
    def limit(self):
        return 2 * self.geometry.size + SLACK if self._limit is None else self._limit

    def set_limit(self, limit):
        self._limit = limit

    def used(self):
        """Bytes the files take on disk, and what is reserved for one that is being made of others."""
        total = self.reserved
        for name in self.directory.names():
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(name, dir_fd=self.directory.descriptor, follow_symlinks=False).st_blocks * 512
        return total

    def room(self):
        """Bytes a new file may take: what the limit and the filesystem leave, the other files deducted."""
        free = os.fstatvfs(self.directory.descriptor)
        return min(self.limit - self.used(), free.f_bavail * free.f_frsize)

    def create(self, base, new, attempt):
        """Make the file of base <- new, durable with its header. Returns a descriptor for the lanes; the caller closes it.

        Raises UndoSpaceError when there is no room for a first segment; nothing is left behind then.
        """
        chain = self.chain(base)
        if len(chain.ids) >= CHAIN_MAX - 1:
            raise UndoSpaceError(
                f"{self.directory.path}: there are {CHAIN_MAX - 1} sync points, and none of them may go",
                hint="lower the volume's --keep-points or --keep-for, detach those that are attached, or run less often",
            )
        room = self.room()
        if room < 2 * SEGMENT:
            raise UndoSpaceError(
                f"{self.directory.path}: {format_size(max(room, 0))} are left for undo, less than two segments",
                hint=MORE_ROOM,
            )
        header = disk.UndoHeader(
            volume_id=self.volume_id, base_id=base, new_id=new, attempt=attempt, size=self.geometry.size,
            leaf_size=self.geometry.leaf_size, granule_size=self.geometry.granule_size,
        )  # fmt: skip
        # Of an attempt that was taken back, and could not be removed then: recovery finds what was begun on a generation by its only file.
        for name, leads_to in self._strays(chain.ids)[0].items():
            if leads_to == self.name(base):
                self.directory.remove(name)
        crashpoint("undo-create-before")
        name = self.name(new)
        descriptor = self.directory.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            write_all(descriptor, header.pack() + bytes(PAGE - disk.UNDO_HEADER_SIZE), 0)
            flush(descriptor, f"{self.directory.path}/{name}")
            os.close(descriptor)
            descriptor = -1
            self.directory.flush()
            crashpoint("undo-create-durable")
            return self.open_named(name, os.O_RDWR)
        except BaseException:
            if descriptor >= 0:
                os.close(descriptor)
            self.directory.remove(name)
            raise

    def seal(self, new, batches):
        """Note how many batches are flushed in a file, in a copy of its header: one that is torn is none. Durable. Raises DamagedError, OSError."""
        header = self.header(new)
        if header is None:
            raise self._damaged(new, "it is missing")
        descriptor = self.directory.open(self.name(new), os.O_RDWR)
        try:
            write_all(descriptor, header.replace(batches=batches).pack(), COPY_OFFSET)
            flush(descriptor, f"{self.directory.path}/{self.name(new)}")
        finally:
            os.close(descriptor)
        crashpoint("undo-sealed")

    def restore(self, base, new, attempt, device_fd, *, is_file=False, sector_size=0, progress=None):
        """Write the before-images of base <- new over `device_fd`, newest first; not flushed. Returns bytes restored.

        progress(done, total): bytes of the undo file put back, now and then.

        attempt None: of whichever attempt was committed as `new`. Raises DamagedError before the first write when the file is not
        that or a flushed batch is lost; DeviceWriteError when the device takes no write.
        """
        descriptor, header, places = self._scan(base, new, attempt)
        try:
            # R3 for the restore itself: a batch that a killed lane wrote but did not flush is put back, too, and a power cut that tears that
            # write must not take the batch with it.
            flush(descriptor, f"{self.directory.path}/{self.name(new)}")
            crashpoint("undo-restore-before")
            read = done = 0
            for group in groups(places):
                if progress:
                    progress(read, places.size)
                done += undo.restore(device_fd, descriptor, group, header.size, punch=True, is_file=is_file, sector_size=sector_size)
                read += sum(batch.size for batch in group)
            return done
        except undo.RestoreError as err:
            if err.errno == errno.EBADMSG:
                raise self._damaged(new, f"the batch at {err.position} changed while it was restored") from err
            raise DeviceWriteError(f"before-images could not be put back: {err.strerror}") from err
        finally:
            os.close(descriptor)

    def batches(self, base, new):
        """(descriptor to close when they are done with, UndoHeader, Places) of a retained generation."""
        return self._scan(base, new, None)

    def open_to_read(self, new):
        """A descriptor of the file of a generation; the caller closes it. Raises FileNotFoundError."""
        return self.open_named(self.name(new), os.O_RDONLY)

    def is_of(self, descriptor, new):
        """Whether a descriptor is of the file that bears this name now: a merge puts another one in its place."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.name(new), dir_fd=self.directory.descriptor, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def _scan(self, base, new, attempt):
        """(descriptor, header, Places); no flushed batch is missing."""
        header = self.header(new)
        if header is None:
            raise self._damaged(new, "it is missing")
        if header.base_id != base or (attempt is not None and header.attempt != attempt):
            raise self._damaged(new, "it belongs to another base or attempt")
        descriptor = self.open_named(self.name(new), os.O_RDONLY)
        try:
            found = Places(descriptor, header)
            if found.damaged is not None:
                raise self._damaged(new, f"the before-images at {found.damaged} were flushed and cannot be read back")
            told = self.batches_told(header)
            if told is None and attempt is None:
                raise self.uncounted(new)
            if len(found) < (told or 0):
                raise self._damaged(new, f"{len(found)} of {told} batches of before-images can be read back")
        except OSError as err:
            os.close(descriptor)
            raise self._damaged(new, f"it cannot be read: {err.strerror}") from err
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor, header, found

    def batches_told(self, header):
        """How many batches there are at least; None: nobody says, or what says it cannot be believed. Raises OSError."""
        descriptor = self.directory.open(self.name(header.new_id))
        try:
            copy = disk.UndoHeader.unpack(read_exact(descriptor, disk.UNDO_HEADER_SIZE, COPY_OFFSET))
        except (disk.RecordDamaged, disk.RecordNewer):
            return None
        finally:
            os.close(descriptor)
        return copy.batches if copy.replace(batches=0) == header else None

    def uncounted(self, new):
        """The DamagedError of the way back of a committed generation of which batches_told() knows nothing."""
        return self._damaged(new, "how many batches of before-images it has cannot be read back")

    def header(self, new):
        """UndoHeader of the file of generation `new`, or None if there is none. Raises DamagedError if it is not to be believed."""
        try:
            descriptor = self.directory.open(self.name(new))
        except FileNotFoundError:
            return None
        try:
            data = read_exact(descriptor, disk.UNDO_HEADER_SIZE, 0)
            if len(data) < disk.UNDO_HEADER_SIZE <= os.fstat(descriptor).st_size:  # there is more, and it was not given: no word on what it holds
                raise OSError(errno.EIO, "a read ended before the end of the file", f"{self.directory.path}/{self.name(new)}")
            header = disk.UndoHeader.unpack(data)
        except disk.RecordNewer as err:
            path = f"{self.directory.path}/{self.name(new)}"
            raise DamagedError(f"undo file {path}: {err}", hint="use the version of qrep that wrote it; the target was left alone", code="newer") from err
        except disk.RecordDamaged as err:
            raise self._damaged(new, str(err)) from err
        finally:
            os.close(descriptor)
        shape = (self.geometry.size, self.geometry.leaf_size, self.geometry.granule_size)
        if header.volume_id != self.volume_id or header.new_id != new:
            raise self._damaged(new, "it belongs to another volume or generation")
        if (header.size, header.leaf_size, header.granule_size) != shape:
            raise self._damaged(new, "it was made for another size, leaf or granule")
        return header

    def unfinished(self, base):
        """UndoHeader of a file whose base is `base`, the committed generation, or None. Such a file only exists while an attempt on top of
        `base` is open or was just taken back, and its before-images are the content of `base` whatever became of the attempt."""
        for name in self.directory.names():
            if name.endswith(SUFFIX) and self._is_on(base, name):  # a header that cannot be believed: its making was cut short, it covered no write
                return self.header(bytes.fromhex(name.removesuffix(SUFFIX)))
        return None

    def newer(self, committed):
        """The id of a generation that was committed on top of `committed`, None if none was: another generation was begun on top of that one."""
        above = {}
        for name in self.directory.names():
            if name.endswith(SUFFIX):
                with contextlib.suppress(DamagedError, ValueError, OSError):
                    header = self.header(bytes.fromhex(name.removesuffix(SUFFIX)))
                    above.setdefault(header.base_id, []).append(header.new_id)
        return next((new for new in above.get(bytes(committed), ()) if new in above), None)

    def of_later_version(self):
        """The DamagedError of a file that a newer qrep wrote, None if there is none."""
        for name in self.directory.names():
            if name.endswith(SUFFIX):
                try:
                    self.header(bytes.fromhex(name.removesuffix(SUFFIX)))
                except (DamagedError, ValueError, OSError) as err:
                    if getattr(err, "code", "") == "newer":
                        return err
        return None

    def chain(self, committed, history=()):
        """The Chain that begins with the generation the device holds: each undo file leads to the one before, whatever the superblock's history
        says, so that a sync point can be taken out of the middle. history: what it says; none: nothing before is of its past."""
        if committed == NO_ID:
            return Chain(())
        ids = [bytes(committed)]
        while True:
            try:
                header = self.header(ids[-1])
            except (DamagedError, OSError) as err:
                return Chain(tuple(ids), str(err), isinstance(err, OSError))
            if header is None:
                return Chain(tuple(ids), self._gap(ids, history))
            if header.base_id in ids or header.base_id == NO_ID or len(ids) == CHAIN_MAX:
                return Chain(tuple(ids), f"undo file {self.directory.path}/{self.name(ids[-1])} leads nowhere")
            ids.append(header.base_id)

    def _gap(self, ids, history):
        """Why there are generations behind the last of `ids` and no way to them, None where there are none. Files go from the oldest on, and what steps
        of ours leave leads back to one of `ids`: where one leads elsewhere, the one before it was taken away by somebody else."""
        if len(ids) == 1 and not history:  # what there was is not of its past: it was the primary's meanwhile
            return None
        strays, within = self._strays(ids)[0], {self.name(new) for new in ids}
        lost = any(_way_back(name, strays)[1] not in within for name in strays)
        return f"undo file {self.directory.path}/{self.name(ids[-1])} is not there" if lost else None

    def _strays(self, ids):
        """{name: name of the file of its base} of the files that are of none of `ids`, as far as they can be believed; and the names of those that cannot
        be read now."""
        within, found, unread = {self.name(new) for new in ids}, {}, set()
        for name in self.directory.names():
            if name.endswith(SUFFIX) and name not in within:
                try:
                    header = self.header(bytes.fromhex(name.removesuffix(SUFFIX)))
                    if header is not None:
                        found[name] = self.name(header.base_id)
                except (DamagedError, ValueError) as err:
                    log.info("%s/%s leads nowhere: %s", self.directory.path, name, err)
                except OSError as err:
                    log.info("%s/%s cannot be read now: %s", self.directory.path, name, err)
                    unread.add(name)
        return found, unread

    def size(self, new):
        """Bytes the file of a generation takes on disk; 0 if there is none."""
        try:
            return os.stat(self.name(new), dir_fd=self.directory.descriptor, follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            return 0

    def trim(self, base, new):
        """Give back the ends of segments that the lanes of a committed generation took and did not fill. Raises OSError."""
        if os.stat(self.name(new), dir_fd=self.directory.descriptor).st_size > TRIM_MAX:
            return
        descriptor, _, places = self._scan(base, new, None)
        os.close(descriptor)
        descriptor = self.directory.open(self.name(new), os.O_RDWR)
        try:
            for segment in range(-(-os.fstat(descriptor).st_size // SEGMENT)):
                start = places.end(segment) or max(segment * SEGMENT, COPY_OFFSET + PAGE)
                _punch(descriptor, start, (segment + 1) * SEGMENT - start)
        finally:
            os.close(descriptor)

    def prune(self, committed, history=()):
        """Remove every file that does not lead back from the generation `committed`; returns its Chain. Where that ends at a file that is damaged or
        gone, only what lies on top of `committed` goes: the rest may be behind it; nor does what cannot be read now. history: as for chain(). Raises
        OSError."""
        chain = self.chain(committed, history)
        strays, unread = self._strays(chain.ids)
        kept = unread | {self.name(new) for new in chain.ids}
        for name in self._newest_first(strays):
            if name not in kept and (chain.damage is None or self._is_on(committed, name)):
                crashpoint("undo-prune-before")
                self.directory.remove(name)
        return chain

    def cut(self, ids, count):
        """Give up all but the first `count` of the generations of a chain, and what is out of reach behind them, the oldest first. ids: all of the
        chain, newest first. Raises OSError."""
        within = {self.name(new) for new in ids}
        for name in self._newest_first(self._strays(ids)[0]):
            if name not in within:
                try:
                    if not self._is_on(ids[0], name):
                        crashpoint("undo-cut-before")
                        self.directory.remove(name)
                except OSError as err:
                    log.warning("%s/%s, which nothing leads to any more, stays: %s", self.directory.path, name, err)
        for new in reversed(ids[count - 1 :]):
            crashpoint("undo-cut-before")
            self.directory.remove(self.name(new))

    def _newest_first(self, strays):
        """Names of all undo files. So in the middle of removing them none of `strays` leads nowhere, as if one had been taken away."""
        return sorted((name for name in self.directory.names() if name.endswith(SUFFIX)), key=lambda name: _way_back(name, strays)[0], reverse=True)

    def _is_on(self, base, name):
        try:
            header = self.header(bytes.fromhex(name.removesuffix(SUFFIX)))
        except (DamagedError, ValueError):
            return False
        return header is not None and header.base_id == base

    def open_named(self, name, flags):
        """A descriptor, past the page cache where the filesystem can do that."""
        try:
            return self.directory.open(name, flags | os.O_DIRECT)
        except OSError as err:
            if err.errno != errno.EINVAL:  # a filesystem without direct I/O
                raise
            return self.directory.open(name, flags)

    @staticmethod
    def name(new):
        """Of the file of a generation."""
        return bytes(new).hex() + SUFFIX

    def _damaged(self, new, what):
        return DamagedError(
            f"undo file {self.directory.path}/{self.name(new)}: {what}",
            hint="the target was left alone and is not brought into service; put the undo file back from a copy, "
            "or remove the volume and replicate it anew",
        )


def _way_back(name, bases):
    """(steps, name) from a file to the first of which `bases` does not say what it leads back to."""
    steps = 0
    while name in bases and steps <= len(bases):
        name, steps = bases[name], steps + 1
    return steps, name


def _punch(descriptor, offset, size):
    """Deallocate a range of a file; where the filesystem cannot, it stays allocated."""
    libc = ctypes.CDLL(None, use_errno=True)
    if size > 0 and libc.fallocate(descriptor, PUNCH_HOLE, ctypes.c_long(offset), ctypes.c_long(size)):
        number = ctypes.get_errno()
        if number != errno.EOPNOTSUPP:
            raise OSError(number, os.strerror(number))
