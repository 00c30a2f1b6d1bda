"""The peer port. Everything before the handshake's end is bounded in time and number, and nothing of qrep's is parsed before it."""

import socket
import ssl
import threading
import time

from qrep.daemon import plain as plain_data
from qrep.daemon import tls
from qrep.daemon.front import talk
from qrep.daemon.front.stream import TlsStream
from qrep.daemon.halfopen import HalfOpen, Refusals
from qrep.errors import QrepError, Refused

ACCEPT_RETRY_S = 0.2
BACKLOG = 128


class Room:
    """Places for connections of peers: `limit` in all, and half of them for one peer, so that none keeps the others out. Thread-safe."""

    def __init__(self, limit):
        self._limit, self._lock, self._taken = limit, threading.Lock(), {}  # peer -> places

    def take(self, peer):
        """Why there is none, "" if it is taken."""
        with self._lock:
            mine = self._taken.get(peer, 0)
            if sum(self._taken.values()) >= self._limit:
                return f"more than {self._limit} connections"
            if mine >= max(1, self._limit // 2):
                return f"more than {mine} connections, half of all there may be"
            self._taken[peer] = mine + 1
            return ""

    def give_back(self, peer):
        with self._lock:
            self._taken[peer] -= 1
            if not self._taken[peer]:
                del self._taken[peer]


class Port:
    """The listening sockets of the front, bound at once, open from open() on. Each accepted connection is served in a thread."""

    def __init__(self, front):
        self._front = front
        self._half_open, self._refusals = HalfOpen(front.setup.half_open), Refusals(self._tell)
        self._room = Room(front.setup.connections)
        self._sockets = []
        for host in front.setup.listen:
            try:
                self._sockets.append(self._bind(host, front.setup.port))
            except OSError as err:
                raise Refused(
                    f"cannot listen on {host} port {front.setup.port}: {err.strerror or err}",
                    hint="another agent may run there; [node] listen and port in qrep.toml change it",
                    code="cannot-listen",
                ) from err
        self.addresses = [listening.getsockname()[:2] for listening in self._sockets]

    @staticmethod
    def _bind(host, port):
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((host, port))
        return listening

    def descriptors(self):
        return [listening.fileno() for listening in self._sockets]

    def open(self):
        for listening in self._sockets:
            listening.listen(BACKLOG)
            threading.Thread(target=self._accept, args=(listening,), name="peer port", daemon=True).start()

    def _accept(self, listening):
        while True:
            try:
                plain, address = listening.accept()
            except OSError:  # out of descriptors: those in use come back
                threading.Event().wait(ACCEPT_RETRY_S)
                continue
            threading.Thread(target=self._serve, args=(plain, address[0]), name=f"peer {address[0]}", daemon=True).start()

    def _serve(self, plain, host):
        front, deadline = self._front, time.monotonic() + tls.HANDSHAKE_S
        accepted = self._begin(plain, host, deadline)
        if accepted is None:
            return
        stream, peer, purpose = accepted
        none = self._room.take(peer)
        if none:
            stream.close()
            self.refuse(f"{peer} ({host}): {none}", address=host, peer=peer)
            return
        try:
            tls.welcome(stream)
            if purpose == tls.DATA:
                tls.tune_data(plain)
            number = front.number()
            front.carry(stream, purpose, number, talk.Accepted(number=number, peer=peer, purpose=purpose, host=host), peer)
        except OSError:  # it went away, which is how connections end
            stream.close()
        finally:
            self._room.give_back(peer)

    def _begin(self, plain, host, deadline):
        """(stream, peer, purpose) after a handshake; None: it was a plain data connection, or it was closed and told of."""
        stream = plain
        self._half_open.add(plain, host)
        try:
            first = plain_data.peek(plain, deadline)
            tls.keep_alive(plain)
            if plain_data.begins_plain(first):
                with plain:
                    token = plain_data.read_preamble(plain, deadline)
                    self._front.line.send(talk.Plain(token=token, host=host), plain.fileno())
                return None
            plain.settimeout(max(0.001, deadline - time.monotonic()))
            stream = TlsStream.server(self._front.contexts.server, plain)
            return stream, *tls.accept(stream, self._front.peers)
        except (OSError, QrepError) as err:
            stream.close()
            self.refuse(f"{host}: {_reason(err)}", address=host, reason="handshake")
            return None
        finally:
            self._half_open.remove(plain)

    def half_open(self):
        return len(self._half_open)

    def refuse(self, text, **data):
        """Tell of a connection that was closed, within bounds."""
        self._refusals.tell(text, **data)

    def _tell(self, text, **data):
        names = {key: str(data.get(key, "")) for key in ("address", "peer", "reason")}
        self._front.line.send(talk.Told(text=text[: talk.TEXT_MAX], **names))


def _reason(err):
    if isinstance(err, ssl.SSLCertVerificationError):
        if tls.is_date(err):
            return f"{err.verify_message}; it was refused (the clocks of both hosts, or a new key on that one, mend it)"
        return "it presents a key that is not pinned here (qrep peer add pins it)"
    if isinstance(err, ssl.SSLError) and err.reason:
        return err.reason
    return getattr(err, "strerror", None) or str(err)
