"""Source lanes and target lanes in one process, joined by loopback TCP: the whole flow below the control plane."""

import contextlib
import itertools
import os
import secrets
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from measure import GIB, Sample

from qrep._native.connection import Connection
from qrep._native.source_lane import SourceRun
from qrep._native.target_lane import TargetRun
from qrep.daemon.route import LOCAL_BUFFER
from qrep.protocol import unpaced
from qrep.source.request import RunRequest

TCP_CONGESTION = 13
LANES = 2  # connections of a job by default: what a run is made of


def tcp_pairs(count):
    """Connected sockets (source end, target end), as a run has them: bbr halves loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        pairs = []
        for _ in range(count):
            ours = unpaced.connect(server.getsockname())
            theirs, _ = server.accept()
            for end in (ours, theirs):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.IPPROTO_TCP, TCP_CONGESTION, b"cubic")
            pairs.append((ours, theirs))
        return pairs


def socket_pairs(count):
    """The same of a job whose two ends are in one agent: no TCP."""
    pairs = [socket.socketpair() for _ in range(count)]
    for end in itertools.chain(*pairs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOCAL_BUFFER)
    return pairs


def scan(geometry, descriptor, known, leaves_fd=-1, lanes=1, **options):
    """Look at every granule with lanes that send nothing; the SourceRun. known: (states, values) to compare with."""
    run = SourceRun(
        geometry, attempt=1, session=1, key=bytes(32), sector_size=512, base_states=known[0], base_values=known[1], leaves_fd=leaves_fd,
        **options,
    )  # fmt: skip
    with ThreadPoolExecutor(lanes) as pool:
        errors = list(pool.map(lambda index: run.lane(descriptor, Connection.none(), index), range(lanes)))
    if any(errors):
        raise RuntimeError(f"the scan failed: {run.failure()}")
    return run


def whole_map(geometry, descriptor):
    """(states, values) of what a device holds now."""
    run = scan(geometry, descriptor, (bytes(geometry.granules), bytes(32 * geometry.granules)))
    return bytes(run.fresh_states), bytes(run.fresh_values)


def scan_rate(geometry, descriptor, known, lanes=1):
    """Bytes per second of a scan."""
    started = time.perf_counter()
    return scan(geometry, descriptor, known, lanes=lanes).counters()["read"] / (time.perf_counter() - started)


def replicate(geometry, source_fd, target_fd, *, connections=2, base=None, undo_fd=-1, source_options=None, target_options=None,
              pairs=tcp_pairs, flush=False, bucket=None):  # fmt: skip
    """Send the volume from one descriptor to the other; (SourceRun, TargetRun, seconds). base: (states, values) or None: all is sent. bucket: what the
    source may send at.

    The time is that of the lanes, from the first start to the last return, and of a flush of the target at the end if asked for; it is a Sample,
    which carries the CPU time of the lanes of each side (what the kernel does for them in threads of its own is not in it). Raises RuntimeError with
    the failures if a lane fails.
    """
    states, values = base or (bytes(geometry.granules), bytes(32 * geometry.granules))
    identity = {"attempt": secrets.randbits(63), "session": 1, "key": secrets.token_bytes(32), "sector_size": 512}
    source = SourceRun(geometry, base_states=states, base_values=values, **identity, **(source_options or {}))
    target = TargetRun(geometry, base_states=states, base_values=values, undo_fd=undo_fd, undo_limit=1 << 50, base_id=b"b" * 16,
                       **identity, **{"frame_limit": RunRequest.frame_limit} | (target_options or {}))  # fmt: skip
    results, cpu = {}, {}
    with contextlib.ExitStack() as stack:
        threads = []
        for index, (ours, theirs) in enumerate(pairs(connections)):
            stack.enter_context(ours), stack.enter_context(theirs)
            for name, run, fd, end in (("target", target, target_fd, theirs), ("source", source, source_fd, ours)):
                connection = Connection.socket(end.fileno(), index, bucket=bucket if name == "source" else None)

                def work(key=(name, index), run=run, fd=fd, connection=connection):
                    results[key] = run.lane(fd, connection, key[1])
                    cpu[key] = time.thread_time()

                threads.append(threading.Thread(target=work))
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if flush:
            os.fdatasync(target_fd)
        seconds = time.perf_counter() - started
    if any(results.values()):
        raise RuntimeError(f"{results}: source {source.failure()}, target {target.failure()}")
    cpu_of_side = {f"cpu_{side}": sum(spent for (name, _), spent in cpu.items() if name == side) / (geometry.size / GIB) for side in ("source", "target")}
    return source, target, Sample(seconds, **cpu_of_side)


def rate_of(seconds, size, **figures):
    """The rate of a replicate() that took `seconds`, with what these carry, and with `figures`."""
    return Sample(size / seconds, **seconds.figures, **figures)


def open_undo(stack, directory):
    """A fresh undo file below `directory`; its O_DIRECT descriptor."""
    path = os.path.join(directory, f"undo-{secrets.token_hex(4)}")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)
    stack.callback(os.unlink, path)
    stack.callback(os.close, descriptor)
    return descriptor
