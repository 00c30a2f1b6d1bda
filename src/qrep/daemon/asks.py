"""What agents ask each other outside of a run: one question, one answer, on a connection of its own."""

import contextlib
import socket
from typing import Annotated

import msgspec

from qrep import retention
from qrep.errors import ProtocolError, QrepError, Unreachable, from_dict
from qrep.settings import NAME

MESSAGE_MAX = 64 << 10  # bytes
SYNC_POINTS_MAX = retention.POINTS_MAX

TEXT_MAX = 4 << 10  # characters of a message, and of a hint

# What a peer says is held to these before anybody hears it; what has the form may still mean nothing, which whoever answers decides (pairs.py: _check).
Id = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
Generation = Annotated[str, msgspec.Meta(pattern=r"^(?!0{32})[0-9a-f]{32}\Z")]  # 0: none
Name = Annotated[str, msgspec.Meta(pattern=f"^{NAME.pattern}")]
Words = Annotated[str, msgspec.Meta(max_length=128)]  # a name, or NODE:NAME, of which a person is told what is wrong with it
Grid = Annotated[str, msgspec.Meta(max_length=512)]
Point = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]{0,64}\Z")]  # a number, a name or an id; it comes back in what a refusal says
Size = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]  # bytes
Shape = Annotated[int, msgspec.Meta(ge=4096, le=64 << 20)]  # bytes
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]
Number = Annotated[int, msgspec.Meta(ge=1)]  # of 64 bits
Text = Annotated[str, msgspec.Meta(max_length=TEXT_MAX)]


class _Message(msgspec.Struct, forbid_unknown_fields=True, tag_field="ask", kw_only=True):
    pass


class Hail(_Message, tag="hail"):
    """Who are you, do you know me, and do you trust the path between us?"""


class CreatePair(_Message, tag="create-pair"):
    """May job `job_id` of mine, over `size` bytes, write to your volume `volume`? check_only: do not write it down. once: the volume is
    given back when the first generation is committed."""

    job_id: Id
    job: Words
    source: Words
    volume: Words
    size: Size
    leaf: Shape
    granule: Shape
    sync_points: Count
    keep: Grid
    overwrite: bool
    check_only: bool
    once: bool


class ChangePair(_Message, tag="change-pair"):
    """Job `job_id` of mine wants this many sync points kept, and those of this grid (retention.py). Never below the floor of the target's volume."""

    job_id: Id
    sync_points: Count
    keep: Grid


class GroupMember(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """epoch: of the session that prepared it. new: the generation, 32 hexadecimal digits."""

    job_id: Id
    volume_id: Id
    epoch: Number
    attempt: Number
    new: Generation


class CommitGroup(_Message, tag="commit-group"):
    """Every member of this group is prepared, and its digests are pending here: commit all of them or none. id: of this question alone."""

    id: Generation
    group: Name
    members: Annotated[list[GroupMember], msgspec.Meta(min_length=1, max_length=64)]


class DeletePair(_Message, tag="delete-pair"):
    job_id: Id


class GiveBack(_Message, tag="give-back"):
    """Job `job_id` of mine, which is made once, is committed: let its volume go now."""

    job_id: Id


class Standing(_Message, tag="standing"):
    """Which role does your volume of this job have, and since which generation? (docs/ROLES.md)"""

    job_id: Id


class GiveUp(_Message, tag="give-up"):
    """Make your volume of this job a replica; last_run: after bringing mine to what it holds. Only where your operator allows it."""

    job_id: Id
    last_run: bool


class CountChanges(_Message, tag="count-changes"):
    """How much was written to your volume of this job since the generation that we both had?"""

    job_id: Id


class TakeBack(_Message, tag="take-back"):
    """My volume is a replica at generation `id` now, which holds what yours holds at `same_as`: make yours primary."""

    job_id: Id
    id: Generation
    same_as: Generation


class PinPoint(_Message, tag="pin-point"):
    """Keep this sync point of your volume of this job: I shall ask for it. point: "": I shall not, let go of the one you keep for me."""

    job_id: Id
    point: Point


class SendBack(_Message, tag="send-back"):
    """My volume of this job is a replica: put sync point `point` of yours back, and send it to me."""

    job_id: Id
    point: Point


class RunNow(_Message, tag="run-now"):
    """Start your run of this job: my volume is a replica."""

    job_id: Id


class Failure(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """QrepError.as_dict(), of another host."""

    code: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}\Z")]
    exit: Annotated[int, msgspec.Meta(ge=0, le=255)]
    message: Text
    hint: Text


class Answer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """value: what was asked for; error: why not, instead."""

    value: dict = {}
    error: Failure | None = None


Question = Hail | CreatePair | ChangePair | DeletePair | GiveBack | CommitGroup | Standing | GiveUp | CountChanges | TakeBack | RunNow | PinPoint | SendBack


def _send(stream, message):
    body = msgspec.msgpack.encode(message)
    stream.sendall(len(body).to_bytes(4, "little") + body)


def _receive(stream, cls):
    size = int.from_bytes(_exactly(stream, 4), "little")
    if not 0 < size <= MESSAGE_MAX:
        raise ProtocolError(f"a message of {size} bytes was announced; the limit is {MESSAGE_MAX}")
    try:
        return msgspec.msgpack.decode(_exactly(stream, size), type=cls)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ProtocolError(f"not a message of this protocol: {err}") from err


def _exactly(stream, size):
    data = bytearray()
    while len(data) < size:
        part = stream.recv(size - len(data))
        if not part:
            why = getattr(stream, "why_ended", lambda: None)()
            raise why or Unreachable("the peer closed the connection; perhaps it does not know this host", code="disconnected")
        data += part
    return bytes(data)


def ask(stream, question, timeout=30.0):
    """Ask on a fresh TLS connection, close it. Returns the answer's value; raises what the other side refused with."""
    try:
        stream.settimeout(timeout)
        _send(stream, question)
        answer = _receive(stream, Answer)
    except TimeoutError:
        raise Unreachable(f"the peer did not answer in {timeout:g} s") from None
    except OSError as err:
        raise Unreachable(f"the peer broke off: {err.strerror or err}; perhaps it does not know this host") from err
    finally:
        stream.close()
    if answer.error is not None:
        raise from_dict(msgspec.structs.asdict(answer.error))
    return answer.value


def bounded(error):
    """A QrepError as a dict that a peer takes: no text is longer than it may be."""
    return error.as_dict() | {"message": error.message[:TEXT_MAX], "hint": error.hint[:TEXT_MAX]}


def answer(stream, handle, timeout=30.0):
    """Read one question, answer with what handle(question) returns or raises, close."""
    try:
        stream.settimeout(timeout)
        try:
            reply = Answer(value=handle(_receive(stream, Question)))
        except QrepError as error:
            reply = Answer(error=Failure(**bounded(error)))
        _send(stream, reply)
        with contextlib.suppress(OSError):  # who asked may have its answer and be gone already
            stream.shutdown(socket.SHUT_RDWR)
    finally:
        stream.close()
