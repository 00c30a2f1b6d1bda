"""Packing (Z1): what `compress = "auto"` does to a full copy over two connections, against the same copy plain, in the same rounds.

Random bytes as fast as it goes: that it costs nothing. Mixed bytes (mixed.py) as fast as it goes: that it stays away where the connection is
faster than packing. Mixed bytes at 100 MB/s: what it brings.
"""

import os

from lane_pair import rate_of, replicate
from measure import FULL, GIB, MIB, fill_file
from mixed import mixed

from qrep._native.bucket import Bucket
from qrep._native.wire import Geometry

LEAF, GRANULE = 4096, 8 * MIB
RATE = 100_000_000 if FULL else 60_000_000
FAST, SLOW = (GIB, 192 * MIB) if FULL else (32 * MIB, 32 * MIB)
FEATURES = {"features": ("zstd",)}


def copies(memory_device, open_direct, size, content):
    """(ours, plain): rates of a full copy that packs where it pays, and of one that does not. content(path): what the source holds."""
    source, target = memory_device(size, "zero"), memory_device(size, "zero")
    content(source)
    geometry, ends = Geometry(size, LEAF, GRANULE), (open_direct(source, os.O_RDONLY), open_direct(target))

    def copy(packing, rate):
        bucket = Bucket(rate) if rate else None
        run, _, seconds = replicate(
            geometry, *ends, bucket=bucket, source_options=FEATURES | {"packing": packing}, target_options=FEATURES,
        )  # fmt: skip
        counters = run.counters()
        return rate_of(seconds, size, wire=counters["sent"] / counters["changed"])

    return lambda rate=0: copy("auto", rate), lambda rate=0: copy("off", rate)


def write_mixed(size):
    def write(path):
        with open(path, "r+b", buffering=0) as device:
            data = mixed(min(size, 192 * MIB))
            for start in range(0, size, len(data)):
                device.seek(start)
                device.write(data[: size - start])
            os.fsync(device.fileno())

    return write


def test_random_data_as_fast_as_it_goes(compare, memory_device, open_direct):
    ours, plain = copies(memory_device, open_direct, FAST, lambda path: fill_file(path, FAST, 3))
    compare("Z1", "compress auto, random, unlimited / off", ours, plain, first=0.95, goal=0.97, family="compression", peer="off")


def test_mixed_data_as_fast_as_it_goes(compare, memory_device, open_direct):
    ours, plain = copies(memory_device, open_direct, FAST, write_mixed(FAST))
    compare("Z1", "compress auto, mixed, unlimited / off", ours, plain, first=0.95, goal=0.97, family="compression", peer="off")


def test_mixed_data_at_a_rate(compare, memory_device, open_direct):
    ours, plain = copies(memory_device, open_direct, SLOW, write_mixed(SLOW))
    compare(
        "Z1", f"compress auto, mixed, {RATE // 1_000_000} MB/s / off", lambda: ours(RATE), lambda: plain(RATE), first=1.5, goal=2.0, family="compression", peer="off",
    )  # fmt: skip
