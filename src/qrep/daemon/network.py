"""The engine's side of the front (front/__init__.py): starts it, starts it anew when it died, and asks it for connections."""

import contextlib
import itertools
import os
import queue
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import weakref

from qrep import kerneltls, packets
from qrep.daemon import confined, tls
from qrep.daemon.front import talk
from qrep.daemon.halfopen import Refusals
from qrep.daemon.names import addresses_of
from qrep.errors import ProtocolError, Refused, Unreachable, from_dict
from qrep.protocol.transport import Disconnected, TcpView, tcp_view

START_S = 60.0
END_S = 2.0
TAKE_S = 5  # a front that takes nothing for so long is ended: whoever asks it something waits for that
PAUSE_FIRST_S, PAUSE_MAX_S = 0.1, 30.0
WELL_S = 60.0  # a front that lived so long is not one of a row of failures
DIALS = 2048  # connections out at most, for the limit of descriptors
VIEW_OLD_S = 1.5
REASON_S = 0.5  # how long a reason may come after the end it explains


class Stream(socket.socket):
    """A connection to a peer, as the front hands it over: decrypted, its other end proved."""

    carried_by_tls = True

    def __init__(self, descriptor, local_address=None, rtt_us=None):
        super().__init__(fileno=descriptor)
        self.local_address, self.rtt_us = local_address, rtt_us  # of the connection to the peer, where we dialled
        self._reason = queue.SimpleQueue()
        self._view = None  # (TcpView, when it was told)

    def see(self, view):
        self._view = view, time.monotonic()

    def tcp_view(self):
        """What TCP says of the connection to the peer, a transport.TcpView; None if the front has not told lately."""
        view, at = self._view or (None, 0.0)
        age_s = time.monotonic() - at
        return view._replace(silent_s=view.silent_s + age_s) if view is not None and age_s < VIEW_OLD_S else None

    def tell(self, error):
        self._reason.put(error)

    def why_ended(self):
        """Once it has ended: the QrepError that says why, None if that is not known."""
        with contextlib.suppress(queue.Empty):
            return self._reason.get(timeout=REASON_S)
        return None


class KernelStream(Stream):
    """The same where the kernel encrypts. sending: the TCP connection itself; what is received comes through the front."""

    kernel_tls = True

    def __init__(self, descriptor, sending, *dialled):
        super().__init__(descriptor, *dialled)
        self.sending = socket.socket(fileno=sending)

    @property
    def send_fd(self):
        return self.sending.fileno()

    def send(self, data, flags=0):
        return self.sending.send(data, flags)

    def tcp_view(self):
        return tcp_view(self.sending)

    def shutdown(self, how):
        try:
            self.sending.shutdown(how)
        finally:
            super().shutdown(how)

    def close(self):
        self.sending.close()
        super().close()


class Network:
    """Thread-safe. listener: gets what comes in, in the thread that listens to the front; it must not wait.

    settings, limits: config.Node's sections. empty_root: a directory that only root can write to. events: EventLog.
    """

    def __init__(self, identity, settings, limits, peers, listener, events, empty_root):
        self._identity, self._settings, self._limits, self._peers = identity, settings, limits, peers
        self._listener, self._events, self._empty_root = listener, events, empty_root
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._waiting = {}  # number -> (queue of its one answer, the type of it)
        self._notes = Refusals(_print_note)
        self._streams = weakref.WeakValueDictionary()  # number -> Stream
        self._open = self._stopping = False
        self._ended = threading.Event()
        self._line = self._process = self._ready = None
        self._restarts = 0

    def start(self):
        """Bind the port, which open() opens. Raises QrepError."""
        self._start()
        self._thread = threading.Thread(target=self._listen, name="front", daemon=True)
        self._thread.start()

    # ---- the process ----

    def _start(self):
        """A front that is ready. Raises QrepError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "qrep.daemon.front.process", str(theirs.fileno())], pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, env=confined.environment(),
            )  # fmt: skip
        line = packets.Line(ours, talk.FRONT_SAYS, talk.DESCRIPTORS_MAX)
        try:
            self._ready = self._set_up(line)
        except BaseException:
            line.close()
            process.kill()
            process.wait()
            raise
        with self._lock:
            self._line, self._process, late = line, process, self._stopping
        if late:  # stop() has not seen it: the thread that listens does
            line.socket.shutdown(socket.SHUT_RDWR)
            return
        for name, peer in self._peers().items():
            self.trust(name, peer)
        if self._open:
            with contextlib.suppress(Unreachable):  # it is gone again: the thread that listens hears that
                self._say(talk.Open(number=next(self._numbers)))

    def _set_up(self, line):
        settings, limits, identity = self._settings, self._limits, self._identity
        uid, gid = confined.user(settings.user)
        with open(identity.key_path, "rb") as file:
            key = file.read()
        line.socket.settimeout(START_S)
        try:
            line.send(talk.Setup(
                listen=settings.listen, port=settings.port, certificate=identity.certificate, key=key, fingerprint=identity.fingerprint,
                half_open=limits.connections_half_open, connections=limits.connections,
                files=64 + limits.connections_half_open + 3 * (limits.connections + DIALS), uid=uid, gid=gid, empty_root=self._empty_root,
            ))  # fmt: skip
            answer, _none = line.receive()
        except packets.Gone as err:
            if isinstance(err.__cause__, TimeoutError):
                late = f"the process that faces the network was not ready within {START_S:.0f} s"
                raise Refused(late, hint="see what takes this host's processors, then start the agent again", code="front") from err
            raise Refused("the process that faces the network ended as it began", hint="the lines above say why", code="front") from err
        line.socket.settimeout(None)
        line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", TAKE_S, 0))  # a time-out of Python's would be receive()'s, too
        if isinstance(answer, talk.Failed):
            raise Refused(answer.message, hint=answer.hint, code=answer.code)
        if isinstance(answer, talk.Note):
            raise Refused(f"the process that faces the network failed as it began: {answer.text}", code="front")
        if not isinstance(answer, talk.Ready):
            raise ProtocolError("the front does not begin with Ready")
        return answer

    def open(self):
        """Let peers connect: they can when this returns."""
        self._open = True
        with contextlib.suppress(Unreachable):  # the front died meanwhile: the next one opens by itself
            self._ask(talk.Opened, START_S, lambda number: talk.Open(number=number))

    def stop(self):
        """Close the port and every connection."""
        with self._lock:
            self._stopping, line, process = True, self._line, self._process
        self._ended.set()
        if line is not None:
            with contextlib.suppress(OSError):
                line.socket.shutdown(socket.SHUT_RDWR)
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def seen(self):
        """When it was last known to be looked after: now (time.monotonic()), or long ago. Waiting for the front is what its thread does."""
        return time.monotonic() if self._thread.is_alive() else 0.0

    def status(self):
        """What is in force, as the kernel says it, not the front."""
        with self._lock:
            process, ready = self._process, self._ready
        found = {"pid": None, "restarts": self._restarts}
        rights = confined.rights(process.pid) if process is not None and process.poll() is None else None
        if rights is not None:  # it may end between the two
            found |= {"pid": process.pid, **rights, "landlock": ready.landlock, "empty_root": ready.empty_root}
        return found

    # ---- what the front says ----

    def _listen(self):
        pause_s = PAUSE_FIRST_S
        while self._line is not None:
            began = time.monotonic()
            reason = self._hear()
            self._line.close()  # whoever says something to it now is told that it is gone
            if self._stopping:
                return
            self._clean_up()
            self._events.add("front-ended", f"the process that faces the network ended: {reason}; connections are cut, runs resume")
            if time.monotonic() - began > WELL_S:
                pause_s = PAUSE_FIRST_S
            while not self._ended.wait(pause_s):
                pause_s = min(2 * pause_s, PAUSE_MAX_S)
                try:
                    self._start()
                except Exception as err:  # whatever it is: without this thread nobody could connect ever again
                    if not self._stopping:
                        self._events.add("front-ended", f"it could not be started again: {err}; the next try is in {pause_s:.1f} s")
                    continue
                if not self._stopping:
                    self._restarts += 1
                    self._events.add("front-restarted", "peers can connect again", pid=self._process.pid)
                break

    def _hear(self):
        """Until the front is gone; why it is."""
        try:
            while True:
                self._take(*self._line.receive())
        except packets.Gone:
            why = None
        except ProtocolError as err:  # it is not ours any more
            why = f"it does not speak as it should: {err}"
            self._process.kill()
        except Exception as err:  # a bug of ours: told with its place; without this thread nobody could connect ever again
            traceback.print_exc()
            why = f"what it said could not be taken: {err!r}"
            self._process.kill()
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return why or (f"killed by signal {-code}" if code < 0 else f"exit code {code}")

    def _take(self, packet, descriptors):
        if not _are_streams(descriptors, _families(packet)):
            for each in descriptors:
                os.close(each)
            raise ProtocolError(f"descriptors that do not belong to {type(packet).__name__}")
        if isinstance(packet, talk.Accepted):
            self._listener().accepted(self._adopt(packet.number, Stream(*descriptors)), packet.peer, packet.purpose, packet.host)
        elif isinstance(packet, talk.Plain):
            self._listener().accepted_plain(socket.socket(fileno=descriptors[0]), packet.token, packet.host)
        elif isinstance(packet, talk.Dialled):
            stream, answered = self._dialled(packet, descriptors), False
            try:
                answered = self._answer(packet.number, stream)
            finally:
                if not answered:
                    stream.close()  # whoever asked gave up, or did not ask for this
        elif isinstance(packet, talk.NotDialled | talk.Seen | talk.Opened | talk.Counted):
            self._answer(packet.number, packet)
        elif isinstance(packet, talk.Views):
            for number, *view in packet.views:
                stream = self._streams.get(number)
                if stream is not None:
                    stream.see(TcpView(*view))
        elif isinstance(packet, talk.Ended):
            stream = self._streams.get(packet.number)
            if stream is not None:
                stream.tell(ProtocolError(packet.reason) if packet.code == "protocol" else Disconnected(packet.reason))
        elif isinstance(packet, talk.Told):
            # Events are bounded by whom they are about: names that the front makes up are none of them.
            data = {"address": packet.address, "peer": packet.peer if packet.peer in self._peers() else "", "reason": packet.reason}
            if not self._stopping:
                self._events.add("peer-refused", packet.text, **{key: value for key, value in data.items() if value})
        elif isinstance(packet, talk.Note):
            self._notes.tell(packet.text)
        else:
            raise ProtocolError(f"{type(packet).__name__} is not for now")

    def _dialled(self, packet, descriptors):
        if packet.plain:
            return socket.socket(fileno=descriptors[0])
        stream = self._adopt(packet.number, (KernelStream if packet.kernel else Stream)(*descriptors, packet.local or None, packet.rtt_us))
        if packet.kernel and not kerneltls.encrypts(stream.sending):
            stream.close()
            raise ProtocolError("a connection to write to that the kernel does not encrypt")
        return stream

    def _adopt(self, number, stream):
        self._streams[number] = stream
        return stream

    def _answer(self, number, answer):
        """False: nobody waits for it any more. Raises ProtocolError when it answers something else than was asked."""
        with self._lock:
            waiting, wanted = self._waiting.get(number, (None, None))
            if waiting is not None and not _answers(answer, wanted):
                raise ProtocolError(f"{type(answer).__name__} for {wanted.__name__}")
            if waiting is not None:
                waiting.put(answer)
        return waiting is not None

    def _clean_up(self):
        with self._lock:
            self._line.close()
            self._line = self._process = None
            waiting = list(self._waiting.values())
        for each, _wanted in waiting:
            each.put(None)

    # ---- what the front is asked ----

    def _say(self, packet):
        """Raises Unreachable when there is no front."""
        with self._lock:
            line = self._line
        try:
            if line is not None:
                line.send(packet)
                return
        except packets.Gone:
            with contextlib.suppress(OSError):  # it may be there and take nothing: its thread ends it
                line.socket.shutdown(socket.SHUT_RDWR)
        raise Unreachable("the process that faces the network is being started again", hint="qrep events says why", code="front-restarting")

    def trust(self, name, peer):
        """A peer that is new. A front that is being started anew learns of it by itself."""
        with contextlib.suppress(Unreachable):
            self._say(talk.Trust(name=name, fingerprint=peer.fingerprint, certificate=peer.certificate))

    def distrust(self, name):
        with contextlib.suppress(Unreachable):
            self._say(talk.Distrust(name=name))

    def connect(self, address, purpose, peer, timeout=tls.CONNECT_S, source=None):
        """As tls.connect: a Stream to (host, port) whose other end is `peer` (config.Peer) and nobody else. Raises what that raises."""
        hosts = addresses_of(address[0], timeout)
        return self._ask(Stream, len(hosts) * (timeout + 2 * tls.GREETING_S), lambda number: talk.Dial(
            number=number, hosts=hosts, port=address[1], source=source, purpose=purpose, fingerprint=peer.fingerprint,
            certificate=peer.certificate, timeout=timeout,
        ))  # fmt: skip

    def connect_plain(self, address, timeout=tls.CONNECT_S, source=None):
        """A TCP connection to (host, port), for plain.join(); nobody has proved anything. Raises Unreachable."""
        hosts = addresses_of(address[0], timeout)
        return self._ask(socket.socket, len(hosts) * timeout, lambda number: talk.DialPlain(
            number=number, hosts=hosts, port=address[1], source=source, timeout=timeout,
        ))  # fmt: skip

    def half_open(self):
        """How many connections are in their handshake; 0 while there is no front."""
        try:
            return self._ask(talk.Counted, END_S, lambda number: talk.Count(number=number)).half_open
        except Unreachable:
            return 0

    def look(self, address, timeout=tls.HANDSHAKE_S):
        """As tls.look: the certificate (DER) that (host, port) presents, before it is trusted."""
        hosts = addresses_of(address[0], timeout)
        return self._ask(
            talk.Seen, 2 * timeout * len(hosts), lambda number: talk.Look(number=number, hosts=hosts, port=address[1], timeout=timeout)
        ).certificate

    def _ask(self, wanted, timeout, make):
        """The front's answer, of the type `wanted`. Raises Unreachable, and what the front was refused with."""
        answers = queue.SimpleQueue()
        number = next(self._numbers)
        with self._lock:
            self._waiting[number] = answers, wanted
        answer = None
        try:
            self._say(make(number))
            answer = answers.get(timeout=timeout + END_S)
        except queue.Empty:
            raise Unreachable(f"no connection within {timeout:g} s") from None
        finally:
            with self._lock:
                del self._waiting[number]
            with contextlib.suppress(queue.Empty):  # one that came just now is nobody's
                late = answers.get_nowait()
                if isinstance(late, socket.socket):
                    late.close()
        if answer is None:
            raise Unreachable("the process that faces the network ended", hint="qrep events says why", code="front-restarting")
        if isinstance(answer, talk.NotDialled):
            raise from_dict({"code": answer.code, "exit": answer.exit, "message": answer.message, "hint": answer.hint})
        return answer


def _answers(answer, wanted):
    """A Stream is a socket, but not what DialPlain asks for."""
    return isinstance(answer, (wanted, talk.NotDialled)) and (wanted is Stream or not isinstance(answer, Stream))


def _families(packet):
    """Of the sockets that come with what the front says, in order."""
    local, internet = (socket.AF_UNIX,), (socket.AF_INET, socket.AF_INET6)
    if isinstance(packet, talk.Plain) or (isinstance(packet, talk.Dialled) and packet.plain):
        return [internet]
    if isinstance(packet, talk.Dialled) and packet.kernel:
        return [local, internet]
    return [local] if isinstance(packet, talk.Accepted | talk.Dialled) else []


def _are_streams(descriptors, families):
    """Whether these are stream sockets of these families and nothing else; they stay as they are."""
    if len(descriptors) != len(families):
        return False
    for descriptor, wanted in zip(descriptors, families, strict=True):
        try:
            stream = socket.socket(fileno=descriptor)
        except OSError:  # no socket
            return False
        family, kind = stream.family, stream.type
        stream.detach()
        if family not in wanted or kind != socket.SOCK_STREAM:
            return False
    return True


def _print_note(text, **_data):
    text = "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)
    print(f"qrep error: front: {text}", file=sys.stderr, flush=True)
