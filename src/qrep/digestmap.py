"""The digest map of a volume on disk: `root`, `pending`, `leaves`, and on a target `checkpoint` (`_native/disk.h` has the bytes).

`root` says what the generation `tag` holds; `pending` is the whole map that would follow it; folding is one rename. A file
that fails any check is not believed at all: the map is then UNKNOWN throughout and `reason` says why. UNKNOWN costs
bandwidth, never truth.
"""

import os
from dataclasses import dataclass, field

from qrep import digesttree, mapvalues
from qrep._native import disk
from qrep._native.compare import is_zero
from qrep.crashpoint import crashpoint
from qrep.errors import DamagedError
from qrep.extents import Extent, data_extents, granules_of
from qrep.mapdigest import Blocks, Row, changed_blocks
from qrep.store import Directory, read_exact

DIGEST_SIZE = digesttree.DIGEST_SIZE
PIECE = 64 << 10  # bytes of values that are read at once
NO_ID, NO_ROOT = disk.ZERO_ID, disk.ZERO_DIGEST
ROOT, PENDING, LEAVES, CHECKPOINT = "root", "pending", "leaves", "checkpoint"


@dataclass
class Content:
    """What one map file holds. states: a byte per granule; values: 32 bytes per granule, of mapvalues.py; root: 32 bytes, or None. row, blocks: of
    mapdigest.py, None where they have not been made."""

    tag: bytes
    counter: int
    states: bytearray = field(repr=False)
    values: object = field(repr=False)
    base: bytes = NO_ID
    root: bytes | None = None
    row: Row | None = field(default=None, repr=False)
    blocks: Blocks | None = field(default=None, repr=False)


class DigestMap:
    """The map of one volume, in memory and on disk. One process, one thread at a time; `states` and `values` belong to
    the map between runs and are replaced, never changed, by a fold: a lane may go on reading the ones it was given.
    """

    def __init__(self, directory, geometry, volume_id):
        """Open or make the map's directory and load it. geometry: `_native.wire.Geometry`. volume_id: 16 bytes."""
        self.directory = Directory(directory)
        self.geometry, self.volume_id = geometry, bytes(volume_id)
        self.granules = geometry.granules
        self.leaves_fd = -1
        try:
            self.directory.sweep()
            self.leaves_fd = self.directory.open(LEAVES, os.O_RDWR | os.O_CREAT)
            self._size_leaves()
            self.load()
        except BaseException:
            self.close()
            raise

    def _size_leaves(self):
        """A sparse file with room for both slots of every page. Not flushed, ever: a page that was lost or is stale does
        not merge to its granule's value, and is then as good as absent (R8)."""
        size = self.granules * 2 * self.geometry.leaf_page_size
        if os.fstat(self.leaves_fd).st_size != size:
            os.ftruncate(self.leaves_fd, 0)
            os.ftruncate(self.leaves_fd, size)

    def load(self):
        """Read `root` and `pending` afresh. reason: "" or why the map is UNKNOWN; a damaged `pending` is dropped."""
        self.reason, self.pending = "", None
        root = self._read(ROOT)
        if isinstance(root, str):
            self.reason = root
        self._take(root if isinstance(root, Content) else self._unknown())
        pending = self._read(PENDING)
        if isinstance(pending, str):
            self.pending_reason = pending
            self.directory.remove(PENDING)
        elif pending is not None:
            self.pending = pending

    pending_reason = ""

    def _unknown(self):
        return Content(NO_ID, 0, bytearray(self.granules), mapvalues.empty(self.granules))

    def _take(self, content):
        self.tag, self.counter = content.tag, content.counter
        self.states, self.values, self.root_value = content.states, content.values, content.root
        self._row, self._blocks = content.row, content.blocks

    @property
    def digest(self):
        """Of states and values, as the header of the map's file has it."""
        if self._row is None:
            self._row = Row(self.states, self.values)
        return self._row.digest

    # ---- files ----

    def _read(self, name):
        """The content of a map file, None when there is none, or a text that says why it cannot be believed."""
        try:
            descriptor = self.directory.open(name)
        except FileNotFoundError:
            return None
        try:
            return self._read_open(descriptor)
        except disk.RecordNewer as err:  # hands off: it is neither used nor replaced
            path = f"{self.directory.path}/{name}"
            raise DamagedError(
                f"{path}: {err}", hint="use the version of qrep that wrote it; or move the file away, then everything is compared afresh", code="newer"
            ) from err
        except (DamagedError, disk.RecordDamaged) as err:
            return f"{self.directory.path}/{name}: {err}"
        finally:
            os.close(descriptor)

    def _read_open(self, descriptor):
        size, granules = os.fstat(descriptor).st_size, self.granules
        header = disk.MapHeader.unpack(read_exact(descriptor, disk.MAP_HEADER_SIZE, 0), size)
        ours = (self.volume_id, self.geometry.size, self.geometry.leaf_size, self.geometry.granule_size)
        if (header.volume_id, header.size, header.leaf_size, header.granule_size) != ours:
            raise DamagedError("describes another volume or another geometry")
        values_offset = disk.map_values_offset(granules)
        states = read_exact(descriptor, values_offset - disk.MAP_HEADER_SIZE, disk.MAP_HEADER_SIZE)
        if any(states[granules:]):
            raise DamagedError("bytes that must be zero are not")
        del states[granules:]
        values, stray = _read_values(descriptor, values_offset, size, states)
        row = Row(states, values)
        if row.digest != header.digest or not digesttree.are_states(states):
            raise DamagedError("map: its states or values are damaged, the digest of them or a state byte is wrong")
        root = None if header.root == NO_ROOT else header.root
        content = Content(header.tag, header.counter, states, values, header.base, root, row)
        if mapvalues.clear_strays(states, values) or stray:
            content.values, content.row = mapvalues.copied(states, values), None
        elif root is not None and granules > 1 and not digesttree.lacks_values(states):
            content.blocks = Blocks(self.geometry, values)  # now, and not when a target waits for the commit
        return content

    def _write(self, name, content):
        if content.row is None:
            content.row = Row(content.states, content.values)
        header = disk.MapHeader(
            volume_id=self.volume_id,
            tag=content.tag,
            base=content.base,
            counter=content.counter,
            size=self.geometry.size,
            leaf_size=self.geometry.leaf_size,
            granule_size=self.geometry.granule_size,
            granules=self.granules,
            root=content.root or NO_ROOT,
            digest=content.row.digest,
        )
        padding = bytes(disk.map_values_offset(self.granules) - disk.MAP_HEADER_SIZE - self.granules)
        self.directory.write(name, header.pack(), content.states, padding, *mapvalues.parts(content.states, content.values))

    # ---- generations ----

    def following(self, new, base, counter, states, values, *, root=None, marked=None, zeroes=None):
        """The Content that the map will be if `new` is committed on top of `base`. The arrays become its own.

        marked: a byte per granule, not 0 where the value may differ from the map's although the state is the same; only what differs is hashed then.
        None: that is not known. zeroes: tell the root, too, if no more than so many bytes of zeroes have to be hashed for it; None: do not.
        """
        values = self._own(states, values)
        content = Content(bytes(new), counter, states, values, bytes(base), root)
        tell = zeroes is not None and root is None
        rooted = tell and self.granules > 1 and not digesttree.has_unknown(states) and digesttree.fill_zero_values(self.geometry, states, values, zeroes)
        changed = None
        if marked is not None and self._row is not None:
            changed = changed_blocks(self.states, states, marked)
            content.row = self._row.following(states, values, changed)
        else:
            content.row = Row(states, values)
        if rooted:
            known = changed is not None and self._blocks is not None
            content.blocks = self._blocks.following(values, changed) if known else Blocks(self.geometry, values)
            content.root = content.blocks.root(values)
        elif tell and self.granules == 1:
            content.root = digesttree.root(self.geometry, states, values, self.leaves_fd, zeroes)
        return content

    @staticmethod
    def _own(states, values):
        """Values as mapvalues.py has them."""
        return values if isinstance(values, mapvalues.Values) else mapvalues.copied(states, values)

    def write_pending(self, new, base, counter, states, values, root=None):
        """Make durable what the map will be if `new` is committed on top of `base`. The arrays become the map's own."""
        self.write(self.following(new, base, counter, states, values, root=root))

    def write(self, content):
        """As write_pending, of what following() gave."""
        crashpoint("map-pending-before")
        self._write(PENDING, content)
        self.pending = content
        crashpoint("map-pending-durable")

    def fold(self, new):
        """Make the pending map the map: `new` was committed. Raises ValueError unless it is pending."""
        if self.pending is None or self.pending.tag != bytes(new):
            raise ValueError(f"no pending map of generation {bytes(new).hex()}")
        crashpoint("map-fold-before")
        self.directory.rename(PENDING, ROOT)
        self._take(self.pending)
        self.pending, self.reason = None, ""
        crashpoint("map-fold-durable")

    def drop_pending(self):
        """Forget the pending map: its generation was not committed."""
        crashpoint("map-drop-before")
        self.directory.remove(PENDING)
        self.pending = None

    def forget(self):
        """Nothing is known from here on: the map files are gone and every granule is UNKNOWN."""
        crashpoint("map-forget-before")
        for name in (PENDING, ROOT, CHECKPOINT):
            self.directory.remove(name)
        self.pending, self.reason = None, ""
        self._take(self._unknown())

    def replace(self, states, values):
        """Make these arrays what the map says of the generation `tag`: what was just read is something else than it said. Durable."""
        crashpoint("map-replace-before")
        content = Content(self.tag, self.counter, states, self._own(states, values))
        self._write(ROOT, content)
        self._take(content)
        crashpoint("map-replace-durable")

    # ---- the checkpoint of a target's first, still uncommitted generation ----

    def write_checkpoint(self, new, counter, states, values):
        """Make durable what has been applied of `new`; granules not wholly applied are UNKNOWN in `states`.

        The caller has flushed the device after the last of them was applied.
        """
        crashpoint("map-checkpoint-before")
        self._write(CHECKPOINT, Content(bytes(new), counter, states, self._own(states, values)))
        crashpoint("map-checkpoint-durable")

    def read_checkpoint(self, new):
        """The Content of the checkpoint of `new`, or None if there is none that can be believed."""
        content = self._read(CHECKPOINT)
        return content if isinstance(content, Content) and content.tag == bytes(new) else None

    def drop_checkpoint(self):
        self.directory.remove(CHECKPOINT)

    # ---- what the map can tell ----

    def root(self, zeroes=digesttree.ZERO_FILL_LIMIT):
        """Root of the generation `tag`: the plain BLAKE3 of the device. None while it cannot be told. zeroes: at most so many bytes are hashed for it.

        Kept in memory, and on disk with the next map that is written.
        """
        if self.root_value is None and digesttree.can_fill(self.geometry, self.states, zeroes):
            if digesttree.lacks_values(self.states):  # lanes may be reading the arrays that there are
                states = bytearray(self.states)
                values = mapvalues.copied(states, self.values)
                digesttree.fill_zero_values(self.geometry, states, values)
                self.states, self.values, self._row, self._blocks = states, values, None, None
            if self.granules > 1:
                self._blocks = self._blocks or Blocks(self.geometry, self.values)
                self.root_value = self._blocks.root(self.values)
            else:
                self.root_value = digesttree.root(self.geometry, self.states, self.values, self.leaves_fd)
        return self.root_value

    def keep_values(self):
        """Have the values of zeroes that root() computed on disk, so that nobody computes them again. Says what `root` said. Durable."""
        crashpoint("map-values-before")
        content = Content(self.tag, self.counter, self.states, self.values, root=self.root_value, blocks=self._blocks)
        self._write(ROOT, content)
        self._take(content)
        crashpoint("map-values-durable")

    def value(self, granule):
        return bytes(self.values[granule * DIGEST_SIZE : (granule + 1) * DIGEST_SIZE])

    def leaf_page(self, granule):
        """The leaf values of a granule, or None if none that can be believed is stored."""
        return digesttree.read_page(self.geometry, self.leaves_fd, granule, self.states[granule], self.value(granule))

    def close(self):
        if self.leaves_fd >= 0:
            os.close(self.leaves_fd)
            self.leaves_fd = -1
        self.directory.close()
        # Whoever made us may be kept for what else it knows; what it takes to know a large volume need not be.
        self.states = self.values = self.pending = self._row = self._blocks = None


def _read_values(descriptor, offset, end, states):
    """(values, whether some lie in pages where no granule has one) of a map file; its holes are left alone."""
    values, stray = mapvalues.empty(len(states)), False
    extents = (Extent(found.offset - offset, found.size) for found in data_extents(descriptor, end, offset))
    for piece in granules_of(extents, PIECE):
        start = piece * PIECE
        data = read_exact(descriptor, min(PIECE, end - offset - start), offset + start)
        if is_zero(data):
            continue
        here = slice(start // DIGEST_SIZE, (start + len(data)) // DIGEST_SIZE)
        for first, stop in mapvalues.spans(states[here]):
            part = slice(first * DIGEST_SIZE, stop * DIGEST_SIZE)
            values[start + part.start : start + part.stop] = data[part]
        if values[start : start + len(data)] != data:
            values[start : start + len(data)] = data
            stray = True
    return values, stray
