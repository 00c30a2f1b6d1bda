"""Peers: the port they reach us at, and reaching them. Everything before the handshake's end is bounded in time and number."""

import contextlib
import socket
import threading

from qrep import config
from qrep.daemon import asks, tls
from qrep.errors import QrepError, Refused, Unreachable, UsageError
from qrep.protocol import transport

CONNECT_S = 5.0
ACCEPT_RETRY_S = 0.2


def parse_address(text, default_port=config.DEFAULT_PORT):
    """(host, port) of `10.0.1.2`, `host:7414`, `[fe80::1]:7414`, `fe80::1`. Raises UsageError."""
    host, port = text, default_port
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise UsageError(f"{text!r} is not an address", hint="write [ADDR]:PORT")
        port = rest[1:] or default_port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        port = int(port)
    except ValueError:
        port = 0
    if not host or not 0 < port < 65536:
        raise UsageError(f"{text!r} is not an address", hint="write ADDR, ADDR:PORT or [ADDR]:PORT")
    return host, port


class Listener:
    """The peer port. Each accepted connection is served in a thread; `serve` maps ALPN purposes to functions(stream, peer name)."""

    def __init__(self, identity, settings, limits, peers, serve, events):
        self.identity, self.peers, self.serve, self.events = identity, peers, serve, events
        self._half_open = threading.BoundedSemaphore(limits.connections_half_open)
        self._open = threading.BoundedSemaphore(limits.connections)
        self._stopping = False
        self._sockets = []
        try:
            for host in settings.listen:
                self._sockets.append(self._listen(host, settings.port))
        except OSError as err:
            self.stop()
            raise Refused(
                f"cannot listen on {host} port {settings.port}: {err.strerror}",
                hint="another agent may run there; [node] listen and port in qrep.toml change it",
                code="cannot-listen",
            ) from err
        self.addresses = [listening.getsockname()[:2] for listening in self._sockets]

    @staticmethod
    def _listen(host, port):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind((host, port))
            listening.listen(64)
        except OSError:
            listening.close()
            raise
        return listening

    def start(self):
        for listening in self._sockets:
            threading.Thread(target=self._accept, args=(listening,), name="peer port", daemon=True).start()

    def stop(self):
        self._stopping = True
        for listening in self._sockets:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()

    def _accept(self, listening):
        while not self._stopping:
            self._half_open.acquire()
            try:
                plain, address = listening.accept()
            except OSError:
                self._half_open.release()
                if self._stopping:
                    return
                threading.Event().wait(ACCEPT_RETRY_S)  # out of descriptors: those in use come back
                continue
            threading.Thread(
                target=self._handshake, args=(plain, address), name=f"peer {address[0]}", daemon=True
            ).start()

    def _handshake(self, plain, address):
        try:
            peers = self.peers()
            context = tls.server_context(self.identity, [peer.certificate for peer in peers.values()])
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream, peer, purpose = tls.accept(context, plain, peers)
        except OSError as err:
            if not self._stopping:
                self.events.add(
                    "peer-refused",
                    f"{address[0]}: {getattr(err, 'reason', None) or err.strerror or err}",
                    address=address[0],
                )
            return
        finally:
            self._half_open.release()
        if not self._open.acquire(blocking=False):
            stream.close()
            return
        try:
            self.serve[purpose](stream, peer)
        except (QrepError, OSError) as err:
            if not self._stopping:
                self.events.add("peer-refused", f"{peer} ({address[0]}): {err}", address=address[0], peer=peer)
        finally:
            self._open.release()


class Reach:
    """Reaching one peer by the first of its addresses that answers."""

    def __init__(self, identity, name, peer):
        self.identity, self.name, self.peer = identity, name, peer
        self.address = None  # the one that answered last

    def connect(self, purpose):
        errors = []
        for address in self._order():
            try:
                stream = tls.connect(self.identity, address, purpose, self.peer, CONNECT_S)
            except Unreachable as error:
                errors.append(error)
                continue
            self.address = address
            return stream
        raise Unreachable(
            f"peer {self.name} does not answer: {'; '.join(error.message for error in errors)}",
            hint=f"check the link and that qrep daemon runs on {self.name}",
            code="peer-unreachable",
        )

    def _order(self):
        addresses = [parse_address(text) for text in self.peer.addresses]
        return sorted(addresses, key=lambda address: address != self.address)

    def ask(self, question):
        try:
            return asks.ask(self.connect(tls.ASK), question)
        except Unreachable as error:
            error.hint = error.hint or f"on {self.name}: qrep peer add NAME ADDRESS-OF-THIS-HOST"
            raise

    def channel(self):
        """A control channel to the peer's target volumes."""
        return transport.Channel(self.connect(tls.CONTROL), "target")

    def data_connection(self, token, bucket=None):
        """A native connection that brought `token`, ready for frames, and the socket it lives on."""
        from qrep._native.connection import Connection

        index, stream = transport.join(self.connect(tls.DATA), token)
        return Connection.stream(stream, index, bucket)
