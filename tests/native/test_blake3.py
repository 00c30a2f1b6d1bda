"""Our BLAKE3 equals the packaged one, on every kernel this CPU has, at every length where the tree changes shape."""

import random

import blake3
import pytest

from qrep._native import hasher

KERNELS = ["avx512", "avx2", "sse41", "neon", "portable"]


@pytest.fixture(params=KERNELS)
def kernel(request):
    """Force one kernel; skip where the CPU does not have it."""
    try:
        hasher.select(request.param)
    except RuntimeError as err:
        pytest.skip(str(err))
    yield request.param
    hasher.select()


def test_every_kernel_passes_its_self_test(kernel):
    assert hasher.isa() == kernel
    hasher.self_test()


def test_hash_equals_the_packaged_blake3(kernel):
    data = random.Random(1).randbytes(1 << 20)
    for size in (0, 1, 64, 1023, 1024, 1025, 4096, 5000, 16384, 65537, 1 << 20):
        assert hasher.hash(data[:size]) == blake3.blake3(data[:size]).digest(), size
