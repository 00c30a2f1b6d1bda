"""The peer port. Everything before the handshake's end is bounded in time and number, and nothing of qrep's is parsed before it."""

import contextlib
import socket
import ssl
import threading
import time
from collections import Counter

from qrep.daemon import plain as plain_data
from qrep.daemon import tls
from qrep.daemon.halfopen import HalfOpen, Refusals
from qrep.errors import QrepError, Refused, Unreachable

ACCEPT_RETRY_S = 0.2
BACKLOG = 128


class Listener:
    """Each accepted connection is served in a thread; `serve` maps ALPN purposes to functions(stream, peer name), and plain.PURPOSE to one of
    (stream, token).

    peers(): name -> config.Peer of now.
    """

    def __init__(self, identity, settings, limits, peers, serve, events):
        self.identity, self.peers, self.serve = identity, peers, serve
        self.half_open, self._refusals = HalfOpen(limits.connections_half_open), Refusals(events)
        self._limit = limits.connections
        self._lock = threading.Lock()
        self._streams = {}  # stream -> peer name, of the connections that are served
        self._stopping = False
        self._sockets, self._threads = [], []
        try:
            for host in settings.listen:
                self._sockets.append(self._listen(host, settings.port))
        except OSError as err:
            self.stop()
            raise Refused(
                f"cannot listen on {host} port {settings.port}: {err.strerror or err}",
                hint="another agent may run there; [node] listen and port in qrep.toml change it",
                code="cannot-listen",
            ) from err
        self.addresses = [listening.getsockname()[:2] for listening in self._sockets]

    @staticmethod
    def _listen(host, port):
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind((host, port))
        except OSError:
            listening.close()
            raise
        return listening

    def start(self):
        """Open the port; until here connections to it are refused by the kernel."""
        for listening in self._sockets:
            listening.listen(BACKLOG)
            self._threads.append(threading.Thread(target=self._accept, args=(listening,), name="peer port", daemon=True))
            self._threads[-1].start()

    def stop(self):
        self._stopping = True
        for listening in self._sockets:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()

    def seen(self):
        """When it was last known to take connections: now (time.monotonic()), or long ago. Waiting for one is what its threads do."""
        return time.monotonic() if all(thread.is_alive() for thread in self._threads) else 0.0

    def counts(self):
        """{"peers": {name: connections that are served}, "half_open": those in their handshake}"""
        with self._lock:
            return {"peers": Counter(self._streams.values()), "half_open": len(self.half_open)}

    def drop(self, peer):
        """Cut the connections of a peer that is not trusted any more."""
        with self._lock:
            for stream, name in self._streams.items():
                if name == peer:
                    with contextlib.suppress(OSError, ValueError):
                        socket.socket.shutdown(stream, socket.SHUT_RDWR)  # below TLS, whose state belongs to its own thread

    def _accept(self, listening):
        while not self._stopping:
            try:
                plain, address = listening.accept()
            except OSError:
                if self._stopping:
                    return
                threading.Event().wait(ACCEPT_RETRY_S)  # out of descriptors: those in use come back
                continue
            threading.Thread(target=self._serve, args=(plain, address[0]), name=f"peer {address[0]}", daemon=True).start()

    def _serve(self, plain, host):
        deadline = time.monotonic() + tls.HANDSHAKE_S
        if self._is_plain(plain, host, deadline):
            return
        accepted = self._handshake(plain, host, deadline)
        if accepted is None:
            return
        stream, peer, purpose = accepted
        with self._lock:
            full = len(self._streams) >= self._limit
            if not full:
                self._streams[stream] = peer
        if full:
            stream.close()
            self._tell(f"{peer} ({host}): more than {self._limit} connections", address=host, peer=peer)
            return
        try:
            tls.welcome(stream)
            self.serve[purpose](stream, peer)
        except (Unreachable, ConnectionError, ssl.SSLEOFError):  # it went away, which is how connections end
            stream.close()
        except (QrepError, OSError) as err:
            stream.close()
            self._tell(f"{peer} ({host}): {err}", address=host, peer=peer, reason=getattr(err, "code", "connection"))
        except BaseException:  # a bug of ours: the peer must not wait for an answer, and the service log gets the place
            stream.close()
            raise
        finally:
            with self._lock:
                del self._streams[stream]

    def _is_plain(self, plain, host, deadline):
        """Serve it if it is a plain data connection, by its first byte; False: it is not, and nothing of it was read."""
        try:
            self.half_open.add(plain, host)
            try:
                if not plain_data.begins_plain(plain_data.peek(plain, deadline)):
                    return False
                tls.keep_alive(plain)
                token = plain_data.read_preamble(plain, deadline)
            finally:
                self.half_open.remove(plain)
            self.serve[plain_data.PURPOSE](plain, token)
        except (OSError, QrepError) as err:
            plain.close()
            self._tell(f"{host}: {_reason(err)}", address=host, reason=getattr(err, "code", "handshake"))
        return True

    def _handshake(self, plain, host, deadline):
        """(stream, peer, purpose), or None: it was closed and told of."""
        peers, stream = self.peers(), plain
        try:
            context = tls.server_context(self.identity, [peer.certificate for peer in peers.values()])
            tls.keep_alive(plain)
            stream = tls.wrap(context, plain, deadline - time.monotonic())
            self.half_open.add(stream, host)
            try:
                return stream, *tls.accept(stream, peers)
            finally:
                self.half_open.remove(stream)
        except (OSError, Refused) as err:
            stream.close()
            self._tell(f"{host}: {_reason(err)}", address=host, reason="handshake")
            return None

    def _tell(self, text, **data):
        if not self._stopping:
            self._refusals.tell(text, **data)


def _reason(err):
    if isinstance(err, ssl.SSLCertVerificationError):
        return "it presents a key that is not pinned here (qrep peer add pins it)"
    if isinstance(err, ssl.SSLError) and err.reason:
        return err.reason
    return getattr(err, "strerror", None) or str(err)
