"""The parsers in Python, fed with what is nearly right: only what each documents may come out, in bounded time and memory.

    fuzzer = Fuzzer(seed)
    fuzzer.block(number)           # BLOCK executions; raises Broken with what repeats it

PARSERS has them all: what peers say, what processes of one agent say, configuration, times and units, records in the state directory, requests.
"""

import json
import random
import socket
import struct
import time
import tracemalloc
import typing
from typing import NamedTuple

import msgspec

from fuzz.mutate import NUMBERS, bytes_of, fields_of, one_of, packed, text_of
from golden import GOLDEN
from qrep import config, configparse, retention, sealed, settings, times, units, unixhttp, weekly
from qrep._native import disk, hasher
from qrep.daemon import asks, control, control_node, grants, plain, standing, tls
from qrep.daemon.front import talk
from qrep.daemon.front.screen import Screen
from qrep.errors import DamagedError, ProtocolError, UsageError
from qrep.nbd import handshake, transmission, wire
from qrep.nbd import talk as nbd_talk
from qrep.packets import Gone, Line
from qrep.protocol import messages as say
from qrep.source import kept, runrecord, shared
from qrep.target import points

BLOCK = 2000
SLOW_S, MEMORY_MAX = 1.0, 64 << 20  # of one execution
MEASURED_ONE_IN = 4000  # for memory, which takes long
ID, DIGEST = bytes(range(16)), bytes(range(32))


class Broken(AssertionError):
    """A parser did what it may not."""


class Parser(NamedTuple):
    """parse(input): raises one of `allowed`, or nothing. make(chance): an input. share: of the executions."""

    name: str
    parse: object
    allowed: tuple
    make: object
    share: float


def example(kind):
    """Some value of a msgspec type."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return {name: example(field.type) for name, field in zip(kind.__struct_encode_fields__, msgspec.structs.fields(kind), strict=True)} | (
            {kind.__struct_config__.tag_field: kind.__struct_config__.tag} if kind.__struct_config__.tag_field else {}
        )
    for value in (ID, DIGEST, bytes(512), 1, 4096, 1 << 20, "a" * 32, "db", "", True, 1.5, None, [1], [ID], ["x"], [[1, 4096]], [[1, DIGEST]], [(1, 1, 1, 1, 1, 1, 1)], [], {}):
        try:
            msgspec.convert(value, kind)
            return value
        except msgspec.ValidationError:
            continue
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is list:
        return [example(arguments[0])]
    if arguments:
        return example(arguments[0])
    raise AssertionError(f"no example of {kind}")


def classes(union):
    return getattr(union, "__args__", (union,))


def said(union, byte_share=0.4):
    """Makes messages of a union: their bytes changed, or their fields."""
    wholes = [msgspec.to_builtins(example(cls), builtin_types=(bytes,)) for cls in classes(union)]
    seeds = [packed(whole) for whole in wholes]

    def make(chance):
        if chance.random() < byte_share:
            return bytes_of(chance, seeds)
        return packed(fields_of(chance, one_of(chance, wholes)))

    return make


# ---- what peers say ----


def control_message(sender, union):
    def parse(data):
        message = say.decode(data, sender)
        again = say.encode(message)
        if len(again) > say.MESSAGE_MAX + 4 or say.decode(again[4:], sender) != message:
            raise Broken("it is another one when it is said again")

    return Parser(f"{sender} says", parse, (ProtocolError,), said(union), 3.0)


def screened(purpose, accepted, union, share):
    """A connection as the process that faces the network looks at it: in pieces, and what is through was looked at as a whole."""
    inner = said(union)

    def make(chance):
        parts = [inner(chance) for _ in range(1 + int(chance.random() * 2))]
        data = b"".join((len(part) if chance.random() < 0.9 else one_of(chance, NUMBERS) & 0xFFFFFFFF).to_bytes(4, "little") + part for part in parts)
        cut = int(chance.random() * len(data))
        return data[:cut], data[cut:]

    def parse(pieces):
        screen, passed, given = Screen(purpose, accepted=accepted), 0, 0
        for piece in pieces:
            given += len(piece)
            passed += len(screen.take(memoryview(piece)))
        if passed > given:
            raise Broken("more came out than went in")

    return Parser(f"screen of {purpose}", parse, (ProtocolError,), make, share)


def packets(name, union, descriptors):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line = Line(ours, union, descriptors)

    def parse(data):
        theirs.send(data[:65536] or b"\0")
        line.receive()

    return Parser(name, parse, (ProtocolError, Gone), said(union), 0.7)


class Bytes:
    """A stream that gives these bytes in small pieces, and takes what is sent."""

    def __init__(self, data):
        self._data, self._at = data, 0

    def settimeout(self, _seconds):
        pass

    def recv(self, size, _flags=0):
        part = self._data[self._at : self._at + min(size, 1 + (self._at * 7 + 11) % 97)]
        self._at += len(part)
        return part

    def receive_into(self, view, idle=False):
        part = self._data[self._at : self._at + len(view)]
        if len(part) < len(view):
            raise transmission.Ended("the end")
        view[:] = part
        self._at += len(part)

    def send(self, *buffers):
        pass

    def close(self):
        pass


def preamble(data):
    token = plain.read_preamble(Bytes(data), time.monotonic() + 60)
    if len(token) != plain.PREAMBLE_SIZE - len(plain.MAGIC):
        raise Broken("a token of another length")


# ---- NBD ----

EXPORT = handshake.Export("db@5", "sync point 5", 1 << 20, read_only=False)
OPTION_SEEDS = [
    (wire.GO, struct.pack(">I", 4) + b"db@5" + struct.pack(">HH", 1, 3)), (wire.INFO, struct.pack(">IHHH", 0, 2, 1, 2)), (wire.EXPORT_NAME, b"db@5"), (wire.LIST, b""),
    (wire.STRUCTURED_REPLY, b""), (wire.STARTTLS, b""), (wire.ABORT, b""), (99, b"x" * 300),
]  # fmt: skip


def nbd_options(chance):
    found = bytearray(wire.CLIENT_FLAGS.pack(3 if chance.random() < 0.95 else int(chance.random() * 1024)))
    for _ in range(1 + int(chance.random() * 4)):
        option, data = one_of(chance, OPTION_SEEDS)
        if chance.random() < 0.5:
            data = bytes_of(chance, [data, OPTION_SEEDS[0][1]])[:9000]
        length = len(data) if chance.random() < 0.9 else one_of(chance, NUMBERS) & 0xFFFFFFFF
        found += wire.OPTION.pack(wire.OPTION_MAGIC if chance.random() < 0.98 else 1, option, length) + data
    return bytes(found)


def nbd_handshake(data):
    stream, talk_ = Bytes(data), handshake.Handshake(EXPORT)

    def take(size):
        view = bytearray(size)
        stream.receive_into(memoryview(view))
        return bytes(view)

    talk_.client_flags(take(4))
    while talk_.done is None:
        option, length = talk_.header(take(wire.OPTION.size))
        if length > wire.OPTION_MAX:
            raise Broken("an option that long would be read")
        if len(talk_.option(option, take(length))) > 16 << 10:
            raise Broken("a reply that long")


class Content:
    """What is served; nothing beyond its size is ever touched."""

    size = EXPORT.size

    def _within(self, offset, length):
        if not (0 <= offset and length >= 0 and offset + length <= self.size):
            raise Broken(f"{length} bytes at {offset} of {self.size} were touched")

    def read_into(self, view, offset):
        self._within(offset, len(view))

    def write(self, data, offset):
        self._within(offset, len(data))

    def zero(self, offset, length):
        self._within(offset, length)

    def flush(self):
        pass


def nbd_requests(chance):
    found = bytearray()
    for _ in range(1 + int(chance.random() * 3)):
        command = int(chance.random() * 8)
        offset = one_of(chance, (0, 512, 4095, EXPORT.size - 512, EXPORT.size, (1 << 64) - 1, (1 << 63), one_of(chance, NUMBERS) & (1 << 64) - 1))
        length = one_of(chance, (0, 1, 512, 4096, 5000, 1 << 20, (1 << 20) + 1, 32 << 20, (1 << 32) - 1))
        flags = 0 if chance.random() < 0.7 else int(chance.random() * 65536)
        magic = wire.REQUEST_MAGIC if chance.random() < 0.98 else 7
        found += wire.REQUEST.pack(magic, flags, command, 7, offset, length)
        if command == wire.WRITE:
            found += bytes(min(length, 8192))
    return bytes(found)


_buffer = bytearray(8192)


def nbd_transmission(data):
    counts = {"read": 0, "written": 0, "requests": 0}
    transmission.Transmission(Bytes(data), EXPORT, Content(), _buffer, structured=len(data) % 2, counts=counts).serve()


# ---- configuration, times, units ----

CONFIG = {
    settings.Job: """id = "0123456789abcdef0123456789abcdef"\nsource = "db"\ntarget = "site-b:db"\nmode = "async"\nsync_points = 7\nschedule = "every 15m"\nconnections = 2\nnice = true\n""",
    settings.Volume: """device = "/dev/vg/db"\nid = "0123456789abcdef0123456789abcdef"\nleaf = "4K"\naccept = ["site-a"]\n[identity]\nsize = 1048576\nsector_size = 512\n""",
    settings.Peer: """addresses = ["10.0.0.2:7777"]\nfingerprint = "SHA256:00"\ntrusted = false\n""",
    settings.Shape: """rate = "100M"\nwindows = ["mon-fri 08:00-18:00"]\n""",
    settings.Node: """[node]\nlisten = "0.0.0.0"\nport = 7777\n[limits]\njobs_running = 4\n[[hooks]]\nevents = ["run-failed"]\ncommand = ["/bin/true"]\ntimeout = "30s"\n[events]\nkeep = 1000\n""",
}
TOML_TOKENS = ["\n", " = ", '"', "'", '"""', "[", "]", "[[", "]]", "{", "}", ",", "#", ".", "true", "0", "-1", "1e400", "nan", "inf", "0x7fffffffffffffffff", "9" * 5000, "1979-05-27T07:32:00Z",
               "\\u0000", "\\x", "\0", "\u2028", "id", "size", "[node]", "a.b.c = 1", "= ", "\t", "\r\n", "10M", "é"]  # fmt: skip


def config_file(cls, share):
    def parse(text):
        data = (text.encode(errors="surrogatepass") if text[:1] != "\0" else text.encode() + b"\xff")[: config.FILE_MAX]
        value, problems = configparse.look(data, cls, "file.toml")
        if value is None and not problems:
            raise Broken("neither an object nor a problem")
        for problem in problems:
            str(problem)

    return Parser(f"{cls.__name__.lower()} file", parse, (), lambda chance: text_of(chance, [CONFIG[cls]], TOML_TOKENS), share)


UNIT_TOKENS = [*"0123456789.,kKmMgGtTsShHdDwWxX%* /-+:;@", "KiB", "MiB", "Mbit/s", "GB/s", "every ", "ms", "min", "1e9", "inf", "nan", "unlimited", "off", "auto", "٣", "²", "1_000", "99999999999999999999"]
CRON_TOKENS = [*"0123456789*/,-? ;@L#W", "every ", "15m", "@daily", "@yearly", "mon", "jan", "*/5", "0 0 30 2 *", "60", "70", "99999", "29 2"]


def of_units(parse, bounded):
    def check(text):
        found = parse(text)
        if bounded and found is not None and not 0 <= found < 1 << 64:
            raise Broken(f"{text!r} is {found}")

    return check


def schedule(text):
    found = times.parse(text)
    if found is not None and len(str(text)) > times.TEXT_MAX:
        raise Broken("a schedule that long")


def grid(text):
    for rule in retention.parse_grid(text):
        if not 1 <= rule[0] <= retention.POINTS_MAX:
            raise Broken(f"{rule}")


def window(text):
    weekly.parse([text])


# ---- records in the state directory ----


class Files:
    """A directory of one file."""

    path = "/state"

    def __init__(self, data):
        self.data = data

    def read(self, name, limit):
        if len(self.data) > limit:
            raise DamagedError(f"{name} is too long")
        return self.data


PAIRS = {
    "format": 1, "sequence": 5, "once": [example(grants.Once)],
    "pairs": [{"job_id": "a" * 32, "peer": "a", "fingerprint": "f", "job": "db", "source": "db", "volume": "db", "size": 1, "sync_points": 7, "created": 1.5, "keep": ""}],
}  # fmt: skip
RUN = {name: "00" * 16 if kind is bytes else 7 if kind is int else kind() for name, kind in runrecord._KINDS.items()}
KEPT = {"kept": {"tag": "11" * 16, "token": "a", "trusted": True, "cursor": 5, "map": "00" * 32}, "next": None}
POINTS = {ID.hex(): {"counter": 7, "fuzzy": True, "frozen_at_ns": 1, "committed_at_ns": 2, "consistency": "crash", "name": "before"}}
STANDING = {
    "id": "a" * 32, "role": "replica", "job_id": "b" * 32, "job": "db", "peer": "", "other": "db", "other_id": "c" * 32, "why": "", "at": 1.0, "size": 1 << 20,
    "leaf": 4096, "granule": 8192, "sync_points": 3,
}  # fmt: skip


def readable(value):
    """JSON has no bytes and no half characters."""
    try:
        return json.dumps(value, default=lambda each: each.hex()).encode()
    except (TypeError, ValueError):
        return b"null"


def sealed_file(name, whole, read, allowed=(), share=0.5):
    """With the right digest most of the time: another version of qrep may have written it."""
    body = json.dumps(whole).encode()

    def make(chance):
        if chance.random() < 0.5:
            data = readable(fields_of(chance, whole))
        else:
            data = bytes_of(chance, [body], nesting=b"[")
        if chance.random() < 0.9:
            return data + b"\n" + hasher.hash(data).hex().encode() + b"\n"
        return data

    return Parser(name, read, allowed, make, share)


class Standing:
    """standing.load() without its file."""

    def __call__(self, data):
        try:
            found = msgspec.convert(sealed.load(data, "standing.json"), standing.StandingFile)
            if found.before is not None:
                msgspec.convert(found.before, standing.StandingFile)
        except msgspec.ValidationError:
            pass


def run_record(data):
    file = object.__new__(runrecord.RunFile)
    file.directory = Files(data)
    file.load()


GOLDENS = {name: (GOLDEN / f"{name}.bin").read_bytes() for name in ("superblock-v1", "undo-header-v1", "map-header-v1")}


def record(name, unpack, share):
    """The last 32 bytes of a structure are its digest, and are right most of the time."""
    whole = GOLDENS[name]

    def make(chance):
        data = bytearray(bytes_of(chance, [whole]))
        del data[len(whole) :]
        data += bytes(len(whole) - len(data))
        if chance.random() < 0.8:
            data[-32:] = hasher.hash(bytes(data[:-32]))
        return bytes(data)

    return Parser(name, unpack, (disk.RecordDamaged, disk.RecordNewer), make, share)


def superblock(data):
    block = disk.Superblock.unpack(data)
    if disk.Superblock.unpack(block.pack()) != block:
        raise Broken("it is another one when it is written again")


# ---- requests of the local API, and answers of it ----


class Request:
    def __init__(self, body):
        self.body = body

    async def stream(self):
        yield self.body


BODY = {"name": "db", "source": "db", "target": "site-b:db", "sync_points": 7, "nice": True, "dry_run": False}
KINDS = {"name": str, "source": str, "target": str}, {"sync_points": int, "nice": bool, "dry_run": bool}


def request_body(data):
    try:
        control._body(Request(data), *KINDS).send(None)
    except StopIteration as ended:
        value = ended.value
        if not KINDS[0].keys() <= value.keys() or type(value["name"]) is not str or type(value.get("sync_points", 1)) is not int:
            raise Broken(f"{value}") from None


def request_make(chance):
    if chance.random() < 0.5:
        return readable(fields_of(chance, BODY))
    return bytes_of(chance, [json.dumps(BODY).encode()], nesting=b"[")


class Query(dict):
    def getlist(self, key):
        return [self[key]] if key in self else []


def events_query(query):
    after, wanted = control_node.events_wanted(Query(query))
    if not 0 <= after < 1 << 63 or not -1e15 < wanted["since"] < 1e15:
        raise Broken(f"{after} {wanted}")


def query_make(chance):
    texts = ["0", "-1", "9" * 30, "9" * 5000, "2026-11-22", "2026-11-22T09:00:00+01:00", "0001-01-01", "9999-12-31T23:59:59", "", "x", "info", "run-failed", "nan", "١"]
    return {key: text_of(chance, texts, UNIT_TOKENS) if chance.random() < 0.5 else one_of(chance, texts) for key in ("since", "after", "level", "code") if chance.random() < 0.5}


ANSWER = [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\n\r\n", b"HTTP/1.1 404 Not Found\r\n\r\nrest\nof\n"]


def answer(data):
    response = unixhttp.Response(Bytes(data))
    if sum(map(len, response)) > len(data):
        raise Broken("more than came")


def parsers():
    numbers = ["10M", "1.5GiB", "100Mbit/s", "20%", "3x", "every 15m", "30s", "2h", "0", "unlimited"]
    crons = ["0 1,5,9-17 * * *", "every 15m", "*/5 * * * mon-fri", "@daily", "0 0 29 2 *; every 1h", "30 4 1-7 * 1"]
    days = ["mon-fri 08:00-18:00", "sat,sun", "22:00-06:00", "fri-mon 00:00-24:00"]
    grids = ["24x1h 7x1d 4x1w", "256x1m", "1x52w"]
    usage = (UsageError,)
    return [
        control_message("source", say.Union[say.SOURCE_SAYS]), control_message("target", say.Union[say.TARGET_SAYS]),
        control_message("join", say.Join), control_message("joined", say.Joined), control_message("tester", say.Union[say.TESTER_SAYS]),
        control_message("tested", say.Union[say.TESTED_SAYS]),
        screened(tls.CONTROL, True, say.Union[say.SOURCE_SAYS], 1.5), screened(tls.CONTROL, False, say.Union[say.TARGET_SAYS], 1.0),
        screened(tls.DATA, True, say.Join, 1.0), screened(tls.ASK, True, asks.Question, 1.5), screened(tls.ASK, False, asks.Answer, 1.0),
        screened(tls.TEST, True, say.Union[say.TESTER_SAYS], 0.5),
        packets("packets to the front", talk.ENGINE_SAYS, talk.DESCRIPTORS_MAX), packets("packets of the front", talk.FRONT_SAYS, talk.DESCRIPTORS_MAX),
        packets("packets to an NBD server", nbd_talk.AGENT_SAYS, nbd_talk.DESCRIPTORS_MAX), packets("packets of an NBD server", nbd_talk.SERVER_SAYS, nbd_talk.DESCRIPTORS_MAX),
        Parser("preamble", preamble, (ProtocolError,), lambda chance: bytes_of(chance, [plain.MAGIC + bytes(plain.PREAMBLE_SIZE - len(plain.MAGIC))]), 1.0),
        Parser("NBD handshake", nbd_handshake, (handshake.Fatal, transmission.Ended), nbd_options, 1.0),
        Parser("NBD requests", nbd_transmission, (transmission.Ended,), nbd_requests, 1.0),
        *(config_file(cls, 0.03) for cls in CONFIG),
        *(
            Parser(parse.__name__, of_units(parse, bounded), usage, lambda chance: text_of(chance, numbers, UNIT_TOKENS), 0.5)
            for parse, bounded in ((units.parse_size, True), (units.parse_rate, True), (units.parse_duration, False), (units.parse_sample, False))
        ),
        *(
            Parser(parse.__name__, of_units(lambda text, parse=parse: parse(text, 1 << 40), True), usage, lambda chance: text_of(chance, numbers, UNIT_TOKENS), 0.3)
            for parse in (units.parse_space, units.parse_share)
        ),
        Parser("schedule", schedule, usage, lambda chance: text_of(chance, crons, CRON_TOKENS), 0.05),
        Parser("window of the week", window, usage, lambda chance: text_of(chance, days, [*CRON_TOKENS, "tue", ":", "24:00", "00:60"]), 0.5),
        Parser("grid", grid, usage, lambda chance: text_of(chance, grids, UNIT_TOKENS), 0.5),
        sealed_file("pairs", PAIRS, lambda data: grants._checked(sealed.load(data, "pairs.a"), "pairs.a"), (DamagedError, grants.GrantsError)),
        sealed_file("standing", STANDING, Standing(), (DamagedError,)), sealed_file("run record", RUN, run_record),
        sealed_file("kept snapshot", KEPT, lambda data: kept._load(Files(data))), sealed_file("points", POINTS, lambda data: points.Points(Files(data)).facts(ID, 1)),
        sealed_file("shared snapshots", {"t:1": ["a", "b"]}, lambda data: shared.SharedTokens(Files(data)).tokens()),
        record("superblock-v1", superblock, 0.7), record("undo-header-v1", disk.UndoHeader.unpack, 0.7),
        record("map-header-v1", lambda data: disk.MapHeader.unpack(data, 1 << 20), 0.7),
        Parser("request", request_body, usage, request_make, 1.0), Parser("query of events", events_query, usage, query_make, 0.3),
        Parser("answer of the agent", answer, (unixhttp.BadAnswer,), lambda chance: bytes_of(chance, ANSWER, nesting=b"x"), 0.7),
    ]  # fmt: skip


class Fuzzer:
    """counts: executions by parser. slowest: (seconds, name)."""

    def __init__(self, seed, only=None):
        self.seed = seed
        self.parsers = [parser for parser in parsers() if only is None or parser.name in only]
        self.counts = dict.fromkeys((parser.name for parser in self.parsers), 0)
        self.slowest = (0.0, "")
        total = sum(parser.share for parser in self.parsers)
        self._edges, edge = [], 0.0
        for parser in self.parsers:
            edge += parser.share / total
            self._edges.append(edge)

    def block(self, number):
        """BLOCK executions of one parser, which the number chooses."""
        chance = random.Random(f"{self.seed}:{number}")
        place = chance.random()
        parser = self.parsers[min(sum(edge <= place for edge in self._edges), len(self.parsers) - 1)]
        self.run(parser, chance, BLOCK, f"seed {self.seed}, block {number}")

    def run(self, parser, chance, count, where):
        parse, allowed, make, clock = parser.parse, parser.allowed, parser.make, time.perf_counter
        for index in range(count):
            data = make(chance)
            measured = index == count // 2 and chance.random() < BLOCK / MEASURED_ONE_IN
            if measured:
                tracemalloc.start()
            began = clock()
            try:
                parse(data)
            except allowed:
                pass
            except Exception as err:
                raise Broken(f"{parser.name}: {where}, execution {index}: {type(err).__name__}: {err}; input {data[:300]!r}") from err
            took = clock() - began
            if measured:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                if peak > MEMORY_MAX:
                    raise Broken(f"{parser.name}: {where}, execution {index}: {peak} bytes of memory; input {data[:300]!r}")
            elif took > self.slowest[0]:
                self._slow(parser, data, took, f"{where}, execution {index}")
        self.counts[parser.name] += count

    def _slow(self, parser, data, took, where):
        """Somebody else may have had the CPU: it is tried again before it counts."""
        if took > SLOW_S:
            began = time.thread_time()
            try:
                parser.parse(data)
            except parser.allowed:
                pass
            took = time.thread_time() - began
            if took > SLOW_S:
                raise Broken(f"{parser.name}: {where}: {took:.1f} s; input {data[:300]!r}")
        self.slowest = max(self.slowest, (took, parser.name))


