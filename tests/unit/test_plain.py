"""How a plain data connection is told from TLS, and what its first bytes may cost."""

import socket
import threading
import time

import pytest

from qrep.daemon import plain
from qrep.errors import ProtocolError, Unreachable
from qrep.protocol.transport import Channel, DataConnection, Owner, Rendezvous, welcome

TOKEN = bytes(range(32))


@pytest.fixture
def ends():
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def soon(seconds=10):
    return time.monotonic() + seconds


@pytest.mark.parametrize("first", [b"\x16\x03\x01", b"\x16", b"GET /", b"SSH-2.0", b"\0", b"", b"\x80\x2e\x01", b"QREP"])
def test_nothing_that_anyone_else_begins_with_is_taken_for_plain(first):
    assert not plain.begins_plain(first)


def test_the_preamble_is_40_bytes_of_magic_and_token():
    assert plain.begins_plain(plain.MAGIC[:1]) and plain.begins_plain(plain.MAGIC + TOKEN)
    assert plain.PREAMBLE_SIZE == 40 and plain.token_of(plain.MAGIC + TOKEN) == TOKEN
    for wrong in (plain.MAGIC + TOKEN[:-1], plain.MAGIC + TOKEN + b"x", plain.MAGIC[:-1] + b"2" + TOKEN, b""):
        assert plain.token_of(wrong) is None


def test_looking_leaves_the_first_byte_where_it_is(ends):
    one, other = ends
    one.sendall(b"\x16\x03")
    assert plain.peek(other, soon()) == b"\x16"
    assert other.recv(10) == b"\x16\x03"


def test_a_preamble_in_pieces_is_read_whole_and_not_one_byte_more(ends):
    one, other = ends

    def trickle():
        for byte in plain.MAGIC + TOKEN:
            one.sendall(bytes([byte]))
        one.sendall(b"frames")

    thread = threading.Thread(target=trickle)
    thread.start()
    assert plain.read_preamble(other, soon()) == TOKEN
    thread.join()
    assert other.gettimeout() is None and other.recv(100) == b"frames"


def test_a_preamble_that_ends_early_or_is_another_is_refused(ends):
    one, other = ends
    one.sendall(bytes([plain.MAGIC[0]]) + bytes(39))
    with pytest.raises(ProtocolError):
        plain.read_preamble(other, soon())
    one.sendall(plain.MAGIC + TOKEN[:5])
    one.shutdown(socket.SHUT_WR)
    with pytest.raises(ProtocolError):
        plain.read_preamble(other, soon())


def test_bytes_that_drip_do_not_stretch_the_time(ends):
    """Each byte comes well before any timeout of a single read."""
    one, other = ends
    began, ended = time.monotonic(), threading.Event()

    def drip():
        for byte in plain.MAGIC + TOKEN[:-1]:
            if ended.wait(0.05):
                return
            one.sendall(bytes([byte]))

    thread = threading.Thread(target=drip)
    thread.start()
    with pytest.raises((TimeoutError, ProtocolError)):
        plain.read_preamble(other, began + 0.3)
    ended.set()
    thread.join()
    assert time.monotonic() - began < 1.5  # 39 bytes would have taken two seconds, and a timeout of each read for ever


def test_a_token_is_good_for_the_kind_of_connection_and_the_peer_it_was_given_to(ends):
    one, other = ends
    rendezvous, owner = Rendezvous(), Owner("site-a", True)
    (token,) = rendezvous.of(owner).offer(1)

    def deliver(fits):
        return rendezvous.deliver(token, lambda index: DataConnection(welcome(Channel(other, "source"), index), index), fits)

    assert rendezvous.deliver(token, lambda index: pytest.fail("a connection of this process")) is None
    for stranger in (Owner("site-a", False), Owner("site-c", True), None):
        assert deliver(lambda found, stranger=stranger: found == stranger) is None
    joined = []
    thread = threading.Thread(target=lambda: joined.append(plain.join(one, token)))
    thread.start()
    assert plain.read_preamble(other, soon()) == token
    assert deliver(lambda found: found == owner) == 0
    thread.join()
    assert joined[0][0] == 0 and deliver(lambda found: found == owner) is None, "good once"
    rendezvous.of(owner).wait(token).close()


def test_a_target_that_closes_is_told_as_unreachable(ends):
    one, other = ends
    other.close()
    with pytest.raises(Unreachable):
        plain.join(one, TOKEN)
