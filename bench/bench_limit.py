"""The limiter: how near the token bucket keeps to its rate (R1), and what that costs against SO_MAX_PACING_RATE (R2)."""

import contextlib
import threading
import time

import pytest
from measure import FULL, KIB, ROUNDS, add_row, busy_seconds, figure_row
from wire_loop import connect

from qrep._native import sockets
from qrep._native.bucket import Bucket

SECONDS = 3.0 if FULL else 0.4
MB = 1_000_000


def frame_size(rate):
    """What a connection sends at once: some milliseconds' worth, 16 KiB to 1 MiB."""
    return max(16 * KIB, min(1024 * KIB, rate // 200 // 4096 * 4096))


def send_limited(stream, bucket, until, frame):
    """Ask the bucket, sleep as told, send; as a lane does."""
    while time.monotonic() < until:
        wait_ns = bucket.take(frame_len := len(frame))
        if wait_ns:
            time.sleep(wait_ns / 1e9)
        elif stream.send(frame) != frame_len:
            raise ConnectionError("a blocking send came back short")


def send_freely(stream, until, frame):
    while time.monotonic() < until:
        stream.sendall(frame)


def count_received(stream, counts, index):
    buffer = bytearray(1 << 20)
    while got := stream.recv_into(buffer):
        counts[index] += got


def measure(rate, connections, limiter):
    """Send for SECONDS over `connections`, each limited to `rate`: (bytes per second of one, busy core-seconds per GB)."""
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(connect()) for _ in range(connections)]
        counts = [0] * connections
        receivers = [
            threading.Thread(target=count_received, args=(pair[1], counts, index)) for index, pair in enumerate(pairs)
        ]
        senders = []
        started, busy = time.monotonic(), busy_seconds()
        for ours, _ in pairs:
            frame = bytes(frame_size(rate))
            if limiter == "bucket":
                bucket = Bucket(rate)
                bucket.take(bucket.capacity)  # the burst after a pause is not what is measured
                senders.append(threading.Thread(target=send_limited, args=(ours, bucket, started + SECONDS, frame)))
            else:
                sockets.pace(ours.fileno(), rate)
                senders.append(threading.Thread(target=send_freely, args=(ours, started + SECONDS, frame)))
        for thread in receivers + senders:
            thread.start()
        time.sleep(max(0.0, started + SECONDS - time.monotonic()))
        received, elapsed = sum(counts), time.monotonic() - started
        busy = busy_seconds() - busy
        for thread in senders:
            thread.join()
        for ours, _ in pairs:
            ours.shutdown(1)
        for thread in receivers:
            thread.join()
    return received / elapsed / connections, busy / (received / 1e9)


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("rate", [10 * MB, 50 * MB, 100 * MB, 600 * MB], ids=["10", "50", "100", "600"])
def test_the_limit_is_kept(benchmark, rate, connections):
    figures = []
    benchmark.pedantic(lambda: figures.append(measure(rate, connections, "bucket")[0]), rounds=min(3, ROUNDS), iterations=1)
    errors = [abs(figure / rate - 1) for figure in figures]
    row = figure_row("R1", f"error at {rate // MB} MB/s, {connections} connections", errors, first=0.02, goal=0.005)
    add_row(row, benchmark)
    # whatever the load of the machine: never more than the rate and one frame on its way
    assert max(figures) <= rate * 1.005 + 2 * frame_size(rate) / SECONDS


def test_the_bucket_costs_less_than_pacing(compare):
    compare(
        "R2", "core-s/GB at 4 x 600 MB/s / SO_MAX_PACING_RATE", lambda: measure(600 * MB, 4, "bucket")[1],
        lambda: measure(600 * MB, 4, "pacing")[1], first=1.0, goal=0.65, at_most=True, unit="core-s/GB", rounds=min(3, ROUNDS),
    )
