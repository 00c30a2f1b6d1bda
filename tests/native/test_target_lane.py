"""Target lanes: what arrives right is on the device and in the map; what arrives wrong leaves no trace."""

import errno
import os

import pytest
from machine import BadBlocks
from target_rig import (
    ATTEMPT, BASE_ID, GRANULE, HAS_PAGE, HAS_VALUE, HASHED, IS_ZERO, KIB, LEAF, MIB, SESSION, SLOT, Target, granule_value,
    mixed_content, random_bytes,
)

from qrep._native import hasher, wire

SIZE = 4 * GRANULE
KINDS = ["socket", "stream", "pipes"]


@pytest.fixture(params=[False, True], ids=["no-undo", "undo"])
def undo(request):
    return request.param


@pytest.fixture
def make_target(memory_dir, backend, undo_after):
    """make_target(content=None, size=None, ...) -> Target on an image file in memory."""

    def make(content=None, size=None, **options):
        size = size or len(content)
        device = memory_dir / "device.img"
        with open(device, "ab") as file:
            file.truncate(size)
        target = Target(memory_dir, device, content, size, ring_backend=backend, **options)
        undo_after.callback(target.close)
        return target

    return make


def send_all_granules(source):
    for granule in range(source.geometry.granules):
        source.full(granule)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", [0, 512, LEAF, 3 * LEAF + 1024], ids=["whole", "sector", "leaf", "leaves-and-sectors"])
def test_full_frames_become_the_device_and_the_map(make_target, random_source, kind, tail, undo):
    content = random_bytes(random_source, SIZE + tail)
    target = make_target(mixed_content(1, SIZE + tail), undo=undo)
    session = target.serve(content, kind=kind)
    send_all_granules(session.source)
    assert session.finish() == 0
    assert target.device == content
    for granule in range(target.geometry.granules):
        assert target.run.fresh_states[granule] == HASHED | HAS_VALUE | HAS_PAGE
        assert target.value(granule) == granule_value(target.geometry, content, granule)
    assert bytes(target.run.marked) == b"\2" * target.geometry.granules
    counters = target.run.counters()
    assert counters["written"] == counters["hashed"] == len(content)
    assert counters["granules_done"] == counters["frames"] == target.geometry.granules
    assert (counters["undo"] > 0) == undo


@pytest.mark.parametrize("kind", KINDS)
def test_a_granule_may_come_in_nodes_of_several_sizes(make_target, random_source, kind, undo):
    content = random_bytes(random_source, SIZE)
    target = make_target(mixed_content(2, SIZE), undo=undo)
    session = target.serve(content, kind=kind)
    for granule in range(4):  # 64 leaves: 32 + 16 + 8 + 8
        for first, count in ((0, 32), (32, 16), (48, 8)):
            session.source.full(granule, first, count, last=False)
        session.source.full(granule, 56, 8)
    assert session.finish() == 0
    assert target.device == content
    assert target.value(3) == granule_value(target.geometry, content, 3)


def with_changes(content, random_source, chance=0.3):
    """(new content, {granule: runs}): random leaves replaced by data or zeroes, as runs of a RUNS frame."""
    fresh, runs = bytearray(content), {}
    for start in range(0, len(content), LEAF):
        end = min(start + LEAF, len(content))
        if random_source.random() >= chance:
            continue
        zero = random_source.random() < 0.4
        fresh[start:end] = bytes(end - start) if zero else random_source.randbytes(end - start)
        granule, leaf = start // GRANULE, start % GRANULE // LEAF
        last = runs.setdefault(granule, [])
        if last and last[-1][0] + last[-1][1] == leaf and last[-1][2] == zero:
            last[-1] = (last[-1][0], last[-1][1] + 1, zero)
        else:
            last.append((leaf, 1, zero))
    return fresh, runs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", [0, 1536], ids=["whole", "short-tail"])
@pytest.mark.parametrize("punch", [True, False], ids=["punch", "zeroes"])
def test_runs_of_data_and_zeroes_become_the_device(make_target, random_source, kind, tail, punch, undo):
    old = mixed_content(3, 3 * GRANULE + tail)
    content, runs = with_changes(old, random_source)
    target = make_target(old, undo=undo, punch=punch)
    session = target.serve(content, kind=kind)
    for granule in sorted(runs):
        session.source.runs(granule, runs[granule])
    assert session.finish() == 0
    assert target.device == content
    assert [mark == 2 for mark in target.run.marked] == [granule in runs for granule in range(target.geometry.granules)]


def committed_map(target, content):
    """States and values of `content`, with leaf pages in slot 0 of the target's leaves file."""
    geometry, states, values = target.geometry, bytearray(), bytearray()
    for granule in range(geometry.granules):
        start, size = granule * geometry.granule_size, geometry.granule_bytes(granule)
        page = bytearray(32 * geometry.granule_leaves(granule))
        values += hasher.subtree(bytes(content[start:start + size]), start, LEAF, page)
        states.append(HASHED | HAS_VALUE | HAS_PAGE)
        os.pwrite(target.leaves_fd, page.ljust(geometry.leaf_page_size, b"\0"), geometry.leaf_page_offset(granule, 0))
    return bytes(states), bytes(values)


def test_a_changed_granule_is_computed_from_its_committed_page(make_target, random_source):
    old = mixed_content(4, SIZE)
    content, runs = with_changes(old, random_source)
    states, values = committed_map(make_target(old), old)
    target = make_target(old, base_states=states, base_values=values)
    session = target.serve(content)
    for granule in sorted(runs):
        session.source.runs(granule, runs[granule])
    assert session.finish() == 0
    for granule in range(4):
        assert target.run.fresh_states[granule] == HASHED | HAS_VALUE | HAS_PAGE | SLOT  # not the slot of the committed map
        assert target.value(granule) == granule_value(target.geometry, content, granule)
        page = os.pread(target.leaves_fd, 64 * 32, target.geometry.leaf_page_offset(granule, 1))
        assert hasher.merge(page) == target.value(granule)


def test_an_unknown_rest_of_a_granule_keeps_the_announced_value_without_a_page(make_target, random_source):
    old = mixed_content(5, SIZE)
    content, runs = with_changes(old, random_source)
    target = make_target(old)
    session = target.serve(content)
    session.source.runs(1, runs[1])
    assert session.finish() == 0
    assert target.run.fresh_states[1] == HASHED | HAS_VALUE
    assert target.value(1) == granule_value(target.geometry, content, 1)


def test_a_zero_granule_with_some_leaves_replaced_is_computed(make_target, random_source):
    content = bytearray(SIZE)
    content[GRANULE:GRANULE + LEAF] = random_source.randbytes(LEAF)
    target = make_target(bytes(SIZE), base_states=bytes([IS_ZERO] * 4))
    session = target.serve(content)
    session.source.runs(1, [(0, 1, False)])
    assert session.finish() == 0
    assert target.run.fresh_states[1] == HASHED | HAS_VALUE | HAS_PAGE
    assert target.device == content


# ---- zeroes ----

def test_zero_spans_free_the_blocks_and_leave_holes_alone(make_target, random_source, undo):
    target = make_target(random_bytes(random_source, 8 * GRANULE), 16 * GRANULE, undo=undo, frame_limit=GRANULE)
    session = target.serve(bytearray(16 * GRANULE))
    session.source.zero(0, 12)
    session.source.zero(12, 4)
    assert session.finish() == 0
    assert target.device == bytes(16 * GRANULE)
    assert bytes(target.run.fresh_states) == bytes([IS_ZERO] * 16) and bytes(target.run.marked) == b"\2" * 16
    assert os.stat(target.device_path).st_blocks == 0
    # The second half was a hole: seen as such, not read (a granule more or less where the hole begins).
    assert target.run.counters()["read"] <= 9 * GRANULE
    assert target.run.counters()["written"] == 0


def test_zero_runs_over_zeroes_write_and_log_nothing(make_target):
    target = make_target(None, SIZE)
    session = target.serve(bytearray(SIZE))
    session.source.runs(0, [(0, 64, True)])
    session.source.zero(1, 3)
    assert session.finish() == 0
    assert os.stat(target.device_path).st_blocks == 0
    assert target.run.counters()["undo"] == target.run.counters()["written"] == 0
    assert target.run.undo_sequence == 0


@pytest.mark.parametrize("punch", [True, False], ids=["punch", "zeroes"])
@pytest.mark.root
def test_zeroes_reach_a_block_device(loop_device, memory_dir, backend, undo_after, punch, undo):
    old = mixed_content(7, 16 * MIB)
    disk = loop_device(16 * MIB)
    target = Target(memory_dir, disk, old, granule_size=MIB, is_file=False, punch=punch, ring_backend=backend, undo=undo)
    undo_after.callback(target.close)
    content = bytearray(old)
    content[MIB:9 * MIB] = bytes(8 * MIB)  # a span in two pieces of a frame's room
    content[10 * MIB:10 * MIB + 8 * LEAF] = bytes(8 * LEAF)
    session = target.serve(content)
    session.source.zero(1, 8)
    session.source.runs(10, [(0, 8, True)])
    assert session.finish() == 0
    os.fsync(target.device_fd)
    assert target.device == content
    assert (target.run.counters()["written"] > 0) == (not punch)


@pytest.mark.root
def test_a_device_with_4k_sectors_takes_every_kind_of_frame(loop_device, memory_dir, backend, undo_after, random_source):
    old = mixed_content(8, 3 * GRANULE + 5 * LEAF)
    disk = loop_device(len(old), 4096)
    target = Target(memory_dir, disk, old, is_file=False, ring_backend=backend, sector_size=4096)
    undo_after.callback(target.close)
    content, runs = with_changes(old, random_source)
    content[:GRANULE] = random_source.randbytes(GRANULE)
    session = target.serve(content)
    session.source.full(0)
    for granule in range(1, 4):
        if granule in runs:
            session.source.runs(granule, runs[granule])
    assert session.finish() == 0
    assert target.device == content


# ---- refusals ----

def refused(target, session, old, kind):
    """The lane ended with a failure of that kind, nothing of the frame is on the device, and nothing of it in the map."""
    assert session.result() != 0
    failure = target.run.failure()
    assert failure is not None and failure[0] == kind, failure
    assert target.device == old
    assert bytes(target.run.fresh_states) == target.base_states
    assert not any(target.run.marked)
    return failure


@pytest.fixture
def refusal(make_target):
    """(target, session, old): a target that holds `old`, and a session whose source holds other content."""
    old = mixed_content(9, SIZE)
    content = mixed_content(10, SIZE)
    target = make_target(old)
    return target, target.serve(content), old


def test_full_data_that_is_not_what_was_announced_is_not_written(refusal):
    target, session, old = refusal
    session.source.full(1, digest=bytes(32))
    session.hang_up()
    assert refused(target, session, old, "digest")[3] == 1


def test_run_data_that_is_not_what_was_announced_is_not_written(refusal):
    target, session, old = refusal
    session.source.content[:LEAF] = b"x" * LEAF
    session.source.runs(0, [(0, 1, False)], digest=bytes(32))
    session.hang_up()
    refused(target, session, old, "digest")


@pytest.mark.parametrize("what", ["full", "runs", "value"])
def test_a_digest_counts_to_its_last_byte(refusal, what):
    target, session, old = refusal
    source = session.source

    def spoilt(digest):
        return digest[:-1] + bytes([digest[-1] ^ 1])

    if what == "full":
        start, data = source.node(1, 0, 64)
        source.full(1, digest=spoilt(hasher.subtree(data, start, LEAF)))
    elif what == "runs":
        source.content[:LEAF] = b"x" * LEAF
        source.runs(0, [(0, 1, False)], digest=spoilt(source.runs_parts(0, [(0, 1, False)])[1]))
    else:
        source.full(2, value=spoilt(source.value(2)))
    session.hang_up()
    refused(target, session, old, "value" if what == "value" else "digest")


def test_a_block_sent_for_another_place_is_not_written(refusal):
    target, session, old = refusal
    start, data = session.source.node(0, 0, 64)
    session.send(session.source.writer.full(1, 0, len(data), hasher.subtree(data, start, LEAF), 1, None) + data)
    session.hang_up()
    refused(target, session, old, "digest")


def test_a_granule_that_is_not_what_the_source_says_is_refused(refusal):
    target, session, old = refusal
    session.source.full(2, value=bytes(32))
    session.hang_up()
    assert refused(target, session, old, "value")[1] == errno.EUCLEAN


@pytest.mark.parametrize("identity, number", [
    ({"key": bytes(32)}, errno.EBADMSG),
    ({"session": SESSION - 1}, errno.ESTALE),
    ({"attempt": ATTEMPT + 1}, errno.ESTALE),
], ids=["key", "session", "attempt"])
def test_frames_of_another_session_are_refused(make_target, identity, number):
    old = mixed_content(11, SIZE)
    target = make_target(old)
    session = target.serve(mixed_content(12, SIZE), **identity)
    session.source.full(0)
    session.hang_up()
    assert refused(target, session, old, "frame")[1] == number


def test_a_frame_that_comes_twice_is_refused(refusal):
    target, session, old = refusal
    sent = []
    session.source.send = sent.append
    session.source.full(0)
    session.source.full(1)
    session.send(sent[1])
    session.hang_up()
    assert refused(target, session, old, "frame")[1] == errno.ESTALE


@pytest.mark.parametrize("place", range(0, 160, 8))
def test_a_damaged_header_is_refused(refusal, place):
    target, session, old = refusal
    sent = []
    session.source.send = sent.append
    session.source.full(0)
    damaged = bytearray(sent[0])
    damaged[place] ^= 1
    session.send(damaged)
    session.hang_up()
    assert refused(target, session, old, "frame")[1] == errno.EBADMSG


@pytest.mark.parametrize("table", [
    [(0, 2, 0), (1, 1, 0)], [(5, 1, 0), (2, 2, 0)], [(0, 1, 0), (2, 0, 0)], [(62, 3, 0)], [(0, 0xFFFFFFFF, 0)], [(0, 2, 0)], [(0, 4, 0)],
], ids=["overlap", "descending", "empty", "past-the-granule", "huge", "fewer-than-data", "more-than-data"])
def test_a_run_table_that_lies_is_refused(refusal, table):
    target, session, old = refusal
    sent = []
    session.source.send = sent.append
    right = [(leaf * 2, 1, False) for leaf in range(len(table))] if len(table) > 1 else [(0, 3, False)]
    right[0] = (0, 4 - len(right) if len(right) == 1 else 1, False)
    session.source.content[:4 * LEAF] = os.urandom(4 * LEAF)
    session.source.runs(0, right)
    entries = b"".join(first.to_bytes(4, "little") + count.to_bytes(4, "little") for first, count, _ in table)
    session.send(sent[0][:160] + entries + sent[0][160 + len(entries):])
    session.source.send = session.send
    session.source.full(1)
    session.hang_up()
    assert refused(target, session, old, "frame")[1] == errno.EPROTO


def test_a_leaf_that_comes_twice_in_one_pass_is_refused_after_the_first(refusal):
    target, session, _ = refusal
    session.source.full(0, 0, 32, last=False)
    session.source.full(0, 16, 16, last=False)
    session.hang_up()
    assert session.result() == errno.EPROTO
    assert target.run.failure()[0] == "frame"
    assert target.device[16 * LEAF:] != session.source.content[16 * LEAF:]


def test_a_granule_left_open_for_another_is_refused(refusal):
    target, session, _ = refusal
    session.source.full(0, 0, 32, last=False)
    session.source.full(1)
    session.hang_up()
    assert session.result() == errno.EPROTO
    assert target.run.marked[0] < 2 and target.run.marked[1] == 0


def test_an_end_inside_a_granule_is_refused(refusal):
    target, session, _ = refusal
    session.source.full(0, 0, 32, last=False)
    session.source.end()
    assert session.result() == errno.EPROTO
    assert target.run.failure() == ("frame", errno.EPROTO, 0, 0)


def test_a_frame_larger_than_was_agreed_is_refused(make_target):
    old = mixed_content(13, SIZE)
    target = make_target(old, frame_limit=64 * KIB)
    session = target.serve(mixed_content(14, SIZE))
    session.source.full(0)
    session.hang_up()
    assert refused(target, session, old, "frame")[1] == errno.EPROTO


# ---- ends and stops ----

@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_that_breaks_keeps_what_had_arrived(make_target, kind, undo):
    old, content = mixed_content(15, SIZE), mixed_content(16, SIZE)
    target = make_target(old, undo=undo)
    session = target.serve(content, kind=kind)
    session.source.full(0)
    session.source.full(1)
    sent = []
    session.source.send = sent.append
    session.source.full(2)
    session.send(sent[0][:1000])
    session.hang_up()
    assert session.result() != 0
    assert target.run.failure()[0] == "connection"
    assert target.device == content[:2 * GRANULE] + old[2 * GRANULE:]
    assert bytes(target.run.marked) == b"\2\2\0\0"


@pytest.mark.parametrize("kind", ["socket", "pipes"])
def test_a_stop_ends_a_silent_lane(make_target, kind):
    target = make_target(mixed_content(17, SIZE))
    session = target.serve(bytearray(SIZE), kind=kind)
    target.run.stop()
    assert session.result() == errno.ECANCELED
    assert target.run.failure() is None


def test_a_granule_may_pass_twice_and_the_later_content_stays(make_target, undo):
    first, second = mixed_content(18, SIZE), mixed_content(19, SIZE)
    target = make_target(mixed_content(20, SIZE), undo=undo)
    session = target.serve(first)
    for _ in range(5):
        session.source.content = first
        session.source.full(0)
        session.source.full(1)
        session.source.content = second
        session.source.full(1)
        session.source.full(0)
    assert session.finish() == 0
    assert target.device[:2 * GRANULE] == second[:2 * GRANULE]
    assert target.value(1) == granule_value(target.geometry, second, 1)


def test_two_lanes_share_a_run(make_target, undo):
    content = mixed_content(21, 16 * GRANULE)
    target = make_target(mixed_content(22, 16 * GRANULE), undo=undo)
    sessions = [target.serve(content, index=index) for index in range(2)]
    for granule in range(16):
        sessions[granule % 2].source.full(granule)
    assert [session.finish() for session in sessions] == [0, 0]
    assert target.device == content
    assert target.run.failure() is None


def test_a_resumed_session_goes_on_with_the_arrays_of_the_one_before(make_target):
    old, content = mixed_content(23, SIZE), mixed_content(24, SIZE)
    target = make_target(old)
    session = target.serve(content)
    session.source.full(0)
    session.hang_up()
    assert session.result() != 0
    before = target.run
    resumed = make_target(None, SIZE, fresh_states=before.fresh_states, fresh_values=before.fresh_values, marked=before.marked,
                          undo_next=before.undo_next, undo_sequence=before.undo_sequence, base_id=BASE_ID)
    session = resumed.serve(content)
    for granule in range(1, 4):
        session.source.full(granule)
    assert session.finish() == 0
    assert bytes(resumed.run.marked) == b"\2" * 4
    assert resumed.value(0) == granule_value(resumed.geometry, content, 0)
    assert resumed.device == content


def test_a_granule_of_which_leaves_are_missing_is_applied_in_part_and_nothing_is_claimed_of_it(make_target, random_source, undo):
    old = mixed_content(28, SIZE)
    content = random_bytes(random_source, SIZE)
    target = make_target(old, undo=undo)
    session = target.serve(content)
    data, digest = session.source.runs_parts(1, [(0, 2, False), (5, 1, False)])
    session.source.send(session.source.writer.runs(1, [(0, 2, False), (5, 1, False)], len(data), digest, wire.LAST | wire.PARTS) + data)
    session.source.full(2)
    assert session.finish() == 0
    expected = bytearray(old)
    for leaf in (0, 1, 5):
        expected[GRANULE + leaf * LEAF : GRANULE + (leaf + 1) * LEAF] = content[GRANULE + leaf * LEAF : GRANULE + (leaf + 1) * LEAF]
    expected[2 * GRANULE : 3 * GRANULE] = content[2 * GRANULE : 3 * GRANULE]
    assert target.device == expected
    assert bytes(target.run.marked) == bytes([0, 1, 2, 0]) and target.run.fresh_states[1] == target.base_states[1]


@pytest.mark.root
@pytest.mark.parametrize("zero", [False, True], ids=["data", "zeroes"])
def test_blocks_that_take_no_write_are_named_by_the_sector_and_written_round(memory_dir, loop_device, backend, undo_after, zero):
    blocks = BadBlocks(memory_dir, SIZE, undo_after)
    disk = loop_device(backing=blocks.path)
    old = bytes([7]) * SIZE
    target = Target(memory_dir, disk, old, is_file=False, ring_backend=backend)
    undo_after.callback(target.close)
    os.fsync(target.device_fd)
    bad = (GRANULE + 3 * LEAF + 1024, 512)
    blocks.unwritable(bad)
    content = bytearray(SIZE) if zero else mixed_content(29, SIZE)
    session = target.serve(content)
    for granule in range(4):
        session.source.zero(granule) if zero else session.source.full(granule)
    assert session.finish() == 0
    assert target.run.bad_extents() == [(*bad, errno.EIO)] and target.run.failure() is None
    assert bytes(target.run.marked) == bytes([2, 1, 2, 2])
    content[bad[0] : sum(bad)] = old[bad[0] : sum(bad)]
    assert target.device == content


@pytest.mark.root
def test_a_device_that_cannot_be_written_says_which_granule(memory_dir, loop_device, backend, undo_after):
    disk = loop_device(SIZE)
    target = Target(memory_dir, disk, mixed_content(25, SIZE), is_file=False, ring_backend=backend, undo=False)
    undo_after.callback(target.close)
    os.close(target.device_fd)
    target.open_files.remove(target.device_fd)
    target.device_fd = target.open(disk, os.O_RDONLY | os.O_DIRECT)
    session = target.serve(mixed_content(26, SIZE))
    session.source.full(3)
    session.hang_up()
    assert session.result() == errno.EBADF
    assert target.run.failure() == ("write", errno.EBADF, 0, 3)
