"""Copies at the target: resolved inside the frame, verified before anything is written, and no reference is believed."""

import errno
import os

import pytest
from target_rig import GRANULE, HAS_VALUE, HASHED, LEAF, Target, granule_value, mixed_content, random_bytes, sealed, table_entry

from qrep._native import hasher
from qrep._native.wire import LAST, FrameInvalid

LEAVES = GRANULE // LEAF
TAIL = 3 * LEAF + 512  # of the last granule
SIZE = 2 * GRANULE + TAIL
KINDS = ["socket", "stream", "pipes"]


@pytest.fixture
def make_target(memory_dir, backend, undo_after):
    """make_target(content, ...) -> Target that has agreed to copies; each on a device of its own."""

    def make(content, **options):
        device = memory_dir / f"device-{len(os.listdir(memory_dir))}"
        device.touch()
        target = Target(memory_dir, device, content, ring_backend=backend, **{"features": ("copies",)} | options)
        undo_after.callback(target.close)
        return target

    return make


def serve(target, content, **options):
    return target.serve(content, features=("copies",), **options)


def copied(content, granule, *pairs):
    """Make leaves equal: (leaf, count, copy of) in one granule."""
    start = granule * GRANULE
    for leaf, count, copy_of in pairs:
        content[start + leaf * LEAF : start + (leaf + count) * LEAF] = content[start + copy_of * LEAF : start + (copy_of + count) * LEAF]


@pytest.mark.parametrize("kind", KINDS)
def test_copies_become_their_leaves_between_data_and_zeroes(make_target, random_source, kind):
    old, content = mixed_content(60, SIZE), random_bytes(random_source, SIZE)
    copied(content, 0, (10, 4, 2), (14, 1, 0), (20, 1, 9), (21, 3, 0), (60, 4, 0))
    content[30 * LEAF : 40 * LEAF] = bytes(10 * LEAF)
    copied(content, 2, (2, 1, 0))
    target = make_target(old)
    session = serve(target, content, kind=kind)
    session.source.runs(0, [(0, 10, False), (10, 4, False, 2), (14, 1, False, 0), (15, 5, False), (20, 1, False, 9), (21, 3, False, 0),
                            (24, 6, False), (30, 10, True), (40, 20, False), (60, 4, False, 0)])
    session.source.full(1)
    session.source.runs(2, [(0, 2, False), (2, 1, False, 0), (3, 1, False)])  # the short leaf is data
    assert session.finish() == 0
    assert target.device == content
    for granule in range(3):
        assert target.value(granule) == granule_value(target.geometry, content, granule)
        assert target.run.fresh_states[granule] & (HASHED | HAS_VALUE) == HASHED | HAS_VALUE
    counters = target.run.counters()
    assert counters["copies"] == (4 + 1 + 1 + 3 + 4 + 1) * LEAF and counters["undo"] > 0


def test_every_leaf_of_a_granule_may_be_a_copy_of_its_first(make_target, random_source):
    old, content = mixed_content(61, SIZE), random_bytes(random_source, SIZE)
    for leaf in range(1, LEAVES):
        copied(content, 0, (leaf, 1, 0))
    content[GRANULE:] = old[GRANULE:]
    target = make_target(old)
    session = serve(target, content)
    session.source.runs(0, [(0, 1, False), *((leaf, 1, False, 0) for leaf in range(1, LEAVES))])
    assert session.finish() == 0
    assert target.device == content and target.value(0) == granule_value(target.geometry, content, 0)


def test_random_frames_of_copies_in_several_frames_of_a_granule(make_target, random_source):
    old, content = mixed_content(62, SIZE), bytearray(SIZE)
    blocks = [bytes(LEAF), *(random_source.randbytes(LEAF) for _ in range(6))]
    for leaf in range(SIZE // LEAF):
        content[leaf * LEAF : leaf * LEAF + LEAF] = random_source.choice(blocks)
    content[SIZE - 512 :] = random_source.randbytes(512)
    target = make_target(old)
    session = serve(target, content)
    for granule in range(3):
        leaves = target.geometry.granule_leaves(granule)
        bounds = [0, *sorted(random_source.sample(range(1, leaves), 3)), leaves] if leaves > 4 else [0, leaves]
        for first, end in zip(bounds, bounds[1:], strict=False):
            session.source.runs(granule, runs_with_copies(target.geometry, content, granule, first, end), last=end == leaves)
    assert session.finish() == 0
    assert target.device == content


def runs_with_copies(geometry, content, granule, first, end):
    """The runs of leaves [first, end), written independently of the source lane: whole leaves that were seen in this frame are copies."""
    runs, seen = [], {}
    for leaf in range(first, end):
        start = granule * GRANULE + leaf * LEAF
        data = bytes(content[start : min(start + LEAF, geometry.size)])
        zero = not any(data)
        copy_of = seen.get(data) if not zero and len(data) == LEAF else None
        if copy_of is None and not zero:
            seen[data] = leaf
        last = runs[-1] if runs else None
        if last and last[2] == zero and (last[3] + last[1] == copy_of if last[3] is not None and copy_of is not None else last[3] is copy_of):
            runs[-1] = (last[0], last[1] + 1, zero, last[3])
        else:
            runs.append((leaf, 1, zero, copy_of))
    return runs


def test_before_images_of_copies_are_logged_before_they_are_overwritten(make_target, random_source):
    old, content = random_bytes(random_source, SIZE), random_bytes(random_source, SIZE)
    copied(content, 0, (1, 1, 0), (4, 2, 0))
    content[6 * LEAF :] = old[6 * LEAF :]
    target = make_target(bytes(old))
    session = serve(target, content)
    session.source.runs(0, [(0, 1, False), (1, 1, False, 0), (2, 2, False), (4, 1, False, 0)], last=False)
    session.source.runs(0, [(5, 1, False)])
    assert session.finish() == 0
    assert target.device == content
    assert target.run.counters()["undo"] >= 6 * LEAF, "all six leaves are logged, copies too"


# ---- what is refused ----

def frame_of(session, granule, runs, *, data_leaves, copy_leaves=None, digest=None):
    """The bytes of a frame whose table is what the test says, sealed as a source would; the writer of the tests refuses to make it."""
    table = b"".join(table_entry(*run) for run in runs)
    copies = sum(run[1] for run in runs if len(run) > 3) if copy_leaves is None else copy_leaves
    return sealed(kind=2, flags=LAST, run_count=len(runs), granule=granule, data_size=data_leaves * LEAF, first_leaf=copies, digest=digest or bytes(32)) + table


LIES = {
    "forward": [(0, 1, False, 1), (1, 1, False)],
    "to itself": [(0, 1, False), (1, 1, False, 1)],
    "into itself": [(0, 2, False), (2, 2, False, 1)],
    "to a zero run": [(0, 1, True), (1, 1, False), (2, 1, False, 0)],
    "to a copy": [(0, 1, False), (1, 1, False, 0), (2, 1, False, 1)],
    "through a copy": [(0, 1, False), (1, 1, False, 0), (2, 1, False), (3, 3, False, 0)],
    "between runs": [(0, 1, False), (5, 1, False), (6, 1, False, 3)],
    "before the frame": [(5, 1, False), (6, 1, False, 0)],
    "outside the granule": [(0, 1, False), (1, 1, False, LEAVES)],
    "far outside": [(0, 1, False), (1, 1, False, 0x3FFF)],
    "over the end of its run": [(0, 2, False), (4, 2, False, 1)],
    "without leaves": [(0, 1, False), (1, 0, False, 0)],
    "over the end of the granule": [(0, 4, False), (LEAVES - 1, 2, False, 0)],
    "longer than any granule": [(0, 4, False), (4, 0xFFFF, False, 0)],
    "overlapping": [(0, 4, False), (3, 1, False, 0)],
    "not joined": [(0, 4, False), (4, 1, False, 0), (5, 1, False, 1)],
}


@pytest.mark.parametrize("runs", LIES.values(), ids=LIES)
@pytest.mark.parametrize("kind", ["socket", "pipes"])
def test_a_copy_of_what_does_not_travel_before_it_in_its_frame_is_refused(make_target, kind, runs):
    old = mixed_content(63, SIZE)
    target = make_target(old)
    session = serve(target, bytearray(SIZE), kind=kind)
    carried = sum(run[1] for run in runs if len(run) == 3 and not run[2])
    session.send(frame_of(session, 0, runs, data_leaves=carried) + bytes(carried * LEAF))
    refused(target, session, old)


def test_the_short_last_leaf_is_never_a_copy_and_nothing_is_one_of_it(make_target):
    old = mixed_content(64, SIZE)
    for runs in ([(0, 3, False), (3, 1, False, 0)], [(0, 2, False), (2, 2, False, 0)]):
        target = make_target(old)
        session = serve(target, bytearray(SIZE))
        data = sum(run[1] for run in runs if len(run) == 3)
        session.send(frame_of(session, 2, runs, data_leaves=data) + bytes(data * LEAF))
        refused(target, session, old)


@pytest.mark.parametrize("copy_leaves", [0, 2, LEAVES - 1, LEAVES, 1 << 20, (1 << 32) - 1])
def test_a_header_that_counts_its_copies_wrong_is_refused(make_target, copy_leaves):
    old = mixed_content(65, SIZE)
    target = make_target(old)
    session = serve(target, bytearray(SIZE))
    session.send(frame_of(session, 0, [(0, 1, False), (1, 1, False, 0)], data_leaves=1, copy_leaves=copy_leaves) + bytes(LEAF))
    refused(target, session, old)


def test_a_frame_larger_than_agreed_on_once_its_copies_are_there_is_refused(make_target):
    old = mixed_content(66, SIZE)
    target = make_target(old, frame_limit=8 * LEAF)
    session = serve(target, bytearray(SIZE))
    session.send(frame_of(session, 0, [(0, 8, False), (8, 1, False, 0)], data_leaves=8) + bytes(8 * LEAF))
    refused(target, session, old)


def test_copies_that_were_not_agreed_on_are_refused(make_target, random_source):
    old, content = mixed_content(67, SIZE), random_bytes(random_source, SIZE)
    copied(content, 0, (1, 1, 0))
    target = make_target(old, features=())
    session = serve(target, content)
    session.source.runs(0, [(0, 1, False), (1, 1, False, 0)], last=False)
    refused(target, session, old)


def refused(target, session, old):
    session.hang_up()
    assert session.result() != 0
    assert target.run.failure()[:2] == ("frame", errno.EPROTO)
    assert target.device == old and not any(target.run.marked)


def test_a_reference_to_another_leaf_than_the_source_meant_fails_the_digest_before_anything_is_written(make_target, random_source):
    """Sound indexes, wrong content: the digest covers the values of the copies at their own places."""
    old, content = mixed_content(68, SIZE), random_bytes(random_source, SIZE)
    copied(content, 0, (2, 1, 0))
    target = make_target(old)
    session = serve(target, content)
    _, right = session.source.runs_parts(0, [(0, 2, False), (2, 1, False, 0)])
    # What a source would announce that hashed its table as it is, and the values of what it meant.
    wrong = [(0, 2, False), (2, 1, False, 1)]
    start, meant = session.source.node(0, 2, 1)
    values = b"".join(hasher.subtree(session.source.node(0, leaf, 1)[1], leaf * LEAF, LEAF) for leaf in range(2)) + hasher.subtree(meant, start, LEAF)
    digest = hasher.hash(b"".join(table_entry(*run) for run in wrong) + values)
    assert digest != right
    session.send(session.source.writer.runs(0, wrong, 2 * LEAF, digest, LAST) + bytes(content[: 2 * LEAF]))
    session.hang_up()
    assert session.result() != 0
    assert target.run.failure()[0] == "digest"
    assert target.device == old and not any(target.run.marked)


def test_the_writer_of_the_tests_refuses_the_same_lies(make_target):
    target = make_target(mixed_content(69, SIZE))
    session = serve(target, bytearray(SIZE))
    for name, runs in LIES.items():
        if name != "outside the granule":
            with pytest.raises(FrameInvalid):
                session.source.writer.runs(0, runs, sum(run[1] for run in runs if len(run) == 3 and not run[2]) * LEAF, bytes(32))
    assert session.finish() == 0
