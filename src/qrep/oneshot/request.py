"""The source end of a one-shot copy: what is read, how it is frozen, and where its map lies."""

import functools
import os
import socket

from qrep import device, signature, units
from qrep.errors import Refused
from qrep.oneshot.target import job_of, key_of


class CopySource:
    """path: a device or image file. map_dir: instead of the one in the state directory. Raises Refused for a size that cannot be copied, before anything is
    made for it."""

    def __init__(self, path, *, state_dir, map_dir=None, snapshots="auto", leaf_size=4096, granule_size=8 << 20, connections=2):
        from qrep.volumes import registry

        self.info = device.inspect(path)
        if self.info.size < 2 * leaf_size:
            raise Refused(
                f"source {path} has {units.format_size(self.info.size)}, less than two leaves of {units.format_size(leaf_size)}",
                hint="copy it with cp or dd", code="too-small",
            )  # fmt: skip
        if self.info.size % 512:
            raise Refused(
                f"source {path} is {self.info.size} bytes, which is not a multiple of 512",
                hint="make the source a multiple of 512 bytes", code="sector-size",
            )  # fmt: skip
        self.name = f"{socket.gethostname()}:{self.info.real_path}#{key_of(self.info).hex()[:8]}"
        self.backend = registry.choose(snapshots, self.info).backend
        self.leaf_size, self.granule_size, self.connections = leaf_size, granule_size, connections
        self._state_dir, self._map_dir = state_dir, map_dir

    @functools.cached_property
    def mark(self):
        """signature.mark() of the source; "" where nobody can tell: then a person is asked."""
        try:
            return signature.mark(self.info.real_path)
        except signature.CannotProbe:
            return ""

    def request(self, volume_id, *, compare, timeout_s, nice=False, compress="off"):
        """The RunRequest to the target volume `volume_id`. compare(): its content is not known any more, so ask for its digests. nice, compress: as of RunRequest."""
        from qrep.source.request import RunRequest

        job_id = job_of(self.name, volume_id)
        directory = os.path.join(self._state_dir, "copies", "sources", job_id.hex())
        return RunRequest(
            job_id=job_id, volume_id=volume_id, device=self.info, backend=self.backend, run_directory=directory,
            map_directory=self._map_dir or os.path.join(directory, "map"), leaf_size=self.leaf_size, granule_size=self.granule_size,
            connections=self.connections, initial="compare" if compare() else "auto", forgotten=compare, timeout_s=timeout_s, nice=nice, compress=compress, hold=False,  # nobody keeps the target in service
        )  # fmt: skip
