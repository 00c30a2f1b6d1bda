"""The content of a retained sync point, at any moment: idle, while a run writes, through commits, take-backs, rollbacks, merges and prunes.

    with PointView(volume, point) as view:
        view.read_into(buffer, offset)

Where this could go wrong, and why it does not (`_native/undo_view.h` has the reading itself):

* A leaf is overwritten between our read of the device and our look into the undo file. The before-image was flushed and marked before the write was
  submitted (R3, undo_reach.h), and we look at the marks after the device: so either the device still had the old content, or the mark is there.
* An attempt begins, writes and is taken back, its undo file removed, all during one read. Each beginning raises the epoch before its first write; a read
  that sees another epoch after the device than before it is done again.
* A commit changes which generation is committed, but neither the device nor a file: the list is the same before and after.
* A prune or a merge takes away names, not content: the files are held open. What is pinned (`volume.pin`) is not given up at all.
* The record that says where the list begins is read without the volume's lock, which a run may hold for long. It is replaced as a whole, and a list made
  over a change is of an epoch that is over, and is made again.
"""

import abc
import contextlib
import errno
import itertools
import os
import threading

from qrep._native import undo_view
from qrep.digestmap import NO_ID
from qrep.errors import DamagedError, NotFound, QrepError

PAGE = 4096
TRIES = 100  # of making the list while others change it


class Gone(QrepError):
    """The volume is out of service, or does not retain the point any more."""


class AttemptEnded(Exception):
    """What was open when it was looked at is not any more."""


class Marks:
    """How far the undo file of an attempt may be believed, in shared memory. For one attempt, over all its sessions."""

    numbers = itertools.count(1)

    def __init__(self):
        self.number, self._lock = next(self.numbers), threading.Lock()
        self.descriptor, self.memory = undo_view.shared_memory("qrep-undo-marks", undo_view.REACH_SIZE)

    def set(self, end):
        undo_view.set_reach(self.memory, end)

    def open_to_read(self):
        """A descriptor for a process that is not trusted. Raises AttemptEnded: a new look shows its file without marks."""
        with self._lock:
            if self.descriptor < 0:
                raise AttemptEnded
            return undo_view.read_only(self.descriptor)

    def close(self):
        """Views that look at them keep their own."""
        with self._lock:
            os.close(self.descriptor)
            self.descriptor = -1


class Epoch:
    """Counts how often the list of undo files changed, in shared memory; `over`: the volume is out of service."""

    def __init__(self):
        self.descriptor, self.memory = undo_view.shared_memory("qrep-undo-epoch", PAGE)
        self.over, self._last = False, 0

    def read(self):
        try:
            return undo_view.read_counter(self.memory)
        except ValueError:  # unmapped by end()
            return self._last

    def change(self):
        if not self.over:
            undo_view.raise_counter(self.memory)

    def end(self):
        """Views fail from here on. Their memory stays; without any it goes, and the descriptor that a mapping of Python's holds with it."""
        if not self.over:
            self.over = True
            undo_view.raise_counter(self.memory)
            self._last = undo_view.read_counter(self.memory)
            os.close(self.descriptor)
            with contextlib.suppress(BufferError):
                self.memory.close()


class File:
    """One undo file of a way. header: its batches are how many there are at least. marks: Marks of an attempt that is open, or None. Close it."""

    def __init__(self, header, descriptor, marks):
        self.header, self.descriptor, self.marks = header, descriptor, marks

    def serves_for(self, other):
        """Is what is indexed of this one as good? One that grew, and grows no more, is: everything that counts in it was marked."""
        mine, theirs = self.header, other.header
        same = (mine.new_id, mine.base_id, mine.attempt) == (theirs.new_id, theirs.base_id, theirs.attempt)
        return same and (other.marks is None or (self.marks is not None and self.marks.number == other.marks.number))

    def close(self):
        os.close(self.descriptor)


def way(volume, point):
    """(epoch, [File]) oldest first: what lies between a sync point and what the device holds. Raises Gone, NotFound, DamagedError.

    Takes no lock; the epoch is the one at which the list was right.
    """
    for _ in range(TRIES):
        epoch = volume.epoch.read()
        if volume.epoch.over or volume.machine.record is None or volume.machine.phase in ("down", "faulted"):
            raise Gone(f"{volume.name} was taken out of service", code="view-gone")
        files = []
        try:
            found = _walk(volume, point, files)
        except FileNotFoundError:
            found = False  # it was removed under us: then the epoch has changed, or will in a moment
        except BaseException:
            for file in files:
                file.close()
            raise
        if volume.epoch.read() == epoch and found:
            return epoch, files[::-1]
        for file in files:
            file.close()
        if found is None and volume.epoch.read() == epoch:
            raise NotFound(f"{volume.name} does not retain sync point {point.hex()}", hint="qrep snapshot VOLUME lists those it has")
        threading.Event().wait(0.01)
    raise Gone(f"{volume.name}: its undo files change all the time", code="view-gone")


def _walk(volume, point, files):
    """Fill `files`, newest first. True when the point was reached, None when the files lead elsewhere."""
    attempt, record = volume.attempt, volume.machine.record
    at, seen = record.committed_id, set()
    # Also while it is taken back, when the attempt is nobody's any more. Without a file nothing was written yet.
    if record.open_attempt and volume.undo.header(record.open_new_id) is not None:
        at = record.open_new_id
    while at != point:
        header = volume.undo.header(at)
        if header is None or at in seen:
            return None
        seen.add(at)
        is_open = bool(record.open_attempt) and at == record.open_new_id
        marks = attempt.marks if attempt is not None and is_open else None
        file = File(header, volume.undo.open_to_read(at), marks)
        files.append(file)
        told = volume.undo.batches_told(header)
        # A merge may have put another file in its place since the header was read; the header is right only if it is still that of this file.
        if volume.undo.header(at) != header or not volume.undo.is_of(file.descriptor, at):
            return False
        if told is None and not is_open:
            raise volume.undo.uncounted(at)
        file.header = header.replace(batches=told or 0)
        at = header.base_id
    return True


class Reader(abc.ABC):
    """Reads a point by a list of undo files that may change. A subclass says what the list is.

    device_fd: O_DIRECT, this object's. size: bytes of the volume. align: of the device's I/O. epoch: shared memory.
    """

    def __init__(self, device_fd, size, align, cell_size, epoch):
        self.size, self._device_fd = size, device_fd
        self._view = undo_view.UndoView(device_fd, size, max(align, 512), max(cell_size, PAGE), epoch)
        self._files = []
        self._lock = threading.Lock()
        self._failed = None

    def read_into(self, buffer, offset):
        """Fill a writable buffer (whole sectors; page-aligned is fastest) with the content of the point from `offset` on. Any number of threads.

        Raises DamagedError when a before-image cannot be believed, Gone when the point is not there any more, OSError when the device
        cannot be read. The first two are final.
        """
        while True:
            if self._failed is not None:
                raise self._failed
            try:
                if self._view.read_into(buffer, offset):
                    return
            except OSError as err:
                if err.errno not in (errno.EBADMSG, errno.EOVERFLOW):
                    raise
                self._failed = DamagedError(f"a before-image of this sync point cannot be believed: {err}", hint="see `qrep snapshot`")
                raise self._failed from err
            self.renew()

    def renew(self):
        """Look anew which undo files there are. Raises as read_into."""
        with self._lock:
            try:
                epoch, files = self._list()
            except (Gone, NotFound, DamagedError) as err:
                self._failed = err
                raise
            pairs = zip(self._files, files, strict=False)
            same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0].serves_for(pair[1]), pairs))
            try:
                self._view.keep(same)
                for file in self._files[same:]:
                    file.close()
                del self._files[same:]
                for file in files[same:]:
                    marks = file.marks.memory if file.marks is not None else None
                    self._view.add(file.descriptor, file.header, marks)
                    self._files.append(file)
                self._view.set_epoch(epoch)
            except OSError as err:
                if err.errno != errno.EBADMSG:
                    raise
                self._failed = DamagedError(f"an undo file of this sync point cannot be believed: {err}", hint="see `qrep snapshot`")
                raise self._failed from err
            finally:
                for file in files:
                    if file not in self._files:
                        file.close()

    @abc.abstractmethod
    def _list(self):
        """(epoch, [File]) oldest first; the files become this object's."""

    def close(self):
        """Not while a read is under way. Harmless when repeated."""
        with self._lock:
            self._view.close()
            for file in self._files:
                file.close()
            self._files.clear()
            if self._device_fd >= 0:
                os.close(self._device_fd)
                self._device_fd = -1

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


class PointView(Reader):
    """The content of sync point `point` (its id) of a TargetVolume that is open. Raises NotFound, Gone, DamagedError."""

    def __init__(self, volume, point):
        self._volume, self._point = volume, bytes(point)
        self._pinned = contextlib.ExitStack()
        with volume.lock:
            if volume.device_fd < 0 or volume.machine is None or volume.machine.record is None or self._point == NO_ID:
                raise Gone(f"{volume.name} is out of service", code="view-gone")
            record = volume.machine.record
            device_fd = reopen(volume.device_fd)
        try:
            super().__init__(device_fd, record.size, volume.device.io_alignment, record.granule_size, volume.epoch.memory)
        except BaseException:
            os.close(device_fd)
            raise
        try:
            self._pinned.enter_context(volume.pin(self._point))
            self.renew()
        except BaseException:
            self.close()
            raise

    def close(self):
        super().close()
        self._pinned.close()

    def _list(self):
        return way(self._volume, self._point)


def reopen(device_fd):
    """The same device once more, to read only, without the claim. The caller closes it."""
    return os.open(f"/proc/self/fd/{device_fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
