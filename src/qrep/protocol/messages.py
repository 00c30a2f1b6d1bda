"""What source and target say on the control connection, and the codec: u32 little-endian length, then a msgpack map tagged `t`.

Decoding is strict: an unknown tag or field, a missing field, a length or number outside its bounds is a ProtocolError, found
before anything of the message is used. Each direction has its own union, so that a message from the wrong end does not decode.
Ids are bytes, compared for equality only (R5); sizes and offsets are bytes; counts and indexes are plain numbers.
"""

import struct
from typing import Annotated, Union

import msgspec
from msgspec import Meta

from qrep.errors import ProtocolError
from qrep.protocol import skew

VERSION_MIN, VERSION_MAX = 1, 1  # of the control protocol spoken by this program
MESSAGE_MAX = 1 << 20  # bytes of a message body; a peer that announces more is cut off before it is read
LENGTH = struct.Struct("<I")

NO_ID = bytes(16)  # "no generation": nothing was ever committed
GRANULES_PER_CHUNK = 8192  # of an Applied or Digests message: 8192 * (1 + 1 + 32) bytes stay below MESSAGE_MAX
GRANULES_PER_SCAN = 256  # of a ScanTarget: 2 GiB of 8 MiB granules, so that an answer never takes minutes
NODES_MAX = 256  # of one GetNodes
NODE_GRANULES_MAX = 16  # whose leaf pages one GetNodes may need
AGAIN_MAX = 4096  # granules that one Check has read once more
BAD_LEAVES_MAX = 4096  # named by one Checked
PIECE_GRANULES_MAX = 256  # that one Checked is about
REPAIR_MAX = 1 << 19  # bytes of a leaf that is healed by a message; larger ones are sent by a run
LEAF_PAGES_MAX = 64  # granules named by one GetLeaves
CONNECTIONS_MAX = 16  # data connections of one session at a time
CONNECTION_NUMBERS_MAX = 1024  # of one session in all: a number is never given twice, so that no frame can change streams
TOKEN_LIFE_S = 60  # seconds; a token that nobody brings by then is void
LEAF_PAGE_MAX = 1 << 19  # bytes: 64 MiB granules of 4 KiB leaves, 32 bytes each
FRAME_LIMIT_MAX = 4 << 20  # bytes of data in one frame, QREP_FRAME_DATA_MAX of wire.h
EPOCH_STEP_MAX = 1 << 32  # how far one Hello may move max_epoch: a peer cannot use the numbers up
FEATURES_MAX = 16  # named by one Hello
HISTORY_MAX = 12  # QREP_HISTORY_MAX of disk.h
# A map takes 33 bytes of memory per granule at each end. With granules of 8 MiB, which is what one is unless told otherwise, any volume goes;
# smaller ones only up to so many, or whoever may write to a large volume could have a target use up its host's memory.
FINE_GRANULES_MAX = 1 << 24
COARSE_GRANULE = 8 << 20
SAMPLE_MAX = 512  # leaves named by one Sample
EXTENTS_MAX = 256  # places named by one message, QREP_BAD_EXTENTS_MAX of badlist.h

REPLICA, PRIMARY = 1, 2  # role, enum qrep_role of disk.h

Id = Annotated[bytes, Meta(min_length=16, max_length=16)]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Token = Annotated[bytes, Meta(min_length=16, max_length=64)]
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
# Attempts, epochs and sizes go up to 2^64-1. msgspec bounds what it can to 2^63-1, the rest is checked by _check_wide().
Wide = int
Text = Annotated[str, Meta(max_length=2000)]
Word = Annotated[str, Meta(max_length=64)]
Features = Annotated[list[Annotated[str, Meta(min_length=1, max_length=16)]], Meta(max_length=FEATURES_MAX)]
Connections = Annotated[int, Meta(ge=1, le=CONNECTIONS_MAX)]
FrameLimit = Annotated[int, Meta(ge=4096, le=FRAME_LIMIT_MAX)]
ScanCount = Annotated[int, Meta(ge=1, le=GRANULES_PER_SCAN)]
ChunkBytes = Annotated[bytes, Meta(min_length=1, max_length=GRANULES_PER_CHUNK)]
ChunkDigests = Annotated[bytes, Meta(min_length=32, max_length=GRANULES_PER_CHUNK * 32)]


class Extent(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A place of the volume, bytes."""

    offset: Count
    size: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]


Extents = Annotated[list[Extent], Meta(max_length=EXTENTS_MAX)]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="t"):
    """Base of all messages."""


# ---- source -> target ----


class Hello(Message, tag="hello"):
    """The first message, and the only one before State. volume_id names the target volume; a peer never sends a path.

    epoch: this session's number; it must be above every one the target has accepted. size: of the source volume.
    plain: the source trusts the path, and will bring data connections without TLS; a target that does not agree ends the session.
    features: what its frames can use (features.py).
    """

    version_min: Annotated[int, Meta(ge=1, le=65535)]
    version_max: Annotated[int, Meta(ge=1, le=65535)]
    job_id: Id
    volume_id: Id
    epoch: Wide
    size: Count
    leaf_size: Annotated[int, Meta(ge=4096, le=1 << 20)]
    granule_size: Annotated[int, Meta(ge=8192, le=64 << 20)]
    sector_size: Annotated[int, Meta(ge=1, le=4096)]
    plain: bool
    features: Features


class Begin(Message, tag="begin"):
    """Open a generation: compare-and-swap on `base`, which must be the target's committed id.

    new: fresh random id. attempt: fresh random number, carried by every frame (R6). frame_limit: bytes of data in one frame.
    """

    base: Id
    new: Id
    attempt: Wide
    connections: Connections
    frame_limit: FrameLimit


class Resume(Message, tag="resume"):
    """Go on with the open attempt in this session. same_image: what is read now is byte for byte what the attempt began with."""

    attempt: Wide
    connections: Connections
    frame_limit: FrameLimit
    same_image: bool


class AddConnections(Message, tag="add-connections"):
    """Tokens for more data connections of the session that is going; not after Prepare. At most CONNECTIONS_MAX may then be there: those that
    answered END count no more, those whose token nobody brought until it is void."""

    attempt: Wide
    count: Connections


class Prepare(Message, tag="prepare"):
    """Everything was sent: make it durable if it is exactly this. What follows is for people. fuzzy: no snapshot; frozen_at_ns: wall clock;
    consistency: application, crash or fuzzy, "": not known; label: a name that the sync point is to bear, "": none."""

    attempt: Wide
    count: Count
    manifest: Digest
    fuzzy: bool
    frozen_at_ns: Count
    consistency: Word
    label: Word


class Hold(Message, tag="hold"):
    """Everything that could be read was sent, and `unreadable` could not: keep the attempt open. It is no sync point, and can be resumed."""

    attempt: Wide
    unreadable: Annotated[list[Extent], Meta(min_length=1, max_length=EXTENTS_MAX)]


class Commit(Message, tag="commit"):
    attempt: Wide


class Abort(Message, tag="abort"):
    """Go back to the committed generation. attempt 0: whatever is open."""

    attempt: Wide
    reason: Text


class ScanTarget(Message, tag="scan"):
    """Digests of granules [first, first + count), freshly read from the device in this session."""

    first: Count
    count: ScanCount


class Check(Message, tag="check"):
    """Read the granules of `again`, ascending and all before `first`, then your device from granule `first` on, at most `rate` bytes per second
    (0: as fast as it goes), and compare it with your own map.

    Answered by Checked, piece after piece, while anything else may be asked. Another Check, or the end of the session, ends it.
    """

    generation: Id
    first: Count
    rate: Count
    again: Annotated[list[Count], Meta(max_length=AGAIN_MAX)]


class GetNodes(Message, tag="get-nodes"):
    """What your map says of these nodes (maptree.py). Below a granule they may lie in NODE_GRANULES_MAX granules at most."""

    generation: Id
    level: Annotated[int, Meta(ge=0, le=63)]
    indexes: Annotated[list[Count], Meta(min_length=1, max_length=NODES_MAX)]


class Repair(Message, tag="repair"):
    """The content of leaf `leaf` of the committed generation `generation`, where the device holds something else. It is written only if its
    chaining value is the one that the target's own map has."""

    generation: Id
    leaf: Count
    data: Annotated[bytes, Meta(min_length=512, max_length=REPAIR_MAX)]


class GetLeaves(Message, tag="get-leaves"):
    """Chaining values of all leaves of these granules, freshly read; answered by one Leaves each, in order."""

    granules: Annotated[list[Count], Meta(min_length=1, max_length=LEAF_PAGES_MAX)]


class GetRoot(Message, tag="get-root"):
    """The BLAKE3 of the committed generation from a fresh read of the whole device by the packaged blake3, with Progress meanwhile: it has no chaining
    values, so it can only speak of the whole. rate: as in Check."""

    rate: Count


class Ping(Message, tag="ping"):
    """Still there?"""


# A connection that begins with Offer is no run: it asks whether a volume is the clone that a job waits for (protocol/rebuild.py).


class Offer(Message, tag="offer"):
    """The first message. volume: its name there. size, leaf_size, granule_size: of the source volume, whose clone it is to be.

    sync_points, keep: what the job wants kept, as in CreatePair of daemon/asks.py. source: the name of the source volume, for people.
    """

    version_min: Annotated[int, Meta(ge=1, le=65535)]
    version_max: Annotated[int, Meta(ge=1, le=65535)]
    job_id: Id
    job: Word
    source: Word
    volume: Word
    size: Count
    leaf_size: Annotated[int, Meta(ge=4096, le=1 << 20)]
    granule_size: Annotated[int, Meta(ge=8192, le=64 << 20)]
    sync_points: Annotated[int, Meta(ge=0, le=65535)]
    keep: Annotated[str, Meta(max_length=200)]


class Sample(Message, tag="sample"):
    """The chaining values of these leaves, counted from the start of the volume, freshly read."""

    leaves: Annotated[list[Count], Meta(min_length=1, max_length=SAMPLE_MAX)]


class Adopt(Message, tag="adopt"):
    """What was read of the whole volume in this conversation is generation `generation` from now on, the committed one: it is a replica of the job.

    frozen_at_ns, fuzzy: of the moment that it holds; 0 where it was changed since.
    """

    generation: Id
    counter: Count
    frozen_at_ns: Count
    fuzzy: bool


# ---- target -> source ----


class State(Message, tag="state"):
    """What the target holds. open_attempt 0: no generation is open. resumable: Resume(open_attempt) would be accepted now.

    features: those of the Hello that frames may use in this session."""

    version: Annotated[int, Meta(ge=1, le=65535)]
    committed: Id
    counter: Wide
    size: Count
    leaf_size: Count
    granule_size: Count
    role: Annotated[int, Meta(ge=1, le=2)]
    history: Annotated[list[Id], Meta(max_length=HISTORY_MAX)]
    open_new: Id
    open_attempt: Wide
    resumable: bool
    sector_size: Annotated[int, Meta(ge=1, le=4096)]
    max_epoch: Wide
    features: Features


class Stale(Message, tag="stale"):
    """The Hello's epoch is not above max_epoch. The connection stays and waits for another Hello."""

    max_epoch: Wide


class Began(Message, tag="began"):
    """The attempt is open. tokens: one for each data connection, used once. key: of the frames' tags. session: the epoch."""

    attempt: Wide
    session: Wide
    key: Digest
    tokens: Annotated[list[Token], Meta(min_length=1, max_length=CONNECTIONS_MAX)]


class Resumed(Message, tag="resumed"):
    """The attempt goes on; `applied_chunks` Applied messages follow, granules ascending."""

    attempt: Wide
    session: Wide
    key: Digest
    tokens: Annotated[list[Token], Meta(min_length=1, max_length=CONNECTIONS_MAX)]
    applied_chunks: Annotated[int, Meta(ge=0, le=1 << 24)]


class Added(Message, tag="added"):
    """Lanes are waiting for these tokens, each used once."""

    attempt: Wide
    tokens: Annotated[list[Token], Meta(min_length=1, max_length=CONNECTIONS_MAX)]


class Applied(Message, tag="applied"):
    """What the attempt holds of granules [first, first + len(marked)). marked: 0 nothing, 1 parts, 2 whole."""

    first: Count
    marked: ChunkBytes
    states: ChunkBytes
    values: ChunkDigests


class Prepared(Message, tag="prepared"):
    attempt: Wide


class Held(Message, tag="held"):
    """Answer to Hold; and to Prepare where the device did not take `unwritten`. Everything else is applied; the attempt stays open."""

    attempt: Wide
    unwritten: Extents


class Committed(Message, tag="committed"):
    new: Id
    counter: Wide


class Aborted(Message, tag="aborted"):
    """The target is back at its committed generation. attempt 0: nothing was open."""

    attempt: Wide
    reason: Text


class Nak(Message, tag="nak"):
    """The request was refused; the session goes on. code: one of NAK_CODES."""

    attempt: Wide
    code: Word
    message: Text


class Digests(Message, tag="digests"):
    """Answer to ScanTarget. states: granule state bytes as in disk.h; values: 32 bytes each."""

    first: Count
    states: ChunkBytes
    values: ChunkDigests


class Leaves(Message, tag="leaves"):
    granule: Count
    page: Annotated[bytes, Meta(max_length=LEAF_PAGE_MAX)]


class Root(Message, tag="root"):
    root: Digest


class BadLeaf(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A leaf of the volume, and the chaining value of what the device holds there."""

    leaf: Count
    value: Digest


class Checked(Message, tag="checked"):
    """Granules [first, first + count) were read. bad: leaves that are not what the map says; whole: granules that are not, of which the map
    has no leaf values or which have too many bad leaves; unreadable: places. unknown: granules of which the map knows nothing. All ascending.
    done: that was the last piece."""

    first: Count
    count: Annotated[int, Meta(ge=0, le=PIECE_GRANULES_MAX)]
    size: Count
    bad: Annotated[list[BadLeaf], Meta(max_length=BAD_LEAVES_MAX)]
    whole: Annotated[list[Count], Meta(max_length=PIECE_GRANULES_MAX)]
    unreadable: Extents
    unknown: Annotated[int, Meta(ge=0, le=PIECE_GRANULES_MAX)]
    done: bool


class Nodes(Message, tag="nodes"):
    """kinds: 0 unknown, 1 hashed, 2 zero; values: 32 bytes each; in the order of the question."""

    level: Annotated[int, Meta(ge=0, le=63)]
    kinds: Annotated[bytes, Meta(min_length=1, max_length=NODES_MAX)]
    values: Annotated[bytes, Meta(min_length=32, max_length=NODES_MAX * 32)]


class Repaired(Message, tag="repaired"):
    """healed: the device holds what was sent, durably. Else why: map (the own map has another value), unknown (it has none), write."""

    leaf: Count
    healed: bool
    why: Word


class Progress(Message, tag="progress"):
    """Bytes; informative only, at any time after State."""

    received: Count
    written: Count
    undo: Count


class Error(Message, tag="error"):
    """The session ends: code, one line, and the way out."""

    code: Word
    message: Text
    hint: Text


class Offered(Message, tag="offered"):
    """The volume is held, and can be asked about. size: of its device. committed: not NO_ID: it was adopted before, and holds this generation."""

    version: Annotated[int, Meta(ge=1, le=65535)]
    volume_id: Id
    size: Count
    committed: Id
    counter: Wide


class Sampled(Message, tag="sampled"):
    """In the order in which they were asked for, 32 bytes each."""

    values: Annotated[bytes, Meta(min_length=32, max_length=32 * SAMPLE_MAX)]


class Adopted(Message, tag="adopted"):
    generation: Id


class Pong(Message, tag="pong"):
    """Yes."""


class Beat(Message, tag="beat"):
    """I am here: said every second from the first message of the source on, by a thread that waits for nothing, until the session ends.

    busy: what keeps the target from reading and answering just now, "": nothing does. received, written, undo: bytes, of the lanes of now.
    """

    busy: Word
    received: Count
    written: Count
    undo: Count


# ---- first message on a data connection, and its answer ----


class Join(Message, tag="join"):
    token: Token


class Joined(Message, tag="joined"):
    index: Annotated[int, Meta(ge=0, le=CONNECTION_NUMBERS_MAX - 1)]


# ---- a bandwidth test: its connection carries nothing of a volume ----

MEASURE_MAX_S = 60


class Measure(Message, tag="measure"):
    """Wait for so many data connections, and take what comes for so many seconds; as Hello, `plain` is what this end holds of the path."""

    connections: Annotated[int, Meta(ge=1, le=16)]
    seconds: Annotated[int, Meta(ge=1, le=MEASURE_MAX_S)]
    plain: bool


class Halt(Message, tag="halt"):
    """That is all: end what is still there, and say what came."""


class Ready(Message, tag="ready"):
    """As Began. running: how many runs go on here, which take their share of this host."""

    attempt: Wide
    session: Wide
    key: Digest
    tokens: Annotated[list[Token], Meta(min_length=1, max_length=16)]
    running: Count


class Measured(Message, tag="measured"):
    """Bytes of frames that came."""

    received: Count


NAK_CODES = {
    "base": "the committed generation is another one (compare-and-swap failed)",
    "attempt-gone": "that attempt is not open any more",
    "connection": "a data connection ended early; resume",
    "frame": "a frame was refused; resume",
    "manifest": "what was applied is not what was announced",
    "busy": "not while a generation is open",
    "role": "the volume is not a replica",
    "id": "an id was used before",
}

SOURCE_SAYS = (Hello, Begin, Resume, AddConnections, Prepare, Hold, Commit, Abort, ScanTarget, Check, GetNodes, Repair, GetLeaves, GetRoot, Ping, Offer, Sample, Adopt)
TARGET_SAYS = (
    State, Stale, Began, Resumed, Added, Applied, Prepared, Held, Committed, Aborted, Nak, Digests, Leaves, Root, Checked, Nodes, Repaired,
    Progress, Error, Pong, Beat, Offered, Sampled, Adopted,
)  # fmt: skip
TESTER_SAYS, TESTED_SAYS = (Measure, Halt, Ping), (Ready, Measured, Error, Pong)

_encoder = msgspec.msgpack.Encoder()
_decoders = {
    "source": msgspec.msgpack.Decoder(Union[SOURCE_SAYS]),
    "target": msgspec.msgpack.Decoder(Union[TARGET_SAYS]),
    "join": msgspec.msgpack.Decoder(Join),
    "joined": msgspec.msgpack.Decoder(Joined),
    "tester": msgspec.msgpack.Decoder(Union[TESTER_SAYS]),
    "tested": msgspec.msgpack.Decoder(Union[TESTED_SAYS]),
}
_wide_fields = {
    cls: tuple(name for name, kind in cls.__annotations__.items() if kind is Wide)
    for cls in (*SOURCE_SAYS, *TARGET_SAYS, Join, Joined, *TESTER_SAYS, *TESTED_SAYS)
}


def encode(message):
    """Length and body of a message. Raises ValueError if it is longer than a peer would take: our own bug."""
    body = _encoder.encode(message)
    if len(body) > MESSAGE_MAX:
        raise ValueError(f"a {type(message).__name__} of {len(body)} bytes does not fit into {MESSAGE_MAX}")
    return LENGTH.pack(len(body)) + body


def body_size(prefix):
    """Bytes that follow the 4 bytes of `prefix`. Raises ProtocolError before anyone allocates them."""
    (size,) = LENGTH.unpack(prefix)
    if not 0 < size <= MESSAGE_MAX:
        raise ProtocolError(f"a control message of {size} bytes was announced; the limit is {MESSAGE_MAX}")
    return size


def decode(body, sender):
    """The message in `body`. sender: who said it: source, target, join/joined on a data connection, tester/tested in a bandwidth test.

    Raises ProtocolError on anything that is not exactly one message of that sender.
    """
    if len(body) > MESSAGE_MAX:
        raise ProtocolError(f"a control message of {len(body)} bytes; the limit is {MESSAGE_MAX}")
    try:
        message = _decoders[sender].decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        newer = skew.told(body, VERSION_MIN, VERSION_MAX) if sender == "source" else None
        raise newer or ProtocolError(f"the {sender} sent a message that is not one: {err}") from err
    _check_wide(message)
    if isinstance(message, (Applied, Digests)):
        _check_chunk(message)
    if isinstance(message, Nodes) and len(message.values) != len(message.kinds) * 32:
        raise ProtocolError("the lists of a Nodes do not have the same length")
    return message


def _check_wide(message):
    for name in _wide_fields[type(message)]:
        if not 0 <= getattr(message, name) < 1 << 64:
            raise ProtocolError(f"{name} of a {type(message).__name__} is not a 64-bit number")


def _check_chunk(message):
    count = len(message.states)
    if len(message.values) != count * 32 or len(getattr(message, "marked", message.states)) != count:
        raise ProtocolError(f"the lists of a {type(message).__name__} do not have the same length")


def is_too_fine(size, granule_size):
    """Whether a volume of this size has more granules than a target takes on."""
    return granule_size < COARSE_GRANULE and -(-size // granule_size) > FINE_GRANULES_MAX


def common_version(version_min, version_max):
    """The highest version both ends speak, or None."""
    version = min(version_max, VERSION_MAX)
    return version if version >= max(version_min, VERSION_MIN) else None
