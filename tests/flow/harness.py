"""Whole runs on real devices inside one process: a target volume, a source, and an oracle that shares no code with either."""

import os
import subprocess
from pathlib import Path

import blake3

from qrep import device
from qrep.copy import LocalTarget, local_request
from qrep.source.flow import Run
from qrep.target.volume import TargetVolume

MIB = 1 << 20
LEAF, GRANULE = 4096, MIB
JOB, VOLUME = bytes([1]) * 16, bytes([2]) * 16


def b3sum(path, size=None):
    """What a stranger's b3sum says of the first `size` bytes, read past our own page cache views."""
    if size is None:
        return subprocess.run(["b3sum", "--no-names", path], capture_output=True, text=True, check=True).stdout.strip()
    with open(path, "rb") as file:
        return subprocess.run(
            ["b3sum", "--no-names"], input=file.read(size), capture_output=True, check=True
        ).stdout.decode().strip()  # fmt: skip


def packaged(path, size=None):
    """The packaged blake3 over the same bytes."""
    with open(path, "rb") as file:
        return blake3.blake3(file.read() if size is None else file.read(size)).hexdigest()


def write_at(path, offset, data):
    """Change a device as an application would: through the page cache, then down."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


class Site:
    """A source path, a target path and their state; `volume` is opened anew by each `target()`."""

    def __init__(self, directory, source, target, **volume_options):
        self.directory, self.source, self.target_path = Path(directory), str(source), str(target)
        self.volume_options = {"leaf_size": LEAF, "granule_size": GRANULE, **volume_options}
        self.volume = self.local = None

    def open(self, **options):
        self.volume = TargetVolume(
            device.inspect(self.target_path), self.directory / "target", volume_id=VOLUME, **{**self.volume_options, **options}
        )
        self.local = LocalTarget(self.volume)
        self.volume.open()
        return self

    def close(self):
        if self.volume is not None:
            self.volume.close()
            self.local.join()
            self.volume = None

    def __enter__(self):
        return self if self.volume is not None else self.open()

    def __exit__(self, *exception):
        self.close()

    def make_run_request(self, **options):
        options = {"leaf_size": self.volume_options["leaf_size"], "granule_size": self.volume_options["granule_size"], **options}
        return local_request(self.source, self.directory, job_id=JOB, volume_id=VOLUME, **options)

    def make_run(self, **options):
        return Run(self.make_run_request(**options), self.local.dial, self.local.connect)

    def run(self, **options):
        return self.make_run(**options).run()

    def map_is_true(self, size):
        """Check the target's and the source's maps, where they know something, against the target device itself."""
        from qrep._native import disk, hasher

        data = Path(self.target_path).read_bytes()[:size]
        for digest_map in (self.volume.digest_map, self.source_map(size)):
            if digest_map.tag != self.volume.machine.record.committed_id:
                continue
            for granule, state in enumerate(digest_map.states):
                start = granule * self.volume.geometry.granule_size
                part = data[start : start + self.volume.geometry.granule_size]
                if state & disk.STATE_MASK == disk.STATE_ZERO:
                    assert not any(part), f"granule {granule} is called zero and is not"
                elif state & disk.STATE_MASK == disk.STATE_HASHED:
                    assert digest_map.value(granule) == hasher.subtree(part, start, LEAF), f"granule {granule}: the map lies"
            if digest_map is not self.volume.digest_map:
                digest_map.close()

    def source_map(self, size):
        from qrep._native.wire import Geometry
        from qrep.digestmap import DigestMap

        geometry = Geometry(size, self.volume_options["leaf_size"], self.volume_options["granule_size"])
        return DigestMap(self.directory / "sources" / JOB.hex() / "map", geometry, VOLUME)
