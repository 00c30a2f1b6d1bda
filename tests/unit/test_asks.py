"""Questions to another agent whose answers are not what they should be, and who asks and does not stay."""

import socket
import struct

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


def heard(body):
    """The question that these bytes are; raises what whoever asked is told."""
    near, far = socket.socketpair()
    with far:
        far.sendall(len(body).to_bytes(4, "little") + body)
        found = []
        asks.answer(near, lambda question: found.append(question) or {}, 10)
    if not found:
        raise ProtocolError("it did not come through")
    return found[0]


ID = "a1" * 16
PAIR = {
    "job_id": ID, "job": "db", "source": "site-a:db", "volume": "db", "size": 1 << 20, "leaf": 4096, "granule": 8192, "sync_points": 7, "keep": "24x1h",
    "overwrite": False, "check_only": False, "once": False,
}  # fmt: skip
MEMBER = {"job_id": ID, "volume_id": ID, "epoch": 1, "attempt": 1, "new": ID}
QUESTIONS = {
    "hail": {}, "create-pair": PAIR, "change-pair": {"job_id": ID, "sync_points": 7, "keep": ""}, "delete-pair": {"job_id": ID}, "give-back": {"job_id": ID},
    "commit-group": {"id": ID, "group": "shop", "members": [MEMBER]}, "standing": {"job_id": ID}, "give-up": {"job_id": ID, "last_run": True},
    "count-changes": {"job_id": ID}, "take-back": {"job_id": ID, "id": ID, "same_as": ID}, "pin-point": {"job_id": ID, "point": ""},
    "send-back": {"job_id": ID, "point": "12"}, "run-now": {"job_id": ID},
}  # fmt: skip
IDS = ("job_id", "volume_id", "id", "same_as", "new")
NO_IDS = ("", "zz", "z" * 32, ID[:-1], ID + "a", ID + "\n", "\n" + ID, ID.upper(), " " * 32, "../" * 10 + "..", 1, None, [ID], "٣" * 32)
NO_NUMBERS = (-1, 1 << 63, (1 << 64) - 1, 1.5, "1", None)
LONG = "9" * 60000
BAD = {
    **dict.fromkeys(IDS, NO_IDS), **dict.fromkeys(("job", "source", "volume", "keep"), (LONG, 1, None)), "group": (LONG, "", "a\n", "a\x1b[2J", "../x", "a\n\n"),
    "point": (LONG, "x" * 65, "1\n", "\x1b[2J", "\x7f", "\x9b", 1, None), **dict.fromkeys(("size", "leaf", "granule", "sync_points"), NO_NUMBERS),
    **dict.fromkeys(("epoch", "attempt"), (0, -1, 1.5, "1", None)), **dict.fromkeys(("overwrite", "check_only", "once", "last_run"), (1, "true", None)),
    "members": ([], [MEMBER] * 65, None, [ID], *([MEMBER | {name: ID[:-1]}] for name in ("job_id", "volume_id", "new"))),
}  # fmt: skip


def test_every_question_is_heard_in_its_good_form_and_there_is_no_other_one():
    assert {kind.__struct_config__.tag for kind in asks.Question.__args__} == set(QUESTIONS)
    for tag, fields in QUESTIONS.items():
        question = heard(msgspec.msgpack.encode({"ask": tag} | fields))
        assert msgspec.to_builtins(question) == {"ask": tag} | fields


@pytest.mark.parametrize("tag", QUESTIONS)
def test_no_field_of_a_question_gets_through_in_another_form(tag):
    for field, whole in QUESTIONS[tag].items():
        members = [({"members": [MEMBER | {name: bad}]}, name) for name in MEMBER for bad in BAD[name]] if field == "members" else []
        for change, name in [*(({field: bad}, field) for bad in BAD[field]), *members]:
            with pytest.raises(ProtocolError):
                print(tag, name, heard(msgspec.msgpack.encode({"ask": tag} | QUESTIONS[tag] | change)), "for", whole)


@pytest.mark.parametrize("field", ["id", "same_as"])
def test_the_id_of_nothing_is_no_generation_that_a_volume_is_taken_back_at(field):
    with pytest.raises(ProtocolError):
        heard(msgspec.msgpack.encode({"ask": "take-back"} | QUESTIONS["take-back"] | {field: "0" * 32}))


def test_what_a_refusal_says_is_bounded_at_both_ends():
    near, far = socket.socketpair()
    question = msgspec.msgpack.encode({"ask": "hail"})
    with far:
        far.sendall(len(question).to_bytes(4, "little") + question)

        def refuse(question):
            raise NotFound("x" * 100_000, hint="y" * 100_000)

        asks.answer(near, refuse, 10)
        size = int.from_bytes(far.recv(4), "little")
        answer = msgspec.msgpack.decode(far.recv(size, socket.MSG_WAITALL), type=asks.Answer)
    assert answer.error.message.startswith("xxx") and answer.error.hint.startswith("yyy") and size < asks.MESSAGE_MAX
    for change in ({"message": LONG}, {"hint": LONG}, {"code": LONG}, {"code": "A b"}, {"code": ""}, {"code": "no\n"}, {"exit": -1}, {"exit": 256}):
        with pytest.raises(ProtocolError):
            answered(msgspec.msgpack.encode({"error": GOOD | change}))


class WhoAsksIsGone(socket.socket):
    """Who asks has the answer and has reset the connection before anything else is done with it."""

    def sendall(self, data):
        super().sendall(data)
        self.peer.recv(1 << 16)
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()


def test_who_has_the_answer_and_is_gone_is_no_failure():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as asking:
        accepted, _ = listener.accept()
        answering = WhoAsksIsGone(fileno=accepted.detach())
        answering.peer = asking
        asks._send(asking, asks.Hail())
        asks.answer(answering, lambda question: {"heard": type(question).__name__})
        assert answering.fileno() < 0
