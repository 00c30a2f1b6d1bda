"""Reaching peers: their addresses, and the kinds of connections to them."""

import weakref

from qrep import config
from qrep.daemon import asks, plain, tls
from qrep.errors import Unreachable, UsageError
from qrep.protocol import transport


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
    """Reaching one peer: over a given way, or by the first of its addresses that answers."""

    def __init__(self, network, name, peer):
        self.network, self.name, self.peer = network, name, peer
        self.address = None  # the one that answered last
        self.source = None  # and the address of this host that it was reached from
        self._plain = weakref.WeakSet()  # data connections without TLS

    def connect(self, purpose, way=None):
        """A TLS socket. way: (source address or None, (host, port)); None: any. Raises Unreachable, or Refused as tls.connect."""
        return self._first(lambda source, address: self.network.connect(address, purpose, self.peer, source=source), way)

    def test_channel(self, way):
        """For a bandwidth test (peertest.py)."""
        return transport.Channel(self.connect(tls.TEST, way), "tested")

    def _first(self, connect, way):
        """What connect(source address or None, address) makes over `way`, or at the first address that answers."""
        if way is not None:
            return connect(*way)
        errors = []
        for address in self._order():
            try:
                stream = connect(None, address)
            except Unreachable as error:
                errors.append(error)
                continue
            self.address, self.source = address, tls.local_address(stream)
            return stream
        raise self.unreachable(errors)

    def unreachable(self, errors):
        """The Unreachable that sums up what was raised by all ways to this peer."""
        return Unreachable(
            f"peer {self.name} does not answer: {'; '.join(error.message for error in errors)}",
            hint=f"check the link and that qrep daemon runs on {self.name}",
            code="peer-unreachable",
        )

    def _order(self):
        addresses = [parse_address(text) for text in self.peer.addresses]
        return sorted(addresses, key=lambda address: address != self.address)

    def resolve(self, text):
        """(host, port) of an address of this peer as a person writes it: without a port, its port is that of the peer's first one."""
        return parse_address(text, parse_address(self.peer.addresses[0])[1])

    def ask(self, question, way=None):
        try:
            return asks.ask(self.connect(tls.ASK, way), question)
        except Unreachable as error:
            error.hint = error.hint or f"on {self.name}: qrep peer add NAME ADDRESS-OF-THIS-HOST"
            raise

    def channel(self, way=None):
        """A control channel to the peer's target volumes."""
        return transport.Channel(self.connect(tls.CONTROL, way), "target")

    def data_connection(self, token, bucket=None, way=None):
        """A DataConnection that brought `token`, ready for frames; over TLS, or plain and with zero copy where the path is trusted."""
        if not self.peer.trusted:
            index, stream = transport.join(self.connect(tls.DATA, way), token)
            return transport.DataConnection(stream, index, bucket=bucket)
        index, stream = plain.join(self._first(lambda source, address: self.network.connect_plain(address, source=source), way), token)
        connection = transport.DataConnection(stream, index, zero_copy=True, bucket=bucket)
        self._plain.add(connection)
        return connection

    def cut(self):
        """End the data connections that go on without TLS."""
        for connection in list(self._plain):
            connection.interrupt()
