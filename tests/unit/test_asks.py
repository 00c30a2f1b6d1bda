"""Questions to another agent whose answers are not what they should be."""

import socket

import msgspec
import pytest

from qrep.daemon import asks
from qrep.errors import NotFound, ProtocolError

GOOD = {"code": "no-such-volume", "exit": 7, "message": "no volume", "hint": "look"}


def answered(body):
    """What ask() makes of an answer of these bytes."""
    near, far = socket.socketpair()
    with far:
        far.sendall(len(body).to_bytes(4, "little") + body)
        return asks.ask(near, asks.Hail(), 10)


def test_an_error_of_the_other_host_is_raised_here():
    with pytest.raises(NotFound, match="no volume") as raised:
        answered(msgspec.msgpack.encode({"error": GOOD}))
    assert raised.value.as_dict() == GOOD


@pytest.mark.parametrize(
    "answer", [{"error": GOOD | {field: []}} for field in GOOD] + [{"error": {}}, {"error": GOOD | {"more": 1}}, {"value": 1}, []]
)
def test_an_answer_of_other_types_is_refused(answer):
    with pytest.raises(ProtocolError):
        answered(msgspec.msgpack.encode(answer))


@pytest.mark.parametrize("body", [b"\x81\xa5value\x81\xa1a" + b"\x91" * 60000, b"\x81\xa5value\x81\xa1a\xa2\xff\xff"])
def test_bytes_that_are_no_answer_are_refused(body):
    with pytest.raises(ProtocolError):
        answered(body)
