"""A network between two agents that does what it is told: a relay with a thread of its own, in the network namespace it is to stand in.

    with Network(space, [(listen, to), ...]) as network:      # addresses (host, port) of each path, the first is path 1
        network.begin(Fault("stall", what="data"))            # from now on, until
        network.heal()                                         # everything is passed on again, and what was held is brought
        network.after(200_000, lambda: ...)                    # once so many more bytes of data have gone from near to far; in the relay's thread

"near" is who dials (site-a), "far" who listens; "up" is from near to far. A connection is known by its first bytes: TLS tells its ALPN name in the
clear, a plain data connection begins with its magic. What is changed on the way is noted in `tampered`: a Tampering each, and when the connection
that it happened to was ended, and by whom.
"""

import contextlib
import ctypes
import dataclasses
import os
import random
import select
import socket
import struct
import threading
import time
from collections import deque

CLONE_NEWNET = 0x40000000
PORTION = 1 << 16
QUEUED_MAX = 256 << 10
HISTORY = 1 << 20  # bytes of a data connection that are kept, to be brought to a later one
HANDSHAKE = 3000  # bytes: a TLS connection that has brought so many is past its handshake and its first message
PLAIN_MAGIC, PLAIN_PREFACE = b"\xf1qrep-d1", 40
NAMES = {b"qrep-control/1": "control", b"qrep-data/1": "data", b"qrep-ask/1": "ask", b"qrep-test/1": "test"}
EDITS = ("flip", "duplicate", "drop", "swap", "truncate")  # of a stream's bytes, once per connection
_libc = ctypes.CDLL(None, use_errno=True)


@dataclasses.dataclass(frozen=True)
class Fault:
    """kind: a method of Network, or one of EDITS. paths: which it is done to. what: all, control or data connections. direction: both, up or down.

    amount: bytes or bytes per second or seconds, as the kind has it. times: to how many connections EDITS happen in all, those that come later included.
    """

    kind: str
    paths: tuple = (1,)
    what: str = "all"
    direction: str = "both"
    amount: float = 0
    times: int = 1


@dataclasses.dataclass
class Tampering:
    """at, ended_at: time.monotonic(). ended_by: near, far or "" (not yet). carried: bytes of the source's on its connection, until that ended."""

    edit: str
    kind: str
    direction: str
    connection: int
    at: float
    ended_at: float = 0.0
    ended_by: str = ""
    carried: int = 0

    def is_unused(self):
        """Whether the connection ended before it had carried more than its handshake and first message: no frame was on it, and the others do its work."""
        return bool(self.ended_by) and self.carried < HANDSHAKE


class Records:
    """Which bytes of a TLS stream are those of records that are authenticated: of type 23. Others carry bytes that nobody has to look at."""

    def __init__(self):
        self._head, self._left, self._type = b"", 0, 0
        self.boundary = 0  # where the last record ended of what was looked at last, 0: nowhere there

    def protected(self, data):
        """[(start, end)] in `data`, which comes next."""
        found, place, self.boundary = [], 0, 0
        while place < len(data):
            if not self._left:
                taken = data[place : place + 5 - len(self._head)]
                if not self._head:
                    self._type = taken[0]
                if self._type == 23:
                    found.append((place, place + len(taken)))
                self._head += taken
                place += len(taken)
                if len(self._head) == 5:
                    self._left, self._head = int.from_bytes(self._head[3:5], "big"), b""
                continue
            size = min(self._left, len(data) - place)
            if self._type == 23:
                found.append((place, place + size))
            self._left -= size
            place += size
            if not self._left:
                self.boundary = place
        return found


class Flow:
    """One direction of a connection: what was read of `reader` and is not yet written to `writer`."""

    def __init__(self, name, reader, writer):
        self.name, self.reader, self.writer = name, reader, writer
        self.queue, self.queued = deque(), 0  # (due, bytes)
        self.ended = self.shut = False  # nothing more is read; that was passed on
        self.passed, self.protected = 0, 0  # bytes so far
        self.history = bytearray()
        self.records = Records()
        self.edits = []  # [protected bytes to go, edit, amount]
        self.crumbs = 0  # bytes still passed on one by one
        self.swallowing = False

    def put(self, data, due):
        if data:
            self.queue.append((due, data))
            self.queued += len(data)


class Connection:
    def __init__(self, number, path, near, far):
        self.number, self.path, self.near, self.far = number, path, near, far
        self.kind, self.opened_at = "", time.monotonic()
        self.up, self.down = Flow("up", near, far), Flow("down", far, near)
        self.tampered, self.ended_by, self.stale = [], "", None

    @property
    def flows(self):
        return self.up, self.down


class Network:
    def __init__(self, space, paths, seed=0):
        """space: a network namespace, "" for this one. paths: [(listen, to)]."""
        self.space, self.paths = space, list(paths)
        self.random = random.Random(seed)
        self.lock = threading.RLock()
        self.rate = 0  # bytes per second of each path, both directions; 0: as fast as it goes
        self.carried = [0] * (len(self.paths) + 1)  # by path: bytes of control and data connections, upwards
        self.data = 0  # bytes of data connections, upwards
        self.tampered, self.sessions = [], []  # Tamperings; when control connections came
        self.last = {}  # path -> when control or data bytes last went over it
        self.failure = None  # what the thread died of
        self._faults, self._listening, self._connections = [], {}, []
        self._times = {}  # fault -> to how many connections it may still happen
        self._due = [0.0] * (len(self.paths) + 1)
        self._watches, self._stale, self._storm = [], [], None
        self._numbers = 0
        self._wake = os.pipe()
        self._over = False
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._live, name="network", daemon=True)

    def __enter__(self):
        self._thread.start()
        if not self._ready.wait(20) or self.failure:
            raise RuntimeError(f"the relay does not begin: {self.failure}")
        return self

    def __exit__(self, *_exception):
        self._over = True
        self._nudge()
        self._thread.join()
        for descriptor in self._wake:
            os.close(descriptor)

    def _nudge(self):
        os.write(self._wake[1], b"x")

    # ---- what is done to it, from any thread ----

    def is_empty(self):
        with self.lock:
            return not self._connections

    def begin(self, fault):
        with self.lock:
            self._faults.append(fault)
            self._times[fault] = fault.times
            action = getattr(self, f"_begin_{fault.kind.replace('-', '_')}", None)
            if action:
                action(fault)
            elif fault.kind in EDITS:
                self._begin_edit(fault)
        self._nudge()

    def heal(self):
        with self.lock:
            faults, self._faults, self._storm = self._faults, [], None
            self._watches = []  # a moment that has not come does not come in the next scenario
            for fault in faults:
                if fault.kind == "hold":
                    for connection in self._matching(fault):
                        for flow in connection.flows:
                            flow.queue = deque((0.0, data) for _due, data in flow.queue)
            self._listen()
            for connection in self._connections:
                for flow in connection.flows:
                    flow.edits.clear()
        self._nudge()

    def after(self, count, action):
        with self.lock:
            self._watches.append((self.data + count, action))

    def forget(self):
        """What was counted and noted so far."""
        with self.lock:
            self.tampered, self.sessions, self.last, self._stale, self._watches = [], [], {}, [], []
            self.carried, self.data = [0] * len(self.carried), 0

    # ---- kinds of faults; the others are looked up as bytes pass ----

    def _matching(self, fault):
        return [connection for connection in self._connections if self._fits(fault, connection)]

    @staticmethod
    def _fits(fault, connection):
        return connection.path in fault.paths and fault.what in ("all", connection.kind)

    def _active(self, kind, connection, flow=None):
        for fault in self._faults:
            if fault.kind == kind and self._fits(fault, connection) and (flow is None or fault.direction in ("both", flow.name)):
                return fault
        return None

    def _begin_cut(self, fault):
        for connection in self._matching(fault):
            self._close(connection)

    def _begin_rst(self, fault):
        for connection in self._matching(fault):
            self._close(connection, reset=True)

    def _begin_refuse(self, fault):
        self._begin_cut(fault)
        for path in fault.paths:
            listening = self._listening.pop(path, None)
            if listening is not None:
                listening.close()

    def _begin_half_close(self, fault):
        for connection in self._matching(fault):
            for flow in connection.flows:
                if fault.direction in ("both", flow.name) and not flow.ended:
                    flow.ended = True

    def _begin_crumble(self, fault):
        for connection in self._matching(fault):
            for flow in connection.flows:
                flow.crumbs = int(fault.amount)

    def _begin_storm(self, fault):
        self._storm = fault, time.monotonic()

    def _begin_replay(self, fault):
        """What data connections have brought so far is brought to the first one that comes later, and nothing else."""
        self._stale += [bytes(connection.up.history) for connection in self._matching(fault) if connection.kind == "data" and len(connection.up.history) > 1 << 14]
        for connection in self._matching(fault):
            self._close(connection)

    def _begin_edit(self, fault):
        for connection in self._matching(fault):
            self._plan_edit(fault, connection)

    def _plan_edit(self, fault, connection):
        if connection.kind not in ("control", "data") or not self._times[fault]:
            return
        self._times[fault] -= 1
        span = 400 if connection.kind == "control" else max(2000, int(fault.amount))
        for flow in connection.flows:
            if fault.direction in ("both", flow.name) and not flow.edits:
                flow.edits.append([self.random.randrange(span if flow.name == "up" else 400), fault.kind])
                if fault.direction == "both":
                    break  # one is enough

    # ---- the thread ----

    def _live(self):
        try:
            if self.space:
                with open(f"/run/netns/{self.space}") as space:
                    if _libc.setns(space.fileno(), CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
            with self.lock:
                self._listen()
            self._ready.set()
            while not self._over:
                self._round()
        except BaseException as err:
            self.failure = err
            raise
        finally:
            self._ready.set()
            for connection in list(self._connections):
                self._close(connection)
            for listening in self._listening.values():
                listening.close()

    def _listen(self):
        """On every path that is not refused. Only the thread itself makes sockets there."""
        if threading.current_thread() is not self._thread:
            return
        refused = {path for fault in self._faults if fault.kind == "refuse" for path in fault.paths}
        for path, (address, to) in enumerate(self.paths, 1):
            if path not in refused and path not in self._listening:
                self._listening[path] = socket.create_server(address, backlog=64)
                self._listening[path].setblocking(False)
                self.paths[path - 1] = self._listening[path].getsockname(), to  # where any port would do

    def _round(self):
        with self.lock:
            self._listen()
            now = time.monotonic()
            if self._storm and now >= self._storm[1]:
                fault, _when = self._storm
                self._begin_cut(fault)
                self._storm = fault, now + fault.amount
            poll, places, wait_s = self._interests(now)
        ready = poll.poll(max(1, wait_s * 1000))
        with self.lock:
            for descriptor, events in ready:
                self._serve(places[descriptor], events)

    def _interests(self, now):
        wanted, places, wait_s = {self._wake[0]: select.POLLIN}, {self._wake[0]: None}, 0.05
        for path, listening in self._listening.items():
            wanted[listening.fileno()], places[listening.fileno()] = select.POLLIN, path
        for connection in self._connections:
            for flow in connection.flows:
                for end in (flow.reader, flow.writer):
                    wanted.setdefault(end.fileno(), 0)
                    places[end.fileno()] = connection
                if self._active("stall", connection, flow):
                    continue
                late = self._due[connection.path] - now
                if not flow.ended and flow.queued < QUEUED_MAX and late <= 0:
                    wanted[flow.reader.fileno()] |= select.POLLIN
                elif late > 0:
                    wait_s = min(wait_s, late)
                if flow.queue and flow.queue[0][0] <= now:
                    wanted[flow.writer.fileno()] |= select.POLLOUT
                elif flow.queue:
                    wait_s = min(wait_s, flow.queue[0][0] - now)
                elif flow.ended and not flow.shut:
                    wanted[flow.writer.fileno()] |= select.POLLOUT
        poll = select.poll()
        for descriptor, events in wanted.items():
            poll.register(descriptor, events)
        return poll, places, wait_s

    def _serve(self, place, events):
        if place is None:
            os.read(self._wake[0], 4096)
        elif isinstance(place, int):
            if place in self._listening:
                self._accept(place)
        elif place in self._connections:
            for flow in place.flows:
                self._move(place, flow)
                if place not in self._connections:
                    return
            if events & (select.POLLERR | select.POLLNVAL) and not self._active("stall", place):
                self._close(place, reset=True, by="near" if self._broken(place.near) else "far")

    @staticmethod
    def _broken(end):
        return bool(end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _accept(self, path):
        try:
            near, _ = self._listening[path].accept()
        except OSError:
            return
        closing = next((fault for fault in self._faults if fault.kind in ("cut", "rst") and path in fault.paths and fault.what == "all"), None)
        if closing:
            hang_up(near, closing.kind == "rst")
            return
        try:
            far = socket.create_connection(self.paths[path - 1][1], 2)
        except OSError:
            hang_up(near, True)
            return
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._numbers += 1
        self._connections.append(Connection(self._numbers, path, near, far))

    def _close(self, connection, reset=False, by=""):
        if connection not in self._connections:
            return
        self._end(connection, by)
        self._connections.remove(connection)
        for end in (connection.near, connection.far):
            hang_up(end, reset)

    def _end(self, connection, by):
        """An end of it has ended it: the first one counts."""
        if not connection.ended_by and by:
            connection.ended_by = by
            for tampering in connection.tampered:
                tampering.ended_by, tampering.ended_at, tampering.carried = by, time.monotonic(), connection.up.passed

    def _move(self, connection, flow):
        if self._active("stall", connection, flow):
            return
        now = time.monotonic()
        try:
            if not flow.ended and flow.queued < QUEUED_MAX and self._due[connection.path] <= now:
                self._read(connection, flow, now)
            if connection in self._connections:  # what it was told to do at this byte may have closed it
                self._write(connection, flow, now)
        except OSError:
            end = flow.reader if self._broken(flow.reader) else flow.writer
            self._close(connection, reset=True, by="near" if end is connection.near else "far")

    def alive(self):
        """Raises what its thread died of."""
        if self.failure:
            raise RuntimeError("the relay died") from self.failure

    def _read(self, connection, flow, now):
        rate = self._rate(connection)
        try:
            data = flow.reader.recv(max(1, min(PORTION, int(rate / 50))) if rate else PORTION)
        except BlockingIOError:
            return
        if not data:
            flow.ended = True
            self._end(connection, "near" if flow.reader is connection.near else "far")
            return
        self._know(connection, flow, data)
        if connection not in self._connections:
            return
        if rate:
            self._due[connection.path] = max(self._due[connection.path], now) + len(data) / rate
        if flow.name == "up" and connection.kind in ("control", "data"):
            self.carried[connection.path] += len(data)
            self.last.setdefault(connection.path, now)
            self.last[connection.path] = now
        flow.passed += len(data)
        if flow.name == "up" and len(flow.history) < HISTORY:
            flow.history += data
        for part in self._changed(connection, flow, data):
            flow.put(part, self._when(connection, flow, now))
        if flow.name == "up" and connection.kind == "data":
            self.data += len(data)
            for watch in [watch for watch in self._watches if watch[0] <= self.data]:
                self._watches.remove(watch)
                watch[1]()

    def _rate(self, connection):
        slow = self._active("slow", connection)
        return slow.amount if slow else self.rate

    def _when(self, connection, flow, now):
        """When what was just read is due."""
        if self._active("hold", connection, flow):
            return float("inf")
        delay = self._active("delay", connection, flow)
        due = now + delay.amount * self.random.uniform(0.5, 1.5) if delay else now
        return max(due, flow.queue[-1][0]) if flow.queue else due  # order is kept

    def _know(self, connection, flow, data):
        """The first bytes say what a connection is for."""
        if connection.kind or flow.name == "down":
            return
        if data.startswith(PLAIN_MAGIC[:1]):
            connection.kind = "data"
        else:
            connection.kind = next((kind for name, kind in NAMES.items() if name in data), "other")
        if connection.kind == "control":
            self.sessions.append(time.monotonic())
        if any(self._active(kind, connection) for kind in ("cut", "rst")):
            self._close(connection, reset=bool(self._active("rst", connection)))
            return
        for fault in self._faults:
            if fault.kind in EDITS and self._fits(fault, connection):
                self._plan_edit(fault, connection)
            if fault.kind == "crumble" and self._fits(fault, connection):
                flow.crumbs = connection.down.crumbs = int(fault.amount)
        if connection.kind == "data" and self._stale:
            connection.stale = self._stale.pop(0)

    # ---- bytes that are changed on the way ----

    def _changed(self, connection, flow, data):
        if flow.swallowing:
            return []
        is_plain = connection.up.history[:1] == PLAIN_MAGIC[:1]
        ranges = [(0, len(data))] if is_plain else flow.records.protected(data)
        if flow.name == "up" and connection.stale is not None:
            return self._with_stale(connection, flow, data, is_plain)
        if not flow.edits:
            return [data]
        todo, (left, edit) = flow.edits, flow.edits[0]
        for start, end in ranges:
            if left < end - start:
                todo.pop(0)
                return self._edit(connection, flow, data, start + left, edit)
            left -= end - start
        todo[0][0] = left
        return [data]

    def _note(self, connection, flow, edit):
        connection.tampered.append(Tampering(edit, connection.kind, flow.name, connection.number, time.monotonic()))
        self.tampered.append(connection.tampered[-1])

    def _edit(self, connection, flow, data, place, edit):
        """One change at a place of data."""
        before, after = data[:place], data[place:]
        size = min(len(after), self.random.choice((1, 7, 160, 4096)))
        if edit == "swap" and (2 * size > len(after) or after[:size] == after[size : 2 * size]):
            edit = "flip"
        if edit == "truncate":
            flow.ended = True
            return [before]
        self._note(connection, flow, edit)
        if edit == "flip":
            return [self.flipped(connection, flow, data, place)]
        if edit == "duplicate":
            return [before + after[:size] + after]
        if edit == "drop":
            return [before + after[size:]]
        return [before + after[size : 2 * size] + after[:size] + after[2 * size :]]

    def flipped(self, connection, flow, data, place):
        """data with one bit of the byte at `place` flipped."""
        changed = bytearray(data)
        changed[place] ^= 1 << self.random.randrange(8)
        return bytes(changed)

    def _with_stale(self, connection, flow, data, is_plain):
        """What an older session said, instead of what this one says from here on; between two records, or after the preface of a plain one."""
        if is_plain:
            if flow.passed < PLAIN_PREFACE:
                return [data]
            kept, stale = data[: max(0, len(data) - (flow.passed - PLAIN_PREFACE))], connection.stale[PLAIN_PREFACE:]
        else:
            if flow.passed < HANDSHAKE or not flow.records.boundary:
                return [data]
            kept, stale = data[: flow.records.boundary], self._records_of(connection.stale)
        flow.swallowing, connection.stale = True, None
        self._note(connection, flow, "replay")
        return [kept, stale]

    @staticmethod
    def _records_of(history):
        """The whole records of type 23 after the handshake."""
        place, found = 0, bytearray()
        while place + 5 <= len(history):
            size = 5 + struct.unpack_from(">H", history, place + 3)[0]
            if place + size > len(history):
                break
            if place >= HANDSHAKE and history[place] == 23:
                found += history[place : place + size]
            place += size
        return bytes(found)

    def _write(self, connection, flow, now):
        while flow.queue and flow.queue[0][0] <= now:
            due, data = flow.queue[0]
            portion = data[:1] if flow.crumbs > 0 else data
            try:
                sent = flow.writer.send(portion)
            except BlockingIOError:
                return
            flow.crumbs -= sent
            flow.queued -= sent
            if sent == len(data):
                flow.queue.popleft()
            else:
                flow.queue[0] = due, data[sent:]
        if flow.ended and not flow.queue and not flow.shut:
            flow.shut = True
            with contextlib.suppress(OSError):
                flow.writer.shutdown(socket.SHUT_WR)
        if all(each.shut for each in connection.flows):
            self._close(connection)


def hang_up(end, reset):
    """Close it, with a RST instead of a FIN if asked for."""
    with contextlib.suppress(OSError):
        if reset:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.close()
