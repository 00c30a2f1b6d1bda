"""A device that is offered as the clone of a job: held exclusively, read, and not written at all. What was read of it may then be adopted, which
makes it a replica: its digest map, and last its superblock, in the volume's own directory.
"""

import array
import mmap
import os
import shutil
import threading

from qrep import devicesafety, mapvalues
from qrep._native import disk, hasher
from qrep._native.connection import Connection
from qrep._native.source_lane import SourceRun
from qrep.crashpoint import crashpoint
from qrep.digestmap import DIGEST_SIZE, NO_ID, DigestMap
from qrep.digesttree import has_unknown
from qrep.errors import ProtocolError, Refused
from qrep.protocol.records import TargetRecord
from qrep.rehash import read_range
from qrep.store import Directory
from qrep.target import scan
from qrep.target.points import Points
from qrep.target.superblock import NAME as SUPERBLOCK
from qrep.target.superblock import SuperblockFile

LANES = 2


class OfferedDevice:
    """info: DeviceInfo, which was checked. directory: of the volume's state as a target; it has no superblock, and whatever else lies there is of no
    use any more. volume_id: 16 bytes. geometry: wire.Geometry of the source volume. Close it, or use it in `with`.
    """

    def __init__(self, info, directory, *, volume_id, geometry):
        self.info, self.geometry, self.volume_id = info, geometry, volume_id
        self._directory, self._map = directory, None
        self.device_fd = devicesafety.claim(info, wait_seconds=1)  # until the end: what was read stays as it is
        try:
            if os.path.exists(os.path.join(directory, SUPERBLOCK)):  # it was a replica, not held just now
                raise Refused(f"{info.path} has become a replica", code="has-sync-points", hint="try again; qrep volume show tells whose")
            if os.path.isdir(directory):
                shutil.rmtree(directory)
            self._map = DigestMap(os.path.join(directory, "map"), geometry, volume_id)
        except BaseException:
            self.close()
            raise
        self.states = bytearray(self._map.states)  # of what was read; the rest is UNKNOWN
        self.values = mapvalues.copied(self.states, self._map.values)
        self._stopped = None

    # ---- answers ----

    def sample(self, leaves):
        """The values of these leaves, one after the other. Raises ProtocolError for one that there is not, DeviceReadError."""
        leaf_size, size = self.geometry.leaf_size, self.geometry.size
        buffer = mmap.mmap(-1, leaf_size)
        values = bytearray()
        for leaf in leaves:
            start = leaf * leaf_size
            if start >= size:
                raise ProtocolError(f"leaf {leaf} is beyond the end of the volume")
            data = read_range(self.device_fd, buffer, start, min(leaf_size, size - start), self.info.io_alignment)
            values += hasher.subtree(data, start, leaf_size)
        return bytes(values)

    def scan(self, first, count):
        """(states, values) of granules, freshly read; their leaf values are kept for adopt(). Raises ProtocolError, DeviceReadError."""
        end = first + count
        if end > self.geometry.granules:
            raise ProtocolError(f"granules {first} to {end} of {self.geometry.granules} were asked for")
        run = SourceRun(
            self.geometry, attempt=0, session=0, key=bytes(32), sector_size=self.info.io_alignment, base_states=self._map.states,
            base_values=self._map.values, fresh_values=mapvalues.copied(self._map.states, self._map.values), leaves_fd=self._map.leaves_fd, work=array.array("Q", range(first, end)),
        )  # fmt: skip
        lanes = [
            threading.Thread(target=run.lane, args=(self.device_fd, Connection.none(), index), name=f"offer-{index}", daemon=True)
            for index in range(min(LANES, count))
        ]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        scan.check_readable(run)
        states, values = run.fresh_states[first:end], run.fresh_values[first * DIGEST_SIZE : end * DIGEST_SIZE]
        mapvalues.put(self.values, self.states, first, states, values)
        self.states[first:end] = states
        return states, values

    def leaves(self, granules):
        """Yields (granule, leaf values), freshly read. Raises ProtocolError, DeviceReadError."""
        if max(granules) >= self.geometry.granules:
            raise ProtocolError(f"granule {max(granules)} of {self.geometry.granules} was asked for")
        return scan.leaf_pages(self.device_fd, self.geometry, self.info.io_alignment, granules)

    # ---- adopted ----

    def write_map(self, generation, counter):
        """Note what was read as the map of a generation. Raises ProtocolError if something was not read, or the generation is none."""
        if generation == NO_ID or has_unknown(self.states):
            raise ProtocolError("a volume was to be adopted that was not read as a whole")
        self._map.write_pending(generation, NO_ID, counter, bytearray(self.states), mapvalues.copied(self.states, self.values))
        self._map.fold(generation)

    def write_superblock(self, generation, counter, frozen_at_ns, fuzzy):
        """From here on the device is a replica that holds this generation. The superblock is the one durable step that says so."""
        with Directory(self._directory) as directory:
            Points(directory).record(generation, counter, fuzzy, frozen_at_ns)
            record = TargetRecord(
                self.volume_id, self.geometry.size, self.geometry.leaf_size, self.geometry.granule_size, committed_id=generation, committed_counter=counter
            )
            file = SuperblockFile(directory)
            try:
                crashpoint("rebuild-adopt-before")
                file.write(disk.Superblock(**{name: getattr(record, name) for name in record.__struct_fields__}))
                crashpoint("rebuild-adopted")
            finally:
                file.close()

    def take_claim(self):
        """The descriptor, exclusive as ever, for who serves the device from now on."""
        descriptor, self.device_fd = self.device_fd, -1
        return descriptor

    def close(self, *, forget=False):
        """Let the device go. forget: nothing came of it."""
        if self.device_fd >= 0:
            os.close(self.device_fd)
            self.device_fd = -1
        if self._map is not None:
            self._map.close()
            self._map = None
        if forget and os.path.isdir(self._directory) and not os.path.exists(os.path.join(self._directory, SUPERBLOCK)):
            shutil.rmtree(self._directory)
