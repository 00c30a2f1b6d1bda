"""Plain data connections and those who may not use them: every one of them ends with nothing written."""

import os

import msgspec
import pytest
from agents import MIB, Agents, b3sum, wait_until
from intruder import CLOSED, admitted, hears, identity_of, plain, plain_join, read_message
from machine import loop_devices

from qrep._native import hasher
from qrep._native.wire import HEADER_SIZE, LAST, FrameWriter, Geometry
from qrep.daemon import plain as plain_data
from qrep.daemon import tls
from qrep.protocol import messages

pytestmark = pytest.mark.root
SIZE, LEAF, GRANULE = 8 * MIB, 4096, MIB
DATA = 16 * LEAF
GEOMETRY = Geometry(SIZE, LEAF, GRANULE)


def a_pair(directory, trusted):
    """(site-a, site-b, source, target), job db run once."""
    for name in ("source", "target"):
        (directory / name).write_bytes(os.urandom(SIZE) if name == "source" else bytes(SIZE))
    with loop_devices(directory / "source", directory / "target") as (source, target), Agents(directory) as agents:
        a, b = agents.replica(source, target, source_volume=("--granule", "1M"))
        if trusted:
            a.qrep("peer", "set", "site-b", "--trusted")
            b.qrep("peer", "set", "site-a", "--trusted")
        a.run()
        yield a, b, source, target
        assert a.run()["root"] == b3sum(target) == b3sum(source), "whatever a peer says, it goes on"
        assert "Traceback" not in a.log + b.log


@pytest.fixture(scope="module")
def trusting(tmp_path_factory):
    yield from a_pair(tmp_path_factory.mktemp("trusting"), True)


@pytest.fixture(scope="module")
def encrypting(tmp_path_factory):
    yield from a_pair(tmp_path_factory.mktemp("encrypting"), False)


class Session:
    """A control session of site-a's key, by hand, with an attempt of its own open."""

    def __init__(self, a, b, attempt, plain=True, connections=2):
        job = msgspec.toml.decode((a.config / "jobs" / "db.toml").read_bytes())
        self.control, epoch = admitted(b, identity_of(a), tls.CONTROL), 900
        while True:
            hello = messages.Hello(
                1, 1, bytes.fromhex(job["id"]), bytes.fromhex(job["target_volume"]), epoch, SIZE, LEAF, GRANULE, 512, plain, [],
            )  # fmt: skip
            self.control.sendall(messages.encode(hello))
            state = read_message(self.control)
            if not isinstance(state, messages.Stale):
                break
            epoch = state.max_epoch + 1
        self.answer = state
        if isinstance(state, messages.Error):
            return
        if state.open_attempt:
            self.say(messages.Abort(0, "by hand"), messages.Aborted)
        new = attempt.to_bytes(16, "little")
        self.began = self.say(messages.Begin(state.committed, new, attempt, connections, MIB), messages.Began)
        self.tokens = self.began.tokens

    def say(self, message, wanted):
        self.control.sendall(messages.encode(message))
        while not isinstance(answer := read_message(self.control), wanted):
            assert isinstance(answer, messages.Progress | messages.Beat), answer
        return answer

    def join(self, b, index=0):
        stream = plain_join(b, self.tokens[index])
        assert read_message(stream) == messages.Joined(index)
        return stream

    def writer(self, connection=0, key=None):
        return FrameWriter(GEOMETRY, self.began.attempt, self.began.session, connection, key or self.began.key)

    def close(self):
        self.control.close()


def full(writer, seed=1, place=0, flags=0):
    """A sound frame of bytes that the target does not hold: header, then data. It is looked at when the next header has come."""
    data = bytes([seed + place]) * DATA
    return writer.full(0, place * (DATA // LEAF), DATA, hasher.subtree(data, place * DATA, LEAF), flags) + data


def test_the_frames_of_these_tests_are_written_when_nothing_is_wrong_with_them(trusting):
    """Else the tests below would say nothing."""
    a, b, _source, target = trusting
    before = b3sum(target)
    session = Session(a, b, 1)
    stream = session.join(b)
    writer = session.writer()
    stream.sendall(full(writer) + full(writer, place=1))
    wait_until(lambda: b3sum(target) != before)
    stream.close()
    session.close()
    assert a.run()["root"] == b3sum(target) == before, "an attempt that nobody commits is gone"


ATTACKS = {
    "a bit of the header flipped": lambda session, frame: bytes([frame[0][0] ^ 4]) + frame[0][1:],
    "a bit of the granule's number flipped": lambda session, frame: frame[0][:16] + bytes([frame[0][16] ^ 1]) + frame[0][17:],
    "a bit of the tag flipped": lambda session, frame: frame[0][: HEADER_SIZE - 1] + bytes([frame[0][HEADER_SIZE - 1] ^ 128]) + frame[0][HEADER_SIZE:],
    "a bit of the data flipped": lambda session, frame: frame[0][:-1] + bytes([frame[0][-1] ^ 1]) + frame[1],
    "the digest and the data exchanged, the tag as it was": lambda session, frame: full(session.writer(), seed=9)[: HEADER_SIZE - 32]
    + frame[0][HEADER_SIZE - 32 : HEADER_SIZE] + full(session.writer(), seed=9)[HEADER_SIZE:],
    "a tag made with a key that was guessed": lambda session, frame: full(session.writer(key=bytes(32))),
    "the second frame before the first": lambda session, frame: frame[1] + frame[0],
    "a frame of the other connection": lambda session, frame: full(session.writer(connection=1)),
    "no frame at all": lambda session, frame: os.urandom(4096),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_who_stands_on_the_wire_and_changes_frames_writes_nothing(trusting, attack):
    a, b, _source, target = trusting
    session = Session(a, b, 2)
    before = b3sum(target)
    stream = session.join(b)
    writer = session.writer()
    stream.sendall(ATTACKS[attack](session, (full(writer), full(writer, place=1))))
    assert hears(stream) == CLOSED
    nak = read_message(session.control)
    while isinstance(nak, messages.Progress | messages.Beat):
        nak = read_message(session.control)
    assert isinstance(nak, messages.Nak)
    assert b3sum(target) == before
    session.close()


def test_frames_of_an_earlier_session_are_refused_in_a_later_one(trusting):
    """Recorded on the wire and played again: in the next session, and twice in the same one."""
    a, b, _source, target = trusting
    first = Session(a, b, 3)
    recorded = full(first.writer())
    first.close()
    second = Session(a, b, 3)  # the same attempt number, even
    before = b3sum(target)
    stream = second.join(b)
    stream.sendall(recorded)
    assert hears(stream) == CLOSED and b3sum(target) == before
    second.close()

    third = Session(a, b, 4)
    stream = third.join(b)
    writer = third.writer()
    older, newer = full(writer, seed=5, flags=LAST), full(writer, seed=6, flags=LAST)

    def begins_with_newer():
        with open(target, "rb") as device:
            return device.read(DATA) == bytes([6]) * DATA

    stream.sendall(older + newer + writer.zero(1, 1))
    wait_until(begins_with_newer)
    stream.sendall(older)
    assert hears(stream) == CLOSED and begins_with_newer(), "the older one was not written again"
    third.close()


@pytest.mark.parametrize("what", ["guessed", "used", "used over TLS", "of a session that is over"])
def test_a_token_that_is_not_good_opens_nothing(trusting, what):
    a, b, _source, target = trusting
    refused, session = len(b.events("peer-refused")), Session(a, b, 5)
    before = b3sum(target)  # what an earlier attempt had written is put back
    token, held = session.tokens[0], None
    if what == "guessed":
        token = os.urandom(32)
    elif what == "used":
        held = session.join(b)
    elif what == "of a session that is over":
        session.close()
        newer = Session(a, b, 6)
        session = newer
    if what == "used over TLS":  # it is good for a plain connection only: neither end may be talked up or down
        stream = admitted(b, identity_of(a), tls.DATA)
        stream.sendall(messages.encode(messages.Join(token=token)))
    else:
        stream = plain_join(b, token)
    assert hears(stream) == CLOSED
    wait_until(lambda: len(b.events("peer-refused")) > refused)
    assert b3sum(target) == before
    if what == "used over TLS":
        session.join(b).close()  # and it was not used up by the one who may not
    if held:
        held.close()
    session.close()


def test_a_token_of_an_encrypted_session_opens_no_plain_connection(encrypting):
    a, b, _source, target = encrypting
    before = b3sum(target)
    session = Session(a, b, 7, plain=False)
    assert hears(plain_join(b, session.tokens[0])) == CLOSED
    stream = admitted(b, identity_of(a), tls.DATA)
    stream.sendall(messages.encode(messages.Join(token=session.tokens[0])))
    assert read_message(stream) == messages.Joined(0), "it was not used up"
    stream.close()
    session.close()
    assert b3sum(target) == before


def test_a_source_that_asks_for_plain_where_this_host_does_not_trust_the_path_is_refused(encrypting):
    a, b, _source, _target = encrypting
    session = Session(a, b, 8, plain=True)
    assert session.answer.code == "trust-mismatch"
    session.close()


@pytest.mark.parametrize("pair", ["trusting", "encrypting"])
def test_a_stranger_is_told_nothing_whether_or_not_anybody_is_trusted(pair, request):
    """The same answer, to the byte, and after the same bytes."""
    _a, b, *_rest = request.getfixturevalue(pair)
    stream = plain(b)
    stream.sendall(plain_data.MAGIC + bytes(31))
    stream.settimeout(0.5)
    with pytest.raises(TimeoutError):
        stream.recv(1)
    stream.sendall(b"\0")
    stream.settimeout(15)
    assert hears(stream) == CLOSED
    stream = plain(b)
    stream.sendall(plain_data.MAGIC[:1] + bytes(plain_data.PREAMBLE_SIZE))
    assert hears(stream) == CLOSED


def test_plain_connections_that_only_sit_there_are_bounded_as_others_are(trusting):
    a, b, source, target = trusting
    sitting = [plain(b) for _ in range(100)]
    for stream in sitting:
        stream.sendall(plain_data.MAGIC)
    assert a.run()["root"] == b3sum(target) == b3sum(source)

    def still_open():
        count = 0
        for stream in sitting:
            stream.settimeout(0)
            try:
                count += stream.recv(1) != b""
            except BlockingIOError:
                count += 1
            except OSError:
                pass
        return count

    wait_until(lambda: still_open() <= 32, seconds=8)
    for stream in sitting:
        stream.close()


def test_nothing_of_control_or_questions_is_plain(trusting):
    """What comes after the magic is a token, whatever it says."""
    a, b, _source, _target = trusting
    stream = plain(b)
    hello = messages.encode(messages.Join(token=bytes(32)))
    stream.sendall(plain_data.MAGIC + hello + bytes(100))
    assert hears(stream) == CLOSED
    session = Session(a, b, 9)
    stream = session.join(b)
    stream.sendall(messages.encode(messages.Ping()) + bytes(HEADER_SIZE))
    assert hears(stream) == CLOSED
    session.close()


def test_a_run_is_ridden_out_over_a_wire_that_flips_bits(agents, loop_device, fill):
    """Somebody on the wire changes a bit of the data connections three times; each time the run resumes, and what is written is the source."""
    source, target = loop_device(4 * SIZE), loop_device(4 * SIZE)
    fill(source, 4 * SIZE)
    a, b = agents.replica(source, target, link_rate=16 * MIB, source_volume=("--granule", "1M"))
    a.qrep("peer", "set", "site-b", "--trusted")
    b.qrep("peer", "set", "site-a", "--trusted")
    plain_ones, spoilt, marks = {}, [], [2 * MIB, 8 * MIB, 16 * MIB]

    def change(connection, data):
        if plain_ones.setdefault(connection, data.startswith(plain_data.MAGIC)) and marks and agents.link.carried > marks[0]:
            spoilt.append(marks.pop(0))
            data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
        return data

    agents.link.change = change
    report = a.run()
    assert len(spoilt) == 3 and report["interruptions"] >= 1 and report["resumed"]
    assert report["root"] == b3sum(target) == b3sum(source)


def test_a_run_is_ridden_out_over_a_wire_that_flips_a_bit_of_an_answer(agents, loop_device, fill):
    """The target's word that all frames of a connection have arrived is a frame itself: one that is damaged says nothing, and the run resumes."""
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target, link_rate=16 * MIB, source_volume=("--granule", "1M"))
    a.qrep("peer", "set", "site-b", "--trusted")
    b.qrep("peer", "set", "site-a", "--trusted")
    plain_ones, spoilt = {}, []

    def see(connection, data):
        plain_ones.setdefault(connection, data.startswith(plain_data.MAGIC))
        return data

    def change(connection, data):
        if plain_ones.get(connection) and len(data) >= HEADER_SIZE and not spoilt:
            spoilt.append(len(data))
            data = data[:-1] + bytes([data[-1] ^ 1])
        return data

    agents.link.change, agents.link.change_back = see, change
    report = a.run()
    assert len(spoilt) == 1 and report["interruptions"] == 1 and report["resumed"]
    assert "is no frame of this session" in a.events("run-interrupted")[-1]["text"]
    assert report["root"] == b3sum(target) == b3sum(source)
