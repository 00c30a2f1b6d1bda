"""A source that lies, stops or dawdles: nothing is written before it was verified, the lane returns, and the map stays true."""

import errno
import os

import pytest
from target_rig import (
    HAS_VALUE, HASHED, IS_ZERO, LEAF, SESSION, Target, granule_value, mixed_content, sealed,
)

from qrep._native import wire
from qrep._native.wire import HEADER_SIZE

SMALL = 4 * LEAF  # a granule
SIZE = 5 * SMALL + LEAF + 512
KINDS = ["socket", "stream", "pipes"]


@pytest.fixture
def make_target(memory_dir, backend, undo_after):
    """make_target(content, ...) -> Target of small granules; each on a device of its own."""

    def make(content, **options):
        device = memory_dir / f"device-{len(os.listdir(memory_dir))}"
        device.touch()
        target = Target(memory_dir, device, content, ring_backend=backend, **{"granule_size": SMALL} | options)
        undo_after.callback(target.close)
        return target

    return make


def conversation(session):
    """The bytes of a short conversation with every kind of frame, and [(end of the frame, first granule, granules)]."""
    sent = []
    session.source.send = sent.append
    source = session.source
    source.full(0)
    source.runs(1, [(0, 1, False), (2, 1, False)])
    source.zero(2, 2)
    source.full(4, 0, 2, last=False)
    source.full(4, 2, 2)
    source.full(5)
    source.end()
    source.send = session.send
    return sent


# ---- cut anywhere ----

def cut_places(sent, random_source):
    """Every byte of the headers' and tables' edges, and a sample of what lies between."""
    places, start = set(), 0
    for frame in sent:
        for edge in (start, start + HEADER_SIZE, start + HEADER_SIZE + 8, start + HEADER_SIZE + 16, start + len(frame)):
            places |= {edge - 1, edge, edge + 1}
        places.add(start + random_source.randrange(len(frame)))
        start += len(frame)
    return sorted(place for place in places if 0 <= place < start)


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_cut_at_any_byte_applies_whole_frames_and_nothing_else(make_target, random_source, kind):
    old, content = mixed_content(30, SIZE), bytearray(random_source.randbytes(SIZE))
    content[2 * SMALL:4 * SMALL] = bytes(2 * SMALL)
    content[SMALL + LEAF:SMALL + 2 * LEAF] = old[SMALL + LEAF:SMALL + 2 * LEAF]
    content[SMALL + 3 * LEAF:2 * SMALL] = old[SMALL + 3 * LEAF:2 * SMALL]
    ranges = [[(0, SMALL)], [(SMALL, LEAF), (SMALL + 2 * LEAF, LEAF)], [(2 * SMALL, 2 * SMALL)], [(4 * SMALL, 2 * LEAF)],
              [(4 * SMALL + 2 * LEAF, 2 * LEAF)], [(5 * SMALL, LEAF + 512)]]
    target = make_target(old)
    session = target.serve(content, kind=kind)
    sent = conversation(session)
    session.hang_up()
    session.result()
    for cut in cut_places(sent, random_source):
        target = make_target(old)
        session = target.serve(content, kind=kind)
        session.send(b"".join(sent)[:cut])
        session.hang_up()
        assert session.result() != 0
        expected, end = bytearray(old), 0
        for frame, pieces in zip(sent, ranges, strict=False):
            end += len(frame)
            for start, size in pieces if end <= cut else []:
                expected[start:start + size] = content[start:start + size]
        assert target.device == expected, f"cut at {cut}"
        assert target.run.failure()[0] == "connection"
        target.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_in_pieces_of_one_byte_is_the_same_conversation(make_target, random_source, kind):
    old, content = mixed_content(31, SIZE), bytearray(random_source.randbytes(SIZE))
    content[2 * SMALL:4 * SMALL] = bytes(2 * SMALL)
    content[SMALL + LEAF:SMALL + 2 * LEAF] = old[SMALL + LEAF:SMALL + 2 * LEAF]
    content[SMALL + 3 * LEAF:2 * SMALL] = old[SMALL + 3 * LEAF:2 * SMALL]
    target = make_target(old)
    session = target.serve(content, kind=kind)
    for frame in conversation(session):
        for place in range(len(frame)):
            if place < HEADER_SIZE + 64 or place > len(frame) - 64:
                session.send(frame[place:place + 1])
            elif place == HEADER_SIZE + 64:
                session.send(frame[place:-63])
    assert session.result() == 0
    assert target.device == content


# ---- every field of a header, sealed with the right key ----

FULL, RUNS, ZERO, END = 1, 2, 3, 4
TOP = 0xFFFFFFFF
LIES = {
    "kind-0": {"kind": 0}, "kind-5": {"kind": 5}, "flag": {"flags": 7}, "runs-of-full": {"run_count": 1}, "span-of-full": {"span": 1},
    "past-the-end": {"granule": 6}, "far-past-the-end": {"granule": 1 << 63}, "no-data": {"data_size": 0},
    "data-4g": {"data_size": TOP}, "odd-data": {"data_size": SMALL - 1}, "no-node": {"data_size": 3 * LEAF},
    "node-not-aligned": {"data_size": 2 * LEAF, "first_leaf": 1}, "leaf-past": {"first_leaf": 4, "data_size": LEAF},
    "leaf-far-past": {"first_leaf": TOP, "data_size": LEAF}, "tail-too-long": {"granule": 5, "data_size": 2 * LEAF},
    "tail-too-short": {"granule": 5, "data_size": LEAF + 511}, "value-without-flag": {"flags": 1, "value": b"v" * 32},
    "runs-none": {"kind": RUNS}, "runs-many": {"kind": RUNS, "run_count": 5}, "runs-most": {"kind": RUNS, "run_count": TOP},
    "runs-data": {"kind": RUNS, "run_count": 1, "data_size": TOP}, "runs-leaf": {"kind": RUNS, "run_count": 1, "first_leaf": 1},
    "span-0": {"kind": ZERO, "data_size": 0, "flags": 1}, "span-past": {"kind": ZERO, "data_size": 0, "flags": 1, "span": 6},
    "span-most": {"kind": ZERO, "data_size": 0, "flags": 1, "span": TOP, "granule": 0},
    "span-with-value": {"kind": ZERO, "data_size": 0, "span": 2}, "zero-with-data": {"kind": ZERO, "span": 1, "flags": 1},
    "zero-with-digest": {"kind": ZERO, "data_size": 0, "span": 1, "flags": 1, "digest": b"d" * 32},
    "end-of-granule": {"kind": END, "data_size": 0, "flags": 0}, "end-with-flag": {"kind": END, "data_size": 0, "granule": 0},
    "end-with-data": {"kind": END, "granule": 0, "flags": 0}, "end-with-span": {"kind": END, "data_size": 0, "flags": 0, "granule": 0, "span": 1},
    "version": {"version": 2}, "magic": {"magic": 0}, "sequence-ahead": {"sequence": 1}, "sequence-top": {"sequence": (1 << 64) - 1},
    "copies": {"kind": RUNS, "run_count": 2, "data_size": LEAF, "first_leaf": 1},
    "connection": {"connection": 1}, "session": {"session": SESSION + 1}, "attempt": {"attempt": 0},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_sealed_header_that_lies_is_refused_before_its_body_is_read(make_target, kind, lie):
    old = mixed_content(32, SIZE)
    target = make_target(old)
    session = target.serve(bytearray(SIZE), kind=kind)
    session.send(sealed(**lie))  # no body follows: whoever waited for one would not return
    assert session.result() != 0
    number = target.run.failure()[1]
    assert target.run.failure()[0] == "frame"
    assert number == (errno.EBADMSG if {"version", "magic"} & set(lie) else
                      errno.ESTALE if {"sequence", "connection", "session", "attempt"} & set(lie) else errno.EPROTO)
    assert target.device == old and not any(target.run.marked)


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_an_end_is_not_looked_at(make_target, kind):
    old = mixed_content(33, SIZE)
    target = make_target(old)
    session = target.serve(bytearray(SIZE), kind=kind)
    sent = []
    session.source.send = sent.append
    session.source.end()
    session.source.end()
    session.source.full(0)
    session.send(b"".join(sent))
    assert session.result() == 0
    assert target.device == old and not any(target.run.marked)


# ---- one granule more than once ----

def test_a_second_pass_is_computed_from_what_the_first_one_left(make_target, random_source):
    old = bytes(SIZE)
    target = make_target(old, base_states=bytes([IS_ZERO] * 6))
    content = bytearray(old)
    session = target.serve(content)
    for leaf in range(4):
        content[SMALL + leaf * LEAF:SMALL + (leaf + 1) * LEAF] = random_source.randbytes(LEAF)
        session.source.runs(1, [(leaf, 1, False)])
    assert session.finish() == 0
    assert target.run.failure() is None
    assert target.device == content
    assert target.value(1) == granule_value(target.geometry, content, 1)
    assert target.run.fresh_states[1] & (HASHED | HAS_VALUE) == HASHED | HAS_VALUE


def test_a_pass_after_one_in_parts_is_not_computed_from_what_was_before_both(make_target, random_source):
    """Nobody knows what the leaves are that the first pass left out, so what is announced for the whole counts, without a page."""
    target = make_target(bytes(SIZE), base_states=bytes([IS_ZERO] * 6))
    content = bytearray(SIZE)
    content[SMALL : SMALL + 2 * LEAF] = random_source.randbytes(2 * LEAF)
    session = target.serve(content)
    data, digest = session.source.runs_parts(1, [(0, 1, False)])
    session.send(session.source.writer.runs(1, [(0, 1, False)], len(data), digest, wire.LAST | wire.PARTS) + data)
    session.source.runs(1, [(1, 1, False)])
    assert session.finish() == 0 and target.run.failure() is None
    assert target.device == content and target.run.fresh_states[1] == HASHED | HAS_VALUE


def test_a_second_pass_after_zeroes_is_computed_from_zeroes(make_target, random_source):
    old = mixed_content(34, SIZE)
    target = make_target(old)
    content = bytearray(old)
    content[:SMALL] = bytes(SMALL)
    session = target.serve(content)
    session.source.zero(0)
    content[LEAF:2 * LEAF] = random_source.randbytes(LEAF)
    session.source.runs(0, [(1, 1, False)])
    assert session.finish() == 0
    assert target.device == content
    assert target.value(0) == granule_value(target.geometry, content, 0)


def test_a_granule_whose_second_pass_is_cut_is_not_said_to_be_whole(make_target, random_source):
    content = bytearray(random_source.randbytes(SIZE))
    target = make_target(mixed_content(35, SIZE))
    session = target.serve(content)
    session.source.full(0)
    content[:SMALL] = random_source.randbytes(SMALL)
    session.source.full(0, 0, 2, last=False)
    session.hang_up()
    assert session.result() != 0
    assert target.device[:2 * LEAF] == content[:2 * LEAF]
    assert target.run.marked[0] == 1
