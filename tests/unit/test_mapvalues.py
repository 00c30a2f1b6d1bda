"""Values that nobody wrote take no memory; a digest made of what changed is the digest of the whole."""

import random
from pathlib import Path

import blake3
import pytest

from qrep import mapvalues
from qrep._native import disk, hasher
from qrep._native.wire import Geometry
from qrep.digestmap import DigestMap
from qrep.mapdigest import BLOCK, Blocks, Row, changed_blocks
from qrep.source.work import Base

HASHED, ZERO = disk.STATE_HASHED | disk.STATE_VALUE, disk.STATE_ZERO


def resident():
    """KiB of this process that are in memory."""
    return int(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")))


def sparse(granules, known, seed=1):
    """States and values of which only `known` granules have one."""
    drawn = random.Random(seed)
    states, values = bytearray([ZERO]) * granules, mapvalues.empty(granules)
    for granule in known:
        states[granule] = HASHED
        values[granule * 32 : granule * 32 + 32] = drawn.randbytes(32)
    return states, values


@pytest.mark.parametrize("granules", [1, 127, 128, 129, 1000])
def test_spans_are_the_pages_with_a_value_and_no_others(granules):
    drawn = random.Random(granules)
    for share in (0, 0.003, 0.05, 1):
        states = bytearray(HASHED if drawn.random() < share else drawn.choice((0, ZERO, ZERO | disk.STATE_PAGE)) for _ in range(granules))
        spans = list(mapvalues.spans(states))
        pages = {granule // 128 for granule, state in enumerate(states) if state & disk.STATE_VALUE}
        assert {granule // 128 for first, end in spans for granule in range(first, end)} == pages
        assert all(first % 128 == 0 and first < end <= granules and (end % 128 == 0 or end == granules) for first, end in spans)
        assert all(one[1] < other[0] for one, other in zip(spans, spans[1:], strict=False)), "ascending, and joined where they touch"


def test_a_copy_holds_the_same_and_takes_memory_only_where_there_are_values():
    granules = 1 << 19  # of 4 TiB in granules of 8 MiB: 16 MiB of values
    before = resident()
    states, values = sparse(granules, range(0, granules, granules // 64))
    copies = [mapvalues.copied(states, values) for _ in range(4)]
    # 64 values lie in 64 pages of 4 KiB, five times: 1.25 MiB; the states are half a MiB
    assert resident() - before < 8 << 10
    assert all(copy[:] == values[:] for copy in copies)
    copies[0][0:32] = bytes(32)
    assert values[0:32] != bytes(32) == copies[0][0:32]


@pytest.mark.parametrize("granules", [1, 5, 31, 33, 1900, 2 * BLOCK, 3 * BLOCK + 77, 5 * BLOCK + 1])
def test_a_row_that_follows_has_the_digest_of_the_whole(granules):
    drawn = random.Random(granules)
    states, values = sparse(granules, drawn.sample(range(granules), granules // 3))
    row = Row(states, values)
    for _ in range(5):
        marked, before = bytearray(granules), bytes(states)
        for granule in drawn.sample(range(granules), min(3, granules)):
            states[granule] = HASHED | drawn.choice((0, disk.STATE_SLOT))  # of one whose state stays the same only the mark tells
            values[granule * 32 : granule * 32 + 32] = drawn.randbytes(32)
            marked[granule] = 2
        row = row.following(states, values, changed_blocks(before, states, marked))
        body = bytes(states) + bytes(-granules % 32) + values[:]
        assert row.digest == disk.map_digest(states, values) == blake3.blake3(body).digest()


def test_blocks_that_follow_give_the_root_of_the_device():
    size, leaf, granule = 9000 * 8192 + 512, 4096, 8192  # more than four blocks, the last of them short
    geometry = Geometry(size, leaf, granule)
    data = bytearray(random.Random(3).randbytes(1 << 20) * 71)[:size]

    def value(index):
        return hasher.subtree(data[index * granule : (index + 1) * granule], index * granule, leaf)

    values = mapvalues.empty(geometry.granules)
    for index in range(geometry.granules):
        values[index * 32 : index * 32 + 32] = value(index)
    blocks = Blocks(geometry, values)
    assert blocks.root(values) == blake3.blake3(data).digest()
    for index in (0, BLOCK, geometry.granules - 1):
        data[index * granule] ^= 1
        values[index * 32 : index * 32 + 32] = value(index)
    blocks = blocks.following(values, [0, 1, (geometry.granules - 1) // BLOCK])
    assert blocks.root(values) == blake3.blake3(data).digest()


@pytest.mark.parametrize("granules", [1, 128, 300, 1000])
def test_granules_made_unknown_leave_no_values_behind(granules, tmp_path):
    """A rollback and a checkpoint do that to granules that have values; the map's file has no room for values that nobody has."""
    drawn = random.Random(granules)
    geometry = Geometry(granules * 8192, 4096, 8192)
    states, values = sparse(granules, drawn.sample(range(granules), granules // 2 + 1))
    before = values[:]
    unknown = [*range(granules // 3, granules), *drawn.sample(range(granules), granules // 3)]
    for granule in unknown:
        states[granule] = disk.STATE_UNKNOWN
    settled = mapvalues.settled(states, values)
    assert values[:] == before
    assert all(settled[g * 32 : g * 32 + 32] == (values[g * 32 : g * 32 + 32] if states[g] == HASHED else bytes(32)) for g in range(granules))
    assert not mapvalues.clear_strays(states, settled) and settled[:] == mapvalues.copied(states, settled)[:]
    opened = DigestMap(tmp_path, geometry, b"v" * 16)
    opened.write_pending(b"1" * 16, disk.ZERO_ID, 1, states, settled)
    opened.fold(b"1" * 16)
    opened.load()
    assert opened.reason == "" and opened.tag == b"1" * 16
    opened.close()


def test_a_resumed_attempt_forgets_the_values_of_what_is_not_known():
    states, values = sparse(200, range(200))
    base = Base(states, values).overlaid([], "incomplete")
    assert base.states == bytes(200) and base.values[:] == bytes(200 * 32) and values[:32] != bytes(32)
