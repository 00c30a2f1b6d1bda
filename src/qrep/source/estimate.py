"""How much a run would send: one scan against the map, nothing sent, nothing kept."""

import os
import threading
from dataclasses import dataclass

from qrep import mapvalues
from qrep._native.connection import Connection
from qrep._native.source_lane import SourceRun
from qrep.digestmap import NO_ID, DigestMap
from qrep.errors import DeviceReadError
from qrep.source.hints import Hints
from qrep.source.kept import Kept
from qrep.source.snapshotwatch import SnapshotWatch
from qrep.source.work import Base, holes_of, work_list


@dataclass
class Estimate:
    """Bytes of the volume, and of what differs from the map (zeroes, which cost nothing to send, not counted). full: no map yet."""

    size: int
    would_send: int
    full: bool


def estimate(request, *, on_run=None):
    """Scan a fresh snapshot of the source against its map, as far as change hints do not spare it. request: RunRequest. on_run(SourceRun): its counters can be watched, and
    stop() ends it. Raises DeviceReadError."""
    geometry, backend = request.geometry, request.backend
    digest_map = DigestMap(request.map_directory, geometry, request.volume_id)
    kept = Kept(request.run_directory, request.release)
    hints = Hints(request, kept, digest_map, lambda code, text, **data: None)
    frozen, source_fd = None, -1
    try:
        frozen = backend.freeze(request.device, request.snapshot)
        source_fd, sector_size = request.open(frozen)
        base = Base(digest_map.states, digest_map.values)
        holes = holes_of(source_fd, geometry, None if frozen.fuzzy else backend.allocated(frozen.token))
        hints.look(frozen, source_fd, holes, sector_size, trying=False)
        hint = hints.in_use
        run = SourceRun(
            geometry, attempt=0, session=0, key=bytes(32), sector_size=sector_size, base_states=base.states, base_values=base.values,
            fresh_values=mapvalues.copied(base.states, base.values), leaves_fd=digest_map.leaves_fd, wanted=hint and hint.wanted,
            work=work_list(base, holes, geometry, resumed=False, same_image=False, unknown="", hint=hint), nice=request.reading.limit(source_fd),
        )  # fmt: skip
        if on_run:
            on_run(run)
        lost = []
        watch = SnapshotWatch(backend, frozen.token, lambda _watch, error: (lost.append(error), run.stop()))
        try:
            _scan(run, source_fd, request.connections)
        finally:
            watch.stop()
        if lost:
            raise lost[0]
        if run.failure() is not None:
            raise DeviceReadError(f"{request.device.path} could not be scanned: {run.failure()[0]}")
        counters = run.counters()
        full = digest_map.tag == NO_ID
        would_send = max(0, counters["changed"] - (counters["zero"] if full else 0))
        return Estimate(geometry.size, would_send, full)
    finally:
        if source_fd >= 0:
            os.close(source_fd)
        if frozen is not None and not frozen.fuzzy:
            backend.release(frozen.token)
        request.reading.end()
        kept.close()
        digest_map.close()


def _scan(run, source_fd, count):
    lanes = [threading.Thread(target=run.lane, args=(source_fd, Connection.none(), index), daemon=True) for index in range(count)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
