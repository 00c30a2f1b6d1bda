"""Reaching peers: their addresses, and the kinds of connections to them."""

import weakref

import msgspec

from qrep import config
from qrep.daemon import asks, plain, tls
from qrep.errors import Unreachable, UsageError
from qrep.protocol import transport

CONNECT_S = 5.0


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


class Reach:
    """Reaching one peer by the first of its addresses that answers."""

    def __init__(self, identity, name, peer):
        self.identity, self.name, self.peer = identity, name, peer
        self.address = None  # the one that answered last
        self._plain = weakref.WeakSet()  # data connections without TLS

    def connect(self, purpose):
        return self._first(lambda address: tls.connect(self.identity, address, purpose, self.peer, CONNECT_S))

    def only(self, text):
        """The same peer by one address, and by no other."""
        one = Reach(self.identity, self.name, msgspec.structs.replace(self.peer, addresses=[text]))
        one._plain = self._plain
        return one

    def test_channel(self):
        """For a bandwidth test (peertest.py)."""
        return transport.Channel(self.connect(tls.TEST), "tested")

    def _first(self, connect):
        """What connect(address) makes at the first address that answers."""
        errors = []
        for address in self._order():
            try:
                stream = connect(address)
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
        """A DataConnection that brought `token`, ready for frames; over TLS, or plain and with zero copy where the path is trusted."""
        if not self.peer.trusted:
            index, stream = transport.join(self.connect(tls.DATA), token)
            return transport.DataConnection(stream, index, bucket=bucket)
        index, stream = plain.join(self._first(lambda address: plain.connect(address, CONNECT_S)), token)
        connection = transport.DataConnection(stream, index, zero_copy=True, bucket=bucket)
        self._plain.add(connection)
        return connection

    def cut(self):
        """End the data connections that go on without TLS."""
        for connection in list(self._plain):
            connection.interrupt()
