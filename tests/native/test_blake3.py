"""Our BLAKE3 equals the packaged one, on every kernel this CPU has, at every length where the tree changes shape."""

import itertools
import json
import os
import random
import subprocess
import sys
from array import array
from pathlib import Path

import blake3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrep._native import hasher

KERNELS = ["avx512", "avx2", "sse41", "neon", "portable"]
KIB = 1024
LEAF = 4 * KIB
GRANULE = 64 * KIB  # small, so that several fit into a test; the code knows no fixed granule
KEY = bytes(range(32))
GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "digests.json").read_text())
DATA = random.Random(20).randbytes(2 * 1024 * KIB + 4096)

# Around every power of two of chunks (lanes, leaf, granule), and lengths that belong to nothing.
BOUNDARIES = sorted(
    {0, 1, 63, 64, 65, 127, 128, 129, 100_000, 777_777}
    | {(KIB << level) + delta for level in range(12) for delta in (-1, 0, 1, 512, KIB - 1, KIB, KIB + 1)}
    | {chunks * KIB for chunks in range(1, 70)}
)


def available_kernels():
    found = []
    for name in KERNELS:
        try:
            hasher.select(name)
        except RuntimeError:
            continue
        found.append(name)
    hasher.select()
    return found


AVAILABLE = available_kernels()


@pytest.fixture(params=AVAILABLE)
def kernel(request):
    hasher.select(request.param)
    yield request.param
    hasher.select()


def each_kernel():
    """For property tests, where one drawn input goes through all kernels."""
    try:
        for name in AVAILABLE:
            hasher.select(name)
            yield name
    finally:
        hasher.select()


def packaged(data, key=None):
    return blake3.blake3(data, key=key).digest()


def row_of(data, node_size, offset=0):
    """The chaining values of every node of `node_size`, each hashed by itself."""
    return b"".join(
        hasher.subtree(data[at:at + node_size], offset + at, max(node_size, KIB)) for at in range(0, len(data), node_size)
    )


def test_every_kernel_passes_its_self_test(kernel):
    assert hasher.isa() == kernel
    hasher.self_test()


def test_golden_digests_hold_on_every_kernel(kernel):
    key = GOLDEN["key"].encode()
    for case in GOLDEN["cases"]:
        data = bytes(i % 251 for i in range(case["length"]))
        assert hasher.hash(data).hex() == case["hash"], case["length"]
        assert hasher.keyed(key, data).hex() == case["keyed_hash"], case["length"]


def test_golden_digests_are_those_of_the_packaged_blake3():
    key = GOLDEN["key"].encode()
    for case in GOLDEN["cases"]:
        data = bytes(i % 251 for i in range(case["length"]))
        assert (packaged(data).hex(), packaged(data, key).hex()) == (case["hash"], case["keyed_hash"]), case["length"]


def test_hash_and_keyed_equal_the_packaged_blake3_around_every_boundary(kernel):
    for size in BOUNDARIES:
        assert hasher.hash(DATA[:size]) == packaged(DATA[:size]), size
        assert hasher.keyed(KEY, DATA[:size]) == packaged(DATA[:size], KEY), size


def test_hash_of_unaligned_memory_equals_the_packaged_blake3(kernel):
    view = memoryview(DATA)
    for start, size in itertools.product((1, 3, 17, 63), (KIB, 4 * KIB, 16 * KIB + 1, 65 * KIB)):
        assert hasher.hash(view[start:start + size]) == packaged(view[start:start + size]), (start, size)


def test_leaf_values_merge_to_the_root_of_every_length(kernel):
    for size, leaf_size in itertools.product(BOUNDARIES, (KIB, 4 * KIB, 64 * KIB)):
        if size <= leaf_size:
            continue
        count = -(-size // leaf_size)
        leaves = bytearray(count * 32)
        value = hasher.subtree(DATA[:size], 0, leaf_size, leaves)
        assert hasher.root(size, leaf_size, leaves) == packaged(DATA[:size]), (size, leaf_size)
        assert hasher.merge(leaves) == value, (size, leaf_size)


def test_leaf_values_of_a_pass_equal_leaves_hashed_alone(kernel):
    offset = 3 << 40  # chunk counters past 32 bits
    sizes = (KIB, 4 * KIB, 12 * KIB + 512, 64 * KIB, 256 * KIB, 300 * KIB)
    for size, leaf_size in itertools.product(sizes, (KIB, 4 * KIB, 32 * KIB)):
        leaves = bytearray(-(-size // leaf_size) * 32)
        hasher.subtree(DATA[:size], offset, leaf_size, leaves)
        assert leaves == row_of(DATA[:size], leaf_size, offset), (size, leaf_size)


def test_all_kernels_agree_on_counters_around_32_bits():
    # The low half of the chunk counter is about to wrap inside, at the start of, or right before the subtree.
    offsets = ((1 << 42) - 128 * KIB, 1 << 42, (1 << 42) + 128 * KIB)
    for offset, size in itertools.product(offsets, (4 * KIB, 16 * KIB, 128 * KIB)):
        assert len({hasher.subtree(DATA[:size], offset, LEAF) for _ in each_kernel()}) == 1, (offset, size)
    halves = [hasher.subtree(DATA[:GRANULE], at, LEAF) for at in ((1 << 42) - GRANULE, 1 << 42)]
    assert halves[0] != halves[1]  # same bytes, other place


@pytest.mark.parametrize("leaf_size", [KIB, 4 * KIB, 16 * KIB, 64 * KIB])
def test_gather_equals_subtree_of_every_leaf(kernel, leaf_size):
    generator = random.Random(leaf_size)
    for count in (0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31):
        data = DATA[:count * leaf_size]
        offsets = [generator.randrange(1 << 46) * leaf_size for _ in range(count)]
        out = bytearray(32 * count)
        hasher.gather(data, leaf_size, array("Q", offsets), out)
        alone = [hasher.subtree(data[i * leaf_size:(i + 1) * leaf_size], at, leaf_size) for i, at in enumerate(offsets)]
        assert out == b"".join(alone), count


def test_zero_subtree_equals_subtree_of_zeros(kernel):
    for size, leaf_size, offset in itertools.product(
        (1, 512, KIB, 2 * KIB, 4 * KIB, 7 * KIB + 512, 16 * KIB, 48 * KIB, 256 * KIB), (KIB, 4 * KIB, 64 * KIB), (0, 5 << 42)
    ):
        count = -(-size // leaf_size)
        expected, found = bytearray(32 * count), bytearray(32 * count)
        value = hasher.subtree(bytes(size), offset, leaf_size, expected)
        assert hasher.zero_subtree(size, offset, leaf_size, found) == value, (size, leaf_size)
        assert found == expected, (size, leaf_size)


@pytest.mark.parametrize("size", [
    4 * KIB, 4 * KIB + 512, 8 * KIB, 60 * KIB, GRANULE - 512, GRANULE, GRANULE + 512, GRANULE + LEAF, 2 * GRANULE,
    3 * GRANULE - 512, 5 * GRANULE + 3 * LEAF + 512, 1024 * KIB + 512,
])
def test_root_of_a_device_from_its_map_equals_its_plain_blake3(kernel, size):
    device = DATA[:size]
    unit = hasher.root_unit(size, GRANULE, LEAF)
    assert unit == (GRANULE if size > GRANULE else LEAF if size > LEAF else KIB)
    assert hasher.root(size, unit, row_of(device, unit)) == packaged(device)


def test_merge_takes_any_number_of_nodes(kernel):
    for count in (*range(1, 70), 127, 128, 129, 513):
        data = DATA[:(count - 1) * KIB + 100]
        row = row_of(data, KIB)
        assert hasher.merge(row) == hasher.subtree(data, 0, KIB), count
        if count > 1:
            assert hasher.merge(row, root=True) == packaged(data), count


@settings(max_examples=60, deadline=None)
@given(size=st.integers(0, 300 * KIB), seed=st.integers(0, 2**32), key=st.none() | st.binary(min_size=32, max_size=32))
def test_any_bytes_have_the_packaged_digest_on_all_kernels(size, seed, key):
    data = random.Random(seed).randbytes(size)
    expected = packaged(data, key)
    for name in each_kernel():
        assert (hasher.keyed(key, data) if key else hasher.hash(data)) == expected, name


@settings(max_examples=60, deadline=None)
@given(
    sectors=st.integers(8, 800), leaf_log=st.integers(12, 16), granule_extra=st.integers(0, 4), seed=st.integers(0, 2**32)
)
def test_root_from_granules_equals_the_packaged_digest_for_any_geometry(sectors, leaf_log, granule_extra, seed):
    size, leaf_size, granule_size = sectors * 512, 1 << leaf_log, 1 << (leaf_log + granule_extra)
    device = random.Random(seed).randbytes(size)
    unit = hasher.root_unit(size, granule_size, leaf_size)
    for name in each_kernel():
        assert hasher.root(size, unit, row_of(device, unit)) == packaged(device), name


@settings(max_examples=40, deadline=None)
@given(level=st.integers(2, 8), position=st.integers(0, 2**40), flip=st.integers(0, 2**20))
def test_one_changed_bit_changes_exactly_its_leaf_and_the_node(level, position, flip):
    size = KIB << level
    offset = position * size
    data = bytearray(DATA[:size])
    before, after = bytearray(size // KIB * 32), bytearray(size // KIB * 32)
    old = hasher.subtree(data, offset, KIB, before)
    flip %= size * 8
    data[flip // 8] ^= 1 << flip % 8
    assert hasher.subtree(data, offset, KIB, after) != old
    differing = [i for i in range(size // KIB) if before[32 * i:32 * i + 32] != after[32 * i:32 * i + 32]]
    assert differing == [flip // 8 // KIB]


@pytest.mark.parametrize("call", [
    lambda out: hasher.subtree(b"", 0, LEAF, out),
    lambda out: hasher.subtree(DATA[:8192], 4096, LEAF, out),  # no node of 8 KiB starts at 4 KiB
    lambda out: hasher.subtree(DATA[:8192], 512, LEAF, out),
    lambda out: hasher.subtree(DATA[:8192], 0, 512, out),
    lambda out: hasher.subtree(DATA[:8192], 0, 5000, out),
    lambda out: hasher.subtree(DATA[:8192], 0, LEAF, memoryview(out)[:32]),
    lambda out: hasher.subtree(DATA[:8192], 0, LEAF, bytes(64)),
    lambda out: hasher.subtree(memoryview(DATA)[:8192:2], 0, LEAF, out),
    lambda out: hasher.zero_subtree(0, 0, LEAF, out),
    lambda out: hasher.zero_subtree(3 * LEAF, 0, LEAF, out),
    lambda out: hasher.gather(DATA[:8191], LEAF, array("Q", [0, LEAF]), out),
    lambda out: hasher.gather(DATA[:8192], LEAF, array("Q", [0]), out),
    lambda out: hasher.gather(DATA[:8192], LEAF, array("L", [0, 5]), out),
    lambda out: hasher.gather(DATA[:8192], LEAF, array("I", [0, 0, 0, 0]), out),
    lambda out: hasher.gather(DATA[:8192], LEAF, memoryview(bytes(32))[1:17], out),
    lambda out: hasher.gather(DATA[:8192], LEAF, array("Q", [0, LEAF]), bytearray(63)),
    lambda out: hasher.merge(b""),
    lambda out: hasher.merge(bytes(33)),
    lambda out: hasher.merge(bytes(32), root=True),
    lambda out: hasher.root(GRANULE, GRANULE, bytes(32)),
    lambda out: hasher.root(3 * LEAF, LEAF, bytes(64)),
    lambda out: hasher.root(3 * LEAF, 3 * KIB, bytes(128)),
    lambda out: hasher.root_unit(512, GRANULE, LEAF),
    lambda out: hasher.root_unit(GRANULE, LEAF, GRANULE),
    lambda out: hasher.keyed(bytes(31), b""),
    lambda out: hasher.select("avx1024"),
])
def test_shapes_that_do_not_fit_raise_and_write_nothing(call):
    out = bytearray(64)
    with pytest.raises(ValueError):
        call(out)
    assert out == bytes(64)


def test_what_is_not_a_buffer_is_a_type_error():
    with pytest.raises(TypeError):
        hasher.hash("text")


def test_a_refused_call_keeps_no_hold_on_its_buffers():
    data, out = bytearray(8192), bytearray(32)
    with pytest.raises(ValueError):
        hasher.subtree(data, 0, LEAF, out)
    data.append(0)  # BufferError while a view of it is out
    out.append(0)


def import_with_isa(name):
    environment = {**os.environ, "QREP_ISA": name, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", "from qrep._native import hasher; print(hasher.isa())"],
        env=environment, capture_output=True, text=True, check=False,
    )


@pytest.mark.parametrize("name", AVAILABLE)
def test_qrep_isa_forces_a_kernel(name):
    assert import_with_isa(name).stdout.strip() == name


@pytest.mark.parametrize("name", sorted(set(KERNELS) - set(AVAILABLE)))
def test_a_forced_kernel_that_is_absent_fails_loudly(name):
    before = hasher.isa()
    with pytest.raises(RuntimeError, match=name):
        hasher.select(name)
    assert hasher.isa() == before
    refused = import_with_isa(name)
    assert refused.returncode and f"RuntimeError: QREP_ISA: the BLAKE3 kernel '{name}' does not exist" in refused.stderr


def test_an_unknown_kernel_in_the_environment_fails_the_import():
    refused = import_with_isa("fastest")
    assert refused.returncode and "RuntimeError: QREP_ISA: no BLAKE3 kernel is called 'fastest'" in refused.stderr
