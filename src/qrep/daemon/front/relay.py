"""One connection between its TLS stream and the engine: decrypted bytes both ways, one buffer each, so that whoever is slow is waited for."""

import contextlib
import select
import socket
import ssl
import time

from qrep.errors import ProtocolError
from qrep.protocol import transport

ROOM = 128 << 10  # bytes of each direction at most; larger leaves the cache (measured with stream.READ_SIZE)
RECORD = 16 << 10  # bytes of plain text in a TLS record
LINGER_S = 1.0  # for the last words to be taken, once the engine has hung up
LAST_S = 10.0  # for them to be sent at all

NOTHING = memoryview(b"")


class Relay:
    """stream: a TlsStream after its handshake. local: our end of the engine's socket pair. screen: of what the peer says.
    data: whether it carries frames."""

    def __init__(self, stream, local, screen, data=False):
        self.data = data
        self._stream, self._tls, self._plain = stream, stream.tls, stream.plain
        self._local, self._screen = local, screen
        self._raw = memoryview(bytearray(ROOM))  # ciphertext as it came
        self._clear = memoryview(bytearray(ROOM + 2 * RECORD))  # decrypted
        self._own = memoryview(bytearray(ROOM))  # from the engine
        self._inward = self._outward = NOTHING  # decrypted and not handed on; ciphertext and not sent
        self._peer_ended = self._engine_ended = False
        self._cut = False

    def run(self):
        """Until one end is gone. Returns (code, reason) for the engine. Closes nothing; raises nothing that a peer or an engine can cause."""
        self._stream.settimeout(0.0)
        self._local.setblocking(False)
        try:
            while True:
                moved = self._move_inward() | self._move_outward()
                if self._peer_ended and not self._inward:
                    return "disconnected", "the peer closed the connection"
                if self._engine_ended and not self._outward:
                    self._linger()
                    return "disconnected", "closed here"
                if not moved and not self._wait():
                    return "disconnected", "the peer did not take the last words"
        except ProtocolError as err:
            return "protocol", err.message
        except ssl.SSLError as err:
            return "disconnected", f"the connection failed: TLS: {err.reason or err}"
        except OSError as err:
            return "disconnected", "the connection was cut" if self._cut else f"the connection failed: {err.strerror or err}"

    def cut(self):
        """End it at once, from another thread."""
        self._cut = True
        self._stream.shutdown()

    def view(self):
        """transport.TcpView, or None; from another thread."""
        return transport.tcp_view(self._plain)

    # ---- peer -> engine ----

    def _move_inward(self):
        if not self._inward and not self._peer_ended:
            got = self._decrypt()
            while not got and self._fetch():
                got = self._decrypt()
            if not got:
                return False
            self._inward = memoryview(self._screen.take(self._clear[:got]))
        if not self._inward:
            return True  # part of a message; more of it may have been decrypted
        try:
            self._inward = self._inward[self._local.send(self._inward) :]
        except BlockingIOError:
            return False
        except OSError:
            self._inward = NOTHING  # the engine does not listen any more; its last words may still be under way
        return True

    def _decrypt(self):
        """Bytes now in _clear, 0: more ciphertext is needed, or that was the end."""
        got = 0
        try:
            while got <= len(self._clear) - RECORD:
                count = self._tls.read(len(self._clear) - got, self._clear[got:])
                if not count:
                    self._peer_ended = True
                    break
                got += count
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._peer_ended = True
        return got

    def _fetch(self):
        """Take ciphertext from the network. False: there is none now, or never again."""
        if self._peer_ended:
            return False
        try:
            size = self._plain.recv_into(self._raw)
        except BlockingIOError:
            return False
        if size:
            self._stream.incoming.write(self._raw[:size])
        else:
            self._stream.incoming.write_eof()
        return True

    # ---- engine -> peer ----

    def _move_outward(self):
        moved = False
        if not self._outward and not self._engine_ended:
            moved = self._encrypt()
        if not self._outward and self._stream.outgoing.pending:
            self._outward = memoryview(self._stream.outgoing.read())
        if self._outward:
            with contextlib.suppress(BlockingIOError):
                self._outward = self._outward[self._plain.send(self._outward) :]
                moved = True
        return moved

    def _encrypt(self):
        try:
            size = self._local.recv_into(self._own)
        except BlockingIOError:
            return False
        except OSError:
            size = 0
        if not size:
            self._engine_ended = True
            self._until = time.monotonic() + LAST_S
            return True
        data = self._own[:size]
        while data:
            data = data[self._tls.write(data) :]
        return True

    # ---- waiting ----

    def _wait(self):
        """Until one of the sockets is ready for what is wanted of it. False: the end took too long."""
        poll = select.poll()
        network = (select.POLLOUT if self._outward else 0) | (0 if self._inward or self._peer_ended else select.POLLIN)
        engine = (select.POLLOUT if self._inward else 0) | (0 if self._outward or self._engine_ended else select.POLLIN)
        if network:
            poll.register(self._plain, network)
        if engine:
            poll.register(self._local, engine)
        if not self._engine_ended:
            poll.poll()
            return True
        left = self._until - time.monotonic()
        return left > 0 and bool(poll.poll(left * 1000))

    def _linger(self):
        """Everything was sent. A socket closed with something unread would be reset, and the last words with it."""
        with contextlib.suppress(OSError):
            self._plain.shutdown(socket.SHUT_WR)
            self._plain.settimeout(LINGER_S)
            until = time.monotonic() + LINGER_S
            while self._plain.recv_into(self._raw) and time.monotonic() < until:
                pass
