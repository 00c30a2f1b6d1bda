"""One block device to another inside one process: the whole engine over an in-memory control channel and socket pairs."""

import os
import socket
import threading
from contextlib import contextmanager

import blake3

from qrep import device
from qrep.protocol.transport import DataConnection, Rendezvous, local_pair
from qrep.source.flow import Run
from qrep.source.request import RunRequest
from qrep.target.volume import TargetVolume
from qrep.volumes.none import Live


def identity(*paths):
    """16 bytes that name a copy from one path to another, the same every time."""
    names = b"\0".join(os.fsencode(os.path.realpath(path)) for path in paths)
    return blake3.blake3(b"qrep copy\0" + names).digest(16)


class LocalTarget:
    """A TargetVolume in this process, and the two functions a Run needs to reach it."""

    def __init__(self, volume, *, zero_copy=False, bucket=None):
        self.volume, self.rendezvous = volume, Rendezvous()
        self._zero_copy, self._bucket = zero_copy, bucket
        self._threads = []

    def dial(self):
        source_end, target_end = local_pair()
        thread = threading.Thread(target=self.volume.serve, args=(target_end, self.rendezvous), name="target-control", daemon=True)
        thread.start()
        self._threads.append(thread)
        return source_end

    def connect(self, token, slot):
        one, other = socket.socketpair()
        index = self.rendezvous.deliver(token, lambda index: DataConnection(other, index))
        if index is None:
            one.close()
            other.close()
            raise ConnectionRefusedError("the target does not wait for this connection any more")
        return DataConnection(one, index, zero_copy=self._zero_copy, bucket=self._bucket)

    def join(self):
        """Wait for the end of all control sessions; their source ends were closed."""
        for thread in self._threads:
            thread.join()


@contextmanager
def local_target(volume, **options):
    """An open TargetVolume as LocalTarget; closed at the end, when its sessions have ended."""
    target = LocalTarget(volume, **options)
    try:
        volume.open()
        yield target
    finally:
        volume.close()
        target.join()


def local_request(source_path, state_directory, *, job_id, volume_id, backend=None, **options):
    """The RunRequest of a job whose source is a device or image file here. options: of RunRequest."""
    return RunRequest(
        job_id=job_id, volume_id=volume_id, device=device.inspect(source_path), backend=backend or Live(),
        map_directory=os.path.join(state_directory, "sources", job_id.hex(), "map"),
        run_directory=os.path.join(state_directory, "sources", job_id.hex()), **options,
    )  # fmt: skip


def copy_local(source_path, target_path, state_directory, *, leaf_size=4096, granule_size=8 << 20, connections=2, backend=None,
               overwrite=False, initial="auto", zero_copy=False, bucket=None, sync_points=7, undo_directory=None, undo_limit=None,
               observer=None, on_start=None):  # fmt: skip
    """Copy a device or image file to another; again with the same state directory sends only what changed. Returns a RunReport.

    on_start(run): told of the Run before it begins, so that its progress can be shown and it can be stopped.
    Raises Refused before anything is written when the target may not be; else as Run.run().
    """
    name = identity(source_path, target_path)
    volume = TargetVolume(
        device.inspect(target_path), os.path.join(state_directory, "targets", name.hex()), volume_id=name, leaf_size=leaf_size,
        granule_size=granule_size, undo_directory=undo_directory, undo_limit=undo_limit, sync_points=sync_points, overwrite=overwrite,
        source=device.inspect(source_path),
    )  # fmt: skip
    with local_target(volume, zero_copy=zero_copy, bucket=bucket) as target:
        request = local_request(
            source_path, state_directory, job_id=name, volume_id=name, backend=backend, leaf_size=leaf_size, granule_size=granule_size,
            connections=connections, initial=initial,
        )  # fmt: skip
        run = Run(request, target.dial, target.connect, observer=observer)
        if on_start:
            on_start(run)
        return run.run()
