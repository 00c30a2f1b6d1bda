"""The control messages: what is said arrives as it was said, and nothing else passes."""

import json

import msgspec
import pytest
from golden import check_golden
from hypothesis import given
from hypothesis import strategies as st

from qrep.errors import ProtocolError
from qrep.protocol import messages as say

ID, DIGEST = bytes(range(16)), bytes(range(32))
EXAMPLES = [
    ("source", say.Hello(1, 1, ID, ID, 2**64 - 1, 1 << 30, 4096, 8 << 20, 512, False, [])),
    ("source", say.Begin(say.NO_ID, ID, 2**64 - 1, 2, 1 << 20)),
    ("source", say.Resume(7, 16, 4096, True)),
    ("source", say.AddConnections(7, 16)),
    ("source", say.Prepare(7, 0, DIGEST, False, 0, "", "")),
    ("source", say.Hold(7, [say.Extent(4096, 512)])),
    ("source", say.Commit(7)),
    ("source", say.Abort(0, "why")),
    ("source", say.ScanTarget(0, 256)),
    ("source", say.Check(ID, 5, 1 << 20, [1, 4])),
    ("source", say.GetNodes(ID, 63, [0, 1 << 40])),
    ("source", say.Repair(ID, 7, bytes(4096))),
    ("source", say.GetLeaves([0, 5])),
    ("source", say.GetRoot(1 << 30)),
    ("source", say.Ping()),
    ("source", say.Offer(1, 1, ID, "db", "db", "logs", 1 << 30, 4096, 8 << 20, 7, "24x1h")),
    ("source", say.Sample([0, 5, 7])),
    ("source", say.Adopt(ID, 41, 1, False)),
    ("target", say.Offered(1, ID, 1 << 30, say.NO_ID, 0)),
    ("target", say.Sampled(DIGEST * 3)),
    ("target", say.Adopted(ID)),
    ("target", say.State(1, ID, 3, 1 << 30, 4096, 8 << 20, 1, [ID] * 12, say.NO_ID, 0, False, 512, 9, [])),
    ("target", say.Stale(9)),
    ("target", say.Began(7, 9, DIGEST, [ID, DIGEST])),
    ("target", say.Resumed(7, 9, DIGEST, [ID], 1)),
    ("target", say.Added(7, [ID, DIGEST])),
    ("target", say.Applied(0, b"\2" * 8192, b"\1" * 8192, DIGEST * 8192)),
    ("target", say.Prepared(7)),
    ("target", say.Held(7, [say.Extent(0, 4096), say.Extent(8192, 512)])),
    ("target", say.Committed(ID, 4)),
    ("target", say.Aborted(7, "why")),
    ("target", say.Nak(7, "base", "text")),
    ("target", say.Digests(0, b"\1", DIGEST)),
    ("target", say.Leaves(0, DIGEST)),
    ("target", say.Root(DIGEST)),
    ("target", say.Checked(0, 8, 8 << 20, [say.BadLeaf(3, DIGEST)], [7], [say.Extent(0, 4096)], 1, True)),
    ("target", say.Nodes(4, b"\0\1\2", DIGEST * 3)),
    ("target", say.Repaired(7, False, "map")),
    ("target", say.Progress(1, 2, 3)),
    ("target", say.Error("code", "message", "hint")),
    ("target", say.Pong()),
    ("target", say.Beat("FlushDevice", 1, 2, 3)),
    ("join", say.Join(ID)),
    ("joined", say.Joined(1023)),
    ("tester", say.Measure(16, 60, False)),
    ("tester", say.Halt()),
    ("tester", say.Ping()),
    ("tested", say.Ready(7, 9, DIGEST, [DIGEST], 0)),
    ("tested", say.Measured(1 << 40)),
    ("tested", say.Error("code", "message", "hint")),
    ("tested", say.Pong()),
]


def written_down():
    """Every message once, the long ones shorter, as tests/golden/messages-v1.json has them."""
    short = {say.Applied: say.Applied(0, b"\2" * 2, b"\1" * 2, DIGEST * 2), say.Repair: say.Repair(ID, 7, bytes(512))}
    found = {f"{sender} {message.__struct_config__.tag}": say.encode(short.get(type(message), message))[4:].hex() for sender, message in EXAMPLES}
    return json.dumps(found, indent=0, sort_keys=True).encode() + b"\n"


def test_messages_have_not_changed_since_version_1():
    check_golden("messages-v1.json", written_down())


def refuse(body, sender):
    with pytest.raises(ProtocolError):
        say.decode(body, sender)


@pytest.mark.parametrize(("sender", "message"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_what_is_said_arrives_and_only_from_its_own_end(sender, message):
    data = say.encode(message)
    assert say.body_size(data[:4]) == len(data) - 4
    assert say.decode(data[4:], sender) == message
    run, test = {"source", "target", "join", "joined"}, {"tester", "tested"}  # of different connections: some words are the same in both
    for other in (test if sender in test else run) - {sender}:
        refuse(data[4:], other)


def test_every_message_has_an_example():
    assert {type(message) for _, message in EXAMPLES} == {*say.SOURCE_SAYS, *say.TARGET_SAYS, say.Join, say.Joined, *say.TESTER_SAYS, *say.TESTED_SAYS}


@pytest.mark.parametrize(("sender", "message"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_an_unknown_missing_or_doubled_field_is_refused(sender, message):
    fields = msgspec.msgpack.decode(say.encode(message)[4:])
    refuse(msgspec.msgpack.encode({**fields, "extra": 1}), sender)
    refuse(msgspec.msgpack.encode({**fields, "t": "no-such"}), sender)
    for name in fields:
        if name == "t" and sender in ("join", "joined"):
            continue  # the only message there is: its tag may be left out
        refuse(msgspec.msgpack.encode({key: value for key, value in fields.items() if key != name}), sender)
        if name != "t":
            refuse(msgspec.msgpack.encode({**fields, name: None}), sender)
    refuse(say.encode(message)[4:] + b"\0", sender)
    refuse(say.encode(message)[4:-1], sender)


@pytest.mark.parametrize(
    ("sender", "message"),
    [
        ("source", say.Begin(ID[:-1], ID, 1, 1, 4096)),
        ("source", say.Begin(ID, ID + b"x", 1, 1, 4096)),
        ("source", say.Begin(ID, ID, -1, 1, 4096)),
        ("source", say.Begin(ID, ID, 1, 0, 4096)),
        ("source", say.Begin(ID, ID, 1, 17, 4096)),
        ("source", say.AddConnections(1, 0)),
        ("source", say.AddConnections(1, 17)),
        ("source", say.AddConnections(1, 100_000)),
        ("source", say.AddConnections(-1, 1)),
        ("target", say.Added(1, [])),
        ("target", say.Added(1, [ID] * 17)),
        ("target", say.Added(1, [b"short"])),
        ("source", say.Begin(ID, ID, 1, 1, (4 << 20) + 1)),
        ("source", say.Hello(1, 1, ID, ID, -1, 1 << 30, 4096, 8 << 20, 512, False, [])),
        ("source", say.Hello(1, 1, ID, ID, 1, 1 << 30, 4095, 8 << 20, 512, False, [])),
        ("source", say.Hello(1, 1, ID, ID, 1, -1, 4096, 8 << 20, 512, False, [])),
        ("source", say.ScanTarget(0, 257)),
        ("source", say.ScanTarget(0, 0)),
        ("source", say.ScanTarget(1 << 63, 1)),
        ("source", say.Check(ID[:-1], 0, 0, [])),
        ("source", say.Check(ID, -1, 0, [])),
        ("source", say.Check(ID, 9000, 0, [0] * 4097)),
        ("source", say.GetNodes(ID, 64, [0])),
        ("source", say.GetNodes(ID, 0, [])),
        ("source", say.GetNodes(ID, 0, [0] * 257)),
        ("source", say.Repair(ID, 0, b"")),
        ("source", say.Repair(ID, 0, bytes((1 << 19) + 1))),
        ("target", say.Checked(0, 257, 0, [], [], [], 0, False)),
        ("target", say.Checked(0, 1, 0, [say.BadLeaf(0, DIGEST)] * 4097, [], [], 0, False)),
        ("target", say.Checked(0, 1, 0, [say.BadLeaf(0, DIGEST[:-1])], [], [], 0, False)),
        ("target", say.Checked(0, 1, 0, [], [0] * 257, [], 0, False)),
        ("target", say.Checked(0, 1, 0, [], [], [say.Extent(0, 1)] * 257, 0, False)),
        ("target", say.Nodes(0, b"\1\1", DIGEST)),
        ("target", say.Nodes(0, b"\1" * 257, DIGEST * 257)),
        ("source", say.GetLeaves([])),
        ("source", say.Sample([])),
        ("source", say.Sample([0] * 513)),
        ("source", say.Adopt(ID[:-1], 1, 0, False)),
        ("source", say.Offer(1, 1, ID, "x" * 65, "db", "logs", 1 << 30, 4096, 8 << 20, 7, "24x1h")),
        ("source", say.Offer(1, 1, ID, "db", "db", "logs", -1, 4096, 8 << 20, 7, "24x1h")),
        ("target", say.Sampled(b"")),
        ("target", say.Sampled(DIGEST * 513)),
        ("source", say.GetLeaves([0] * 65)),
        ("source", say.GetLeaves([-1])),
        ("source", say.Abort(1, "x" * 2001)),
        ("source", say.Prepare(1, 0, DIGEST + b"x", False, 0, "", "")),
        ("target", say.State(1, ID, 3, 1, 4096, 8192, 3, [], say.NO_ID, 0, False, 512, 9, [])),
        ("target", say.State(1, ID, 3, 1, 4096, 8192, 1, [ID] * 13, say.NO_ID, 0, False, 512, 9, [])),
        ("target", say.Began(1, 1, DIGEST, [])),
        ("target", say.Began(1, 1, DIGEST, [ID] * 17)),
        ("target", say.Began(1, 1, DIGEST, [b"short"])),
        ("target", say.Applied(0, b"\2", b"\1\1", DIGEST * 2)),
        ("target", say.Applied(0, b"\2\2", b"\1\1", DIGEST)),
        ("target", say.Applied(0, b"\2" * 8193, b"\1" * 8193, DIGEST * 8193)),
        ("target", say.Digests(0, b"\1\1", DIGEST)),
        ("target", say.Leaves(0, bytes((1 << 19) + 1))),
        ("joined", say.Joined(1024)),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_a_length_or_number_out_of_bounds_is_refused(sender, message):
    refuse(say.encode(message)[4:], sender)


def test_a_number_of_more_than_64_bits_is_refused():
    # msgpack cannot even say 2^64; -1 is the other end
    refuse(msgspec.msgpack.encode({"t": "commit", "attempt": -1}), "source")
    refuse(msgspec.msgpack.encode({"t": "commit", "attempt": 1.5}), "source")


@pytest.mark.parametrize("size", [0, say.MESSAGE_MAX + 1, 2**32 - 1])
def test_a_length_that_nobody_may_announce_is_refused_before_it_is_read(size):
    with pytest.raises(ProtocolError):
        say.body_size(say.LENGTH.pack(size))


def test_the_largest_messages_fit():
    page = say.Leaves(1, bytes(say.LEAF_PAGE_MAX))
    chunk = say.Applied(0, b"\2" * 8192, b"\1" * 8192, DIGEST * 8192)
    tokens = say.Began(1, 1, DIGEST, [bytes(64)] * 16)
    wide = (1 << 63) - 1
    checked = say.Checked(
        wide, 256, wide, [say.BadLeaf(wide, DIGEST)] * say.BAD_LEAVES_MAX, [wide] * 256, [say.Extent(wide, wide)] * say.EXTENTS_MAX, 256, False
    )
    repair = say.Repair(ID, wide, bytes(say.REPAIR_MAX))
    assert all(len(say.encode(message)) <= say.MESSAGE_MAX for message in (page, chunk, tokens, checked, repair))


def test_versions_meet_at_the_highest_both_speak():
    low, high = say.VERSION_MIN, say.VERSION_MAX
    assert say.common_version(low, high) == high
    assert say.common_version(low, high + 5) == high
    assert say.common_version(high + 1, high + 5) is None
    assert low == 1 or say.common_version(1, low - 1) is None


@given(st.sampled_from(["source", "target", "join", "joined"]), st.binary(max_size=200))
def test_arbitrary_bytes_are_a_message_or_a_protocol_error(sender, body):
    try:
        message = say.decode(body, sender)
    except ProtocolError:
        return
    assert say.decode(say.encode(message)[4:], sender) == message


@given(st.sampled_from(EXAMPLES), st.data())
def test_a_flipped_byte_is_another_message_or_a_protocol_error(example, data):
    sender, message = example
    body = bytearray(say.encode(message)[4:])
    body[data.draw(st.integers(0, min(len(body), 200) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        say.decode(bytes(body), sender)
    except ProtocolError:
        pass
