"""What a peer may say is looked at before the engine hears it: sizes, the form of messages, their number."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrep.daemon import asks, tls
from qrep.daemon.front.screen import RULES, Screen
from qrep.errors import ProtocolError
from qrep.protocol import messages

HELLO = messages.encode(messages.Hello(1, 1, b"j" * 16, b"v" * 16, 1, 1 << 20, 4096, 8 << 20, 512, False, []))
PING, JOIN = messages.encode(messages.Ping()), messages.encode(messages.Join(token=b"t" * 32))


def frame(body):
    return len(body).to_bytes(4, "little") + body


QUESTION = frame(msgspec.msgpack.encode(asks.Hail()))


def test_every_purpose_has_its_rules():
    assert set(RULES) == set(tls.PURPOSES)


@given(st.data())
def test_sound_messages_pass_unchanged_in_whatever_pieces_they_come(data):
    stream = HELLO + data.draw(st.integers(0, 20)) * PING
    screen, passed, held = Screen(tls.CONTROL, accepted=True), b"", 0
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        through = bytes(screen.take(memoryview(stream[:size])))
        held += size - len(through)
        passed, stream = passed + through, stream[size:]
        assert held < len(HELLO), "less than one message is held back"
    assert held == 0 and passed.startswith(HELLO)


def test_nothing_of_a_message_passes_before_it_is_whole():
    screen = Screen(tls.CONTROL, accepted=True)
    assert [screen.take(HELLO[at : at + 1]) for at in range(len(HELLO) - 1)] == [b""] * (len(HELLO) - 1)
    assert screen.take(HELLO[-1:]) == HELLO


@pytest.mark.parametrize("purpose, accepted, sound, then", [
    (tls.CONTROL, True, HELLO, b""), (tls.CONTROL, False, messages.encode(messages.Pong()), b""), (tls.DATA, True, JOIN, b"\x00raw"),
    (tls.DATA, False, messages.encode(messages.Joined(index=3)), b"\xffraw"), (tls.ASK, True, QUESTION, b""),
    (tls.ASK, False, frame(msgspec.msgpack.encode(asks.Answer(value={"name": "x"}))), b""),
])  # fmt: skip
def test_what_belongs_there_passes(purpose, accepted, sound, then):
    assert Screen(purpose, accepted=accepted).take(memoryview(sound + then)) == sound + then


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("purpose", tls.PURPOSES)
@pytest.mark.parametrize("said", [
    b"\xff\xff\xff\xff", bytes(4), ((1 << 20) + 1).to_bytes(4, "little"), frame(b"\xc1" * 100), frame(b"\x90"), frame(b"\x91" * 4000),
    frame(msgspec.msgpack.encode({"t": "hello"})), frame(msgspec.msgpack.encode({"t": "no such"})), frame(HELLO[4:] + b"\x00"),
], ids=["4 GiB", "nothing", "above the limit", "no msgpack", "an empty list", "nested", "fields missing", "no such message", "more behind it"])  # fmt: skip
def test_what_is_no_message_never_reaches_the_engine(purpose, accepted, said):
    with pytest.raises(ProtocolError):
        Screen(purpose, accepted=accepted).take(memoryview(said))


@pytest.mark.parametrize("purpose, accepted, said", [
    (tls.CONTROL, False, HELLO), (tls.CONTROL, True, messages.encode(messages.Pong())), (tls.CONTROL, True, JOIN), (tls.DATA, True, HELLO),
    (tls.DATA, False, JOIN), (tls.ASK, True, HELLO), (tls.ASK, False, QUESTION), (tls.ASK, True, QUESTION + b"\x00"), (tls.ASK, True, 2 * QUESTION),
])  # fmt: skip
def test_what_belongs_elsewhere_never_reaches_the_engine(purpose, accepted, said):
    with pytest.raises(ProtocolError):
        Screen(purpose, accepted=accepted).take(memoryview(said))


def test_a_first_message_is_small():
    big = messages.encode(messages.Abort(attempt=1, reason="x"))[4:] + b" " * 5000
    with pytest.raises(ProtocolError, match="limit is 4096"):
        Screen(tls.CONTROL, accepted=True).take(memoryview(frame(big)))


@given(st.binary(max_size=300))
def test_whatever_comes_is_refused_or_is_sound(said):
    screen = Screen(tls.CONTROL, accepted=True)
    try:
        through = screen.take(memoryview(said))
    except ProtocolError:
        return
    while through:
        size = int.from_bytes(through[:4], "little")
        messages.decode(through[4 : 4 + size], "source")
        through = through[4 + size :]
