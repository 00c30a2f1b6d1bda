"""The front as a process: `python -m qrep.daemon.front.process N`, N being the descriptor of its line to the engine."""

import itertools
import os
import socket
import ssl
import sys
import threading
import time

from qrep import lockdown, packets
from qrep._native import sandbox
from qrep.daemon import tls
from qrep.daemon.front import talk
from qrep.daemon.front.contexts import Contexts
from qrep.daemon.front.dialler import Dialler
from qrep.daemon.front.kernel import KernelRelay, KernelStream
from qrep.daemon.front.port import Port
from qrep.daemon.front.relay import Relay
from qrep.daemon.front.screen import Screen
from qrep.daemon.halfopen import HalfOpen
from qrep.errors import ProtocolError, QrepError

DATA_BUFFER = 128 << 10  # bytes of a data connection's unix socket, each way; 1 MiB costs a tenth more: what waits in it leaves the cache
VIEW_S = 0.25  # how old TCP's account of a connection is at most when the engine hears it


class Front:
    """line: packets.Line to the engine. setup: talk.Setup. What its threads share: the pins, and the relays that are going."""

    def __init__(self, line, setup):
        self.line, self.setup = line, setup
        self.peers = {}  # name -> talk.Trust
        self._lock = threading.Lock()
        self._relays = {}  # number -> (Relay, peer name or "")
        self._any_dialled = threading.Event()  # a data connection of ours is among them
        self._numbers = itertools.count(1 << 32)  # of connections that came in; the engine numbers those it asks for, from 0
        self.contexts = Contexts(setup.certificate, setup.key)
        self.contexts.rehearse(setup.certificate)
        self.port = Port(self)
        self._dialler = Dialler(self)

    def serve(self):
        """Do what the engine says until it is gone."""
        threading.Thread(target=self._look, name="views", daemon=True).start()
        while True:
            packet, _none = self.line.receive()
            if isinstance(packet, talk.Trust):
                self._trust(packet)
            elif isinstance(packet, talk.Distrust):
                self._distrust(packet.name)
            elif isinstance(packet, talk.Open):
                self.port.open()
                self.line.send(talk.Opened(number=packet.number))
            elif isinstance(packet, talk.Dial):
                self._start(self._dialler.dial, packet)
            elif isinstance(packet, talk.DialPlain):
                self._start(self._dialler.dial_plain, packet)
            elif isinstance(packet, talk.Count):
                self.line.send(talk.Counted(number=packet.number, half_open=self.port.half_open()))
            elif isinstance(packet, talk.Look):
                self._start(self._dialler.look, packet)
            else:
                raise ProtocolError(f"{type(packet).__name__} is not for now")

    @staticmethod
    def _start(function, packet):
        threading.Thread(target=function, args=(packet,), name="dial", daemon=True).start()

    def _trust(self, peer):
        try:
            self.contexts.trust(peer.certificate)
        except ssl.SSLError as err:
            self.line.send(talk.Note(text=f"peer {peer.name}: its certificate cannot be read: {err.reason or err}"))
            return
        self.peers = {**self.peers, peer.name: peer}  # replaced, never changed: threads look at it

    def _distrust(self, name):
        self.peers = {other: peer for other, peer in self.peers.items() if other != name}
        with self._lock:
            for relay, peer in self._relays.values():
                if peer == name:
                    relay.cut()

    def _look(self):
        """Tell the engine, again and again, what TCP says of the data connections that we dialled: it cannot ask."""
        while True:
            self._any_dialled.wait()
            time.sleep(VIEW_S)
            with self._lock:
                going = [(number, relay) for number, (relay, peer) in self._relays.items() if relay.data and not peer]
                if not going:
                    self._any_dialled.clear()
            seen = [(number, view) for number, relay in going if (view := relay.view()) is not None]
            for first in range(0, len(seen), talk.VIEWS_MAX):
                self.line.send(talk.Views(views=[(number, *view) for number, view in seen[first : first + talk.VIEWS_MAX]]))

    def number(self):
        return next(self._numbers)

    def carry(self, stream, purpose, number, packet, peer=""):
        """Give the engine its end with `packet`, then relay until it is over. The stream is closed. peer "": we dialled."""
        local, theirs = socket.socketpair()
        if purpose == tls.DATA:
            for end in (local, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, DATA_BUFFER)
        by_kernel = isinstance(stream, KernelStream)
        try:
            relay = (KernelRelay if by_kernel else Relay)(stream, local, Screen(purpose, accepted=bool(peer)), data=purpose == tls.DATA)
            stream.settimeout(0.0)  # for the engine, too, which may write to it from now on
            with self._lock:
                self._relays[number] = relay, peer
                if relay.data and not peer:
                    self._any_dialled.set()
            try:
                with theirs:
                    self.line.send(packet, theirs.fileno(), *[stream.plain.fileno()] * by_kernel)
                if peer and peer not in self.peers:
                    relay.cut()  # it was removed in between
                code, reason = relay.run()
            finally:
                with self._lock:
                    del self._relays[number]
            self.line.send(talk.Ended(number=number, code=code, reason=reason[: talk.TEXT_MAX]))
        finally:
            stream.close()
            local.close()


def prepare(line, setup):
    """The Front, bound and locked down. Raises QrepError, OSError."""
    front = Front(line, setup)
    _warm_up()
    lockdown.keep_only({line.socket.fileno(), *front.port.descriptors()})
    try:
        rights = sandbox.enter(files=setup.files, uid=setup.uid, gid=setup.gid, empty_root=setup.empty_root or None)
    except OSError as err:
        raise QrepError(
            f"the process that is to face the network cannot give up its rights: {err.strerror}",
            hint="the agent needs a kernel with seccomp, and as root the capabilities SETUID, SETGID, SETPCAP and SYS_CHROOT",
            code="no-sandbox",
        ) from err
    line.send(talk.Ready(addresses=front.port.addresses, **rights))
    return front


def _warm_up():
    lockdown.warm_up()
    import encodings.idna  # noqa: F401

    "x".encode("idna")
    socket.getaddrinfo("127.0.0.1", 1, type=socket.SOCK_STREAM)
    crowd = HalfOpen(1)
    for _ in range(2):  # the second pushes the first out
        near, far = socket.socketpair()
        with near, far:
            crowd.add(near, "")


def _note(line, exception):
    lockdown.note(line, talk.Note, exception, talk.TEXT_MAX)


def main(descriptor):
    lockdown.begin()
    line = packets.Line(socket.socket(fileno=descriptor), talk.ENGINE_SAYS, talk.DESCRIPTORS_MAX)
    lockdown.tell_bugs(lambda exception: _note(line, exception))
    try:
        setup, _none = line.receive()
        if not isinstance(setup, talk.Setup):
            raise ProtocolError("it begins with Setup")
        try:
            front = prepare(line, setup)
        except (QrepError, OSError) as err:
            code = getattr(err, "code", "front")
            line.send(talk.Failed(message=str(err), hint=getattr(err, "hint", ""), code=code))
            return 1
        front.serve()
    except packets.Gone:
        return 0
    except BaseException as err:
        _note(line, err)
        return 1


if __name__ == "__main__":
    code = main(int(sys.argv[1]))
    os._exit(code)  # threads may be busy with connections that are nobody's now
