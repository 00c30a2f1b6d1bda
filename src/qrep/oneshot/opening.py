"""The first words between the two ends of a copy over ssh, before the control channel: what is wanted, and yes or no.

u32 little-endian length, then msgpack; afterwards the same stream is the control channel.
"""

import msgspec

from qrep.errors import ProtocolError, QrepError, Unreachable

VERSION = 1
MESSAGE_MAX = 64 << 10  # bytes


class Offer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """source: its name. mark: signature.mark() of it. size, leaf_size, granule_size: bytes.
    certificate: PEM of the near end, if data goes over connections of its own."""

    version: int = VERSION
    target: str
    source: str
    mark: str = ""
    size: int
    leaf_size: int
    granule_size: int
    overwrite: bool = False
    dry_run: bool = False
    certificate: str = ""


class Answer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """volume_id: of the target. join: @NAME of the socket that `serve --join` hands its descriptors to. port, certificate: where data
    goes, if not over ssh. error: QrepError.as_dict() instead of all that."""

    error: dict | None = None
    volume_id: bytes = b""
    exists: bool = True
    known: bool = False
    compare: bool = False
    notes: list[str] = []
    join: str = ""
    port: int = 0
    certificate: str = ""


def say(stream, message):
    body = msgspec.msgpack.encode(message)
    data = memoryview(len(body).to_bytes(4, "little") + body)
    while data:
        data = data[stream.send(data) :]


def hear(stream, cls):
    """The next message from a blocking stream. Raises Unreachable at the end, ProtocolError on what is no such message."""
    size = int.from_bytes(_exactly(stream, 4), "little")
    if not 0 < size <= MESSAGE_MAX:
        raise ProtocolError(
            "the other end does not speak qrep", hint="its login scripts must print nothing when they run without a terminal"
        )
    try:
        return msgspec.msgpack.decode(_exactly(stream, size), type=cls)
    except msgspec.DecodeError as err:
        raise ProtocolError(f"the other end says something else: {err}", hint="install the same version of qrep on both") from err


def _exactly(stream, size):
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        got = stream.recv_into(view[done:])
        if not got:
            raise Unreachable("the other end closed the connection", code="disconnected")
        done += got
    return bytes(data)


def refusal(error):
    """An Answer for whatever went wrong."""
    return Answer(error=(error if isinstance(error, QrepError) else QrepError(str(error))).as_dict())
