"""What lies on a device of a bench, and how it changes between rounds."""

import os
import random
from pathlib import Path

import numpy
from agents import b3sum
from measure import DEVICE_SIZE, MIB

LEAF = 4096


def change_leaves(descriptor, share, seed, size=DEVICE_SIZE):
    """Overwrite a random share of the leaves of the first `size` bytes with other bytes; how many."""
    source = random.Random(seed)
    leaves = source.sample(range(size // LEAF), max(1, int(size // LEAF * share)))
    data = numpy.random.default_rng(seed).bytes(len(leaves) * LEAF)
    for number, leaf in enumerate(sorted(leaves)):
        os.pwrite(descriptor, memoryview(data)[number * LEAF : (number + 1) * LEAF], leaf * LEAF)
    os.fsync(descriptor)
    return len(leaves)


def change_one_run(descriptor, share, seed, size=DEVICE_SIZE):
    """Overwrite one run of that share of the first `size` bytes, at a place of whole leaves; how many leaves."""
    count = max(1, int(size // LEAF * share))
    first = random.Random(seed).randrange(size // LEAF - count)
    source = numpy.random.default_rng(seed)
    for start in range(first * LEAF, (first + count) * LEAF, MIB):
        os.pwrite(descriptor, source.bytes(min(MIB, (first + count) * LEAF - start)), start)
    os.fsync(descriptor)
    return count


def zero_every_other(path, size, piece=MIB):
    """Overwrite every second piece of a device with zeroes."""
    with open(path, "r+b", buffering=0) as device:
        for start in range(piece, size, 2 * piece):
            device.seek(start)
            device.write(bytes(min(piece, size - start)))
        os.fsync(device.fileno())


def backing(path):
    """The file below a loop device that writes directly, once its own cache is down; anything else as it is. b3sum reads a file in memory faster."""
    file = Path("/sys/block", Path(path).name, "loop/backing_file")
    if not file.exists():
        return path
    with open(path, "rb") as device:
        os.fsync(device.fileno())
    return file.read_text().strip()


def same_content(*paths):
    """Whether b3sum, which shares no code with us, says the same of all."""
    return len({b3sum(backing(path)) for path in paths}) == 1
