"""The digest map of a volume on disk: `root`, `pending`, `leaves`, and on a target `checkpoint` (`_native/disk.h` has the bytes).

`root` says what the generation `tag` holds; `pending` is the whole map that would follow it; folding is one rename. A file
that fails any check is not believed at all: the map is then UNKNOWN throughout and `reason` says why. UNKNOWN costs
bandwidth, never truth.
"""

import os
from dataclasses import dataclass, field

from qrep import digesttree
from qrep._native import disk
from qrep.crashpoint import crashpoint
from qrep.errors import DamagedError
from qrep.store import Directory

DIGEST_SIZE = digesttree.DIGEST_SIZE
NO_ID, NO_ROOT = disk.ZERO_ID, disk.ZERO_DIGEST
ROOT, PENDING, LEAVES, CHECKPOINT = "root", "pending", "leaves", "checkpoint"


@dataclass
class Content:
    """What one map file holds. states: a byte per granule; values: 32 bytes per granule; root: 32 bytes, or None."""

    tag: bytes
    counter: int
    states: bytearray = field(repr=False)
    values: bytearray = field(repr=False)
    base: bytes = NO_ID
    root: bytes | None = None


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
        return Content(NO_ID, 0, bytearray(self.granules), bytearray(self.granules * DIGEST_SIZE))

    def _take(self, content):
        self.tag, self.counter = content.tag, content.counter
        self.states, self.values, self.root_value = content.states, content.values, content.root

    # ---- files ----

    def _read(self, name):
        """The content of a map file, None when there is none, or a text that says why it cannot be believed."""
        size = disk.map_size(self.granules)
        try:
            data = self.directory.read(name, size)
            if data is None:
                return None
            header = disk.MapHeader.unpack(data[: disk.MAP_HEADER_SIZE], len(data))
        except (DamagedError, disk.RecordDamaged, disk.RecordNewer) as err:
            return f"{self.directory.path}/{name}: {err}"
        ours = (self.volume_id, self.geometry.size, self.geometry.leaf_size, self.geometry.granule_size)
        if (header.volume_id, header.size, header.leaf_size, header.granule_size) != ours:
            return f"{self.directory.path}/{name}: describes another volume or another geometry"
        values_offset = disk.map_values_offset(self.granules)
        if any(data[disk.MAP_HEADER_SIZE + self.granules : values_offset]):
            return f"{self.directory.path}/{name}: bytes that must be zero are not"
        content = Content(
            tag=header.tag,
            counter=header.counter,
            base=header.base,
            root=None if header.root == NO_ROOT else header.root,
            states=data[disk.MAP_HEADER_SIZE : disk.MAP_HEADER_SIZE + self.granules],
            values=data[values_offset : values_offset + self.granules * DIGEST_SIZE],
        )
        try:
            header.check_body(content.states, content.values)
        except disk.RecordDamaged as err:
            return f"{self.directory.path}/{name}: {err}"
        return content

    def _write(self, name, content):
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
            digest=disk.map_digest(content.states, content.values),
        )
        padding = bytes(disk.map_values_offset(self.granules) - disk.MAP_HEADER_SIZE - self.granules)
        self.directory.write(name, header.pack(), content.states, padding, content.values)

    # ---- generations ----

    def write_pending(self, new, base, counter, states, values, root=None):
        """Make durable what the map will be if `new` is committed on top of `base`. The arrays become the map's own."""
        content = Content(bytes(new), counter, states, values, bytes(base), root)
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
        content = Content(self.tag, self.counter, states, values)
        self._write(ROOT, content)
        self._take(content)
        crashpoint("map-replace-durable")

    # ---- the checkpoint of a target's first, still uncommitted generation ----

    def write_checkpoint(self, new, counter, states, values):
        """Make durable what has been applied of `new`; granules not wholly applied are UNKNOWN in `states`.

        The caller has flushed the device after the last of them was applied.
        """
        crashpoint("map-checkpoint-before")
        self._write(CHECKPOINT, Content(bytes(new), counter, states, values))
        crashpoint("map-checkpoint-durable")

    def read_checkpoint(self, new):
        """The Content of the checkpoint of `new`, or None if there is none that can be believed."""
        content = self._read(CHECKPOINT)
        return content if isinstance(content, Content) and content.tag == bytes(new) else None

    def drop_checkpoint(self):
        self.directory.remove(CHECKPOINT)

    # ---- what the map can tell ----

    def root(self):
        """Root of the generation `tag`: the plain BLAKE3 of the device. None while it cannot be told.

        Kept in memory, and on disk with the next map that is written.
        """
        if self.root_value is None:
            self.root_value = digesttree.root(self.geometry, self.states, self.values, self.leaves_fd)
        return self.root_value

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
