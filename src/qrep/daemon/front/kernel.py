"""A data connection whose kernel encrypts what is sent: the engine writes to the TCP connection itself, and the front only reads.

OpenSSL gives the kernel its keys at the end of the handshake, if the context may and the kernel takes them. From then on a plain write makes
TLS records. What comes is decrypted here as ever: OpenSSL 3.0 receives no TLS 1.3 through the kernel. Only the end that dials, which sends the
data, does this: on the other one OpenSSL would read record by record from the socket, and what it sends is a frame per connection.
"""

import contextlib
import socket
import threading
import time

from qrep import kerneltls
from qrep.daemon.front.relay import LAST_S, Relay
from qrep.daemon.front.stream import TlsStream
from qrep.errors import ProtocolError

REHEARSAL_S = 5.0


class KernelStream:
    """What TlsStream is, over OpenSSL's own socket. plain: the same connection beneath, for everything that is not TLS."""

    def __init__(self, context, plain):
        self.plain = plain
        # wrap_socket takes the descriptor it is given away, and half of the front knows the connection by it.
        self.tls = context.wrap_socket(plain.dup(), do_handshake_on_connect=False)
        self.settimeout(plain.gettimeout())

    @classmethod
    def client(cls, context, plain):
        return cls(context, plain)

    @property
    def encrypts(self):
        """Whether the kernel encrypts what is written to `plain`."""
        return kerneltls.encrypts(self.plain)

    def do_handshake(self):
        self.tls.do_handshake()

    def recv(self, size):
        return self.tls.recv(size)

    def getpeercert(self, binary_form=False):
        return self.tls.getpeercert(binary_form)

    def selected_alpn_protocol(self):
        return self.tls.selected_alpn_protocol()

    def settimeout(self, timeout):
        self.plain.settimeout(timeout)
        self.tls.settimeout(timeout)

    def shutdown(self):
        """Wake whoever waits in it, from any thread. Without close_notify: that would be a write, and END is what tells a whole stream."""
        with contextlib.suppress(OSError):
            self.plain.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.tls.close()
        self.plain.close()


class KernelRelay(Relay):
    """Of a KernelStream: from the peer to the engine, and never the other way."""

    def _fetch(self):
        return False  # OpenSSL reads from the socket itself

    def _move_outward(self):
        """Notice that the engine has hung up."""
        if self._engine_ended:
            return False
        try:
            data = self._local.recv(1)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            raise ProtocolError("the engine writes to the end it may only read from")
        self._engine_ended = True
        self._until = time.monotonic() + LAST_S
        return True


def works(client, server):
    """Whether OpenSSL and this kernel do it together, tried over loopback; contexts of front/contexts.py that trust each other."""
    if kerneltls.absent() is not None:
        return False
    try:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            near = socket.create_connection(listening.getsockname(), REHEARSAL_S)
            far, _address = listening.accept()
    except OSError:
        return False  # no loopback here, so nothing was tried
    far.settimeout(REHEARSAL_S)
    ours, theirs = KernelStream.client(client, near), TlsStream.server(server, far)
    thread = threading.Thread(target=_shake_hands, args=(theirs,))
    thread.start()
    try:
        _shake_hands(ours)
        return ours.encrypts
    finally:
        thread.join()
        ours.close()
        theirs.close()


def _shake_hands(stream):
    with contextlib.suppress(OSError):  # then the kernel has no keys, which is the answer
        stream.do_handshake()
