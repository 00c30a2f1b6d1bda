"""How messages (messages.py) cross a stream, and how data connections find their run.

A Channel never reads past the message it returns, so a connection may turn into a data connection after its first message.
"""

import contextlib
import os
import secrets
import select
import socket
import ssl
import struct
import threading
import time
from typing import NamedTuple

from qrep._native import sockets
from qrep._native.connection import Connection
from qrep.errors import ProtocolError, TimedOut, Unreachable
from qrep.protocol import messages

FIRST_MAX = 4096  # bytes of the first message of a connection, whose peer has not proved anything yet
FIRST = ("join", "source")  # who may say it
TOKEN_SIZE = 32
TLS_RECORD = (16 << 10, 22)  # bytes of a record of TLS 1.3, and what is on the wire beside them: header 5, type 1, tag 16


class Disconnected(Unreachable):
    """The stream ended, or was closed here."""

    code = "disconnected"


class PipeStream:
    """Two pipe ends as one stream, for instance the standard input and output of an ssh command."""

    def __init__(self, receive_fd, send_fd):
        self.receive_fd, self.send_fd = receive_fd, send_fd
        for descriptor in (receive_fd, send_fd):
            os.set_blocking(descriptor, False)

    def fileno(self):
        return self.receive_fd

    def recv_into(self, buffer):
        return os.readv(self.receive_fd, [buffer])

    def send(self, data):
        return os.write(self.send_fd, data)

    def close(self):
        for descriptor in {self.receive_fd, self.send_fd}:
            os.close(descriptor)


class Channel:
    """Messages over a stream: a socket, a TLS socket or a PipeStream; it owns the stream from here on.

    One thread receives; any thread may send. The stream is never blocked on, only waited for, because a TLS socket cannot be
    read and written at once: one lock guards it, and nobody holds that lock while waiting.
    """

    def __init__(self, stream, peer, send_timeout=30.0):
        """peer: who is at the other end, `source` or `target`, as messages.decode names them.

        send_timeout: seconds a message may take to leave; longer is a dead peer.
        """
        self.stream, self.peer, self.send_timeout = stream, peer, send_timeout
        self.closed = False
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._partial = bytearray()
        self.heard = time.monotonic()  # when the last bytes came, also those of a message that is not whole
        if hasattr(stream, "setblocking"):
            stream.setblocking(False)

    def send(self, message):
        """Send one message. Raises Disconnected when the peer is gone or does not take it in time."""
        data = memoryview(messages.encode(message))
        with self._send_lock:
            deadline = time.monotonic() + self.send_timeout
            while data:
                sent, events = self._attempt(lambda: self.stream.send(data), select.POLLOUT)
                if sent is not None:
                    data = data[sent:]
                elif not self._wait(events, deadline):
                    self.close()
                    raise Disconnected(f"the peer took no message for {self.send_timeout:g} s")

    def receive(self, timeout=None, limit=messages.MESSAGE_MAX, senders=()):
        """The next message. timeout: seconds, None waits for ever. limit: bytes of body accepted. senders: instead of `peer`.

        Raises TimedOut (call again; nothing is lost), Disconnected, ProtocolError on bytes that are no message: close it then.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        prefix = messages.LENGTH.size
        self._fill(prefix, deadline)
        size = messages.body_size(self._partial[:prefix])
        if size > limit:
            raise ProtocolError(f"a first message of {size} bytes was announced; the limit is {limit}")
        self._fill(prefix + size, deadline)
        body, self._partial = bytes(self._partial[prefix:]), bytearray()
        return self._decode(body, senders or (self.peer,))

    @staticmethod
    def _decode(body, senders):
        for sender in senders[:-1]:
            with contextlib.suppress(ProtocolError):
                return messages.decode(body, sender)
        return messages.decode(body, senders[-1])

    def _fill(self, size, deadline):
        """Have `size` bytes of the present message, and not one more."""
        while len(self._partial) < size:
            part = bytearray(min(size - len(self._partial), 1 << 16))
            got, events = self._attempt(lambda part=part: self.stream.recv_into(part), select.POLLIN)
            if got is None:
                if not self._wait(events, deadline):
                    raise TimedOut("no message from the peer in time")
            elif got == 0:
                why = getattr(self.stream, "why_ended", lambda: None)()
                self.close()
                raise why or Disconnected("the peer closed the connection")
            else:
                self._partial += part[:got]
                self.heard = time.monotonic()

    def _attempt(self, operation, events):
        """(result, 0), or (None, what to wait for)."""
        with self._lock:
            if self.closed:
                raise Disconnected("the connection was closed")
            try:
                return operation(), 0
            except ssl.SSLWantWriteError:
                return None, select.POLLOUT
            except ssl.SSLWantReadError:
                return None, select.POLLIN
            except BlockingIOError:
                return None, events
            except ssl.SSLZeroReturnError:
                return 0, 0
            except OSError as err:
                error = Disconnected(f"the connection failed: {err.strerror or err}")
                cause = err
        self.close()
        raise error from cause

    def _wait(self, events, deadline):
        """Wait until the stream may be ready; False at the deadline. Looks at `closed` every half second."""
        while True:
            left = 0.5 if deadline is None else min(0.5, deadline - time.monotonic())
            if left <= 0:
                return False
            with self._lock:
                if self.closed:
                    raise Disconnected("the connection was closed")
                descriptor = self.stream.fileno()
                if events == select.POLLOUT:
                    descriptor = getattr(self.stream, "send_fd", descriptor)
            poll = select.poll()
            poll.register(descriptor, events)
            if poll.poll(left * 1000):
                return True

    def detach(self):
        """Give the stream up, blocking as data connections want it; the channel is then closed, the stream is not."""
        with self._lock:
            if self.closed:
                raise Disconnected("the connection was closed")
            self.closed = True
            stream = self.stream
        if hasattr(stream, "setblocking"):
            stream.setblocking(True)
        else:
            os.set_blocking(stream.receive_fd, True)
            os.set_blocking(stream.send_fd, True)
        return stream

    def close(self):
        """Close the stream; whoever waits in receive() or send() gets Disconnected. Safe to call twice, from any thread."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            if hasattr(self.stream, "shutdown"):
                with contextlib.suppress(OSError, ValueError):
                    self.stream.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                self.stream.close()


def local_pair():
    """Two connected channels inside one process: (source end, target end)."""
    one, other = socket.socketpair()
    return Channel(one, "target"), Channel(other, "source")


def join(stream, token, timeout=10.0):
    """Offer `token` on a fresh connection to a target; returns (connection index, the stream, ready for frames).

    Raises ProtocolError or Disconnected if the target does not want it, TimedOut; the stream is closed then.
    """
    channel = Channel(stream, "joined")
    try:
        channel.send(messages.Join(token=bytes(token)))
        return channel.receive(timeout, limit=FIRST_MAX).index, channel.detach()
    except BaseException:
        channel.close()
        raise


def admit(channel, timeout=10.0, *, tell=False):
    """The first message of an accepted connection, authenticated or not: a Hello of a control connection, or a Join. tell: a peer whose message is none
    is told why; only where the peer is known.

    Raises as Channel.receive; the channel is closed then.
    """
    try:
        return channel.receive(timeout, limit=FIRST_MAX, senders=FIRST)
    except BaseException as err:
        refuse(channel, err) if tell else channel.close()
        raise


def refuse(channel, error):
    """Close a channel whose peer said something that is no message, perhaps because it is a newer program, and tell it so first."""
    if isinstance(error, ProtocolError):
        with contextlib.suppress(Disconnected):
            channel.send(messages.Error(code=error.code, message=error.message[:2000], hint=error.hint[:2000]))
    channel.close()


def welcome(channel, index):
    """Answer a Join whose token was good: the stream, ready for frames, of connection `index`."""
    channel.send(messages.Joined(index=index))
    return channel.detach()


class TcpView(NamedTuple):
    """TCP's account of a connection. unacked: segments on their way. probes: of a closed window, sent since the last answer.
    silent_s: since any acknowledgement came."""

    unacked: int
    probes: int
    silent_s: float


# The beginning of struct tcp_info of linux/tcp.h: 8 bytes (the fourth: probes), then u32s (the fifth: unacked; 13th: last_ack_recv, ms).
_TCP_INFO = struct.Struct("<3xB4x16xI28xI")


def tcp_view(stream):
    """The TcpView of a stream, None if it is not TCP, or is closed."""
    if hasattr(stream, "tcp_view"):
        return stream.tcp_view()
    if getattr(stream, "family", None) not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        info = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError:
        return None
    if len(info) < _TCP_INFO.size:
        return None
    probes, unacked, silent_ms = _TCP_INFO.unpack(info)
    return TcpView(unacked, probes, silent_ms / 1000)


class DataConnection:
    """A stream that carries frames, and what the lanes make of it; used by one lane, once.

    native: `_native.connection.Connection`, to be given to a lane. Close it when the lane has returned, not before (R12).
    """

    def __init__(self, stream, index, *, zero_copy=False, bucket=None):
        """stream: a connected socket, TLS socket or PipeStream, blocking; ours from here on. index: inside the session."""
        self.stream, self.zero_copy = stream, False
        self.kernel_tls = getattr(stream, "kernel_tls", False)  # the kernel encrypts what is sent, which goes to a socket of its own
        self.rtt_us = getattr(stream, "rtt_us", None)  # as the handshake measured it, where that can be asked for
        if getattr(stream, "family", None) in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):  # a connection that broke meanwhile says so when a lane uses it
                # No time-out of the kernel's: a target that flushes for long takes nothing meanwhile, and is not gone.
                tuned = sockets.tune(stream.fileno(), user_timeout_ms=0, zero_copy=zero_copy)
                # With less the kernel makes such a sender wait for every packet; a process without CAP_NET_ADMIN may get less.
                self.rtt_us = tuned["rtt_us"]
                self.zero_copy = zero_copy and tuned["send_buffer"] >= sockets.ZERO_COPY_SNDBUF
        if isinstance(stream, PipeStream):
            self.native = Connection.pipes(stream.receive_fd, stream.send_fd, index, bucket=bucket)
        elif isinstance(stream, ssl.SSLSocket):
            self.native = Connection.stream(stream, index, bucket=bucket)
            self.native.count_records(*TLS_RECORD)
        else:
            send_fd = stream.send_fd if self.kernel_tls else -1
            self.native = Connection.socket(stream.fileno(), index, zero_copy=self.zero_copy, send_fd=send_fd, bucket=bucket)
            if getattr(stream, "carried_by_tls", False):
                self.native.count_records(*TLS_RECORD)

    def view(self):
        """Its TcpView, or None."""
        return tcp_view(self.stream)

    def interrupt(self):
        """Wake a lane that is blocked in this stream, after its run was told to stop. The stream is of no use afterwards."""
        for stream in (getattr(self.stream, "sending", None), self.stream):
            if hasattr(stream, "shutdown"):
                with contextlib.suppress(OSError, ValueError):
                    # The socket below TLS: SSLSocket.shutdown would drop the TLS state the lane is using.
                    socket.socket.shutdown(stream, socket.SHUT_RDWR)

    def close(self):
        with contextlib.suppress(OSError):
            self.stream.close()


class Owner(NamedTuple):
    """Whose data connections a session waits for. plain: both ends trust the path, so they come without TLS, and only so."""

    peer: str
    plain: bool


class Rendezvous:
    """Where a run waits for its data connections. The run offers one-use tokens; whoever accepts connections delivers them.

    Thread-safe. A token that was withdrawn, used or never offered delivers nothing.
    """

    def __init__(self):
        self._condition = threading.Condition()
        self._offered = {}  # token -> (index, owner); until the connection is taken or the token withdrawn
        self._used = set()
        self._arrived = {}  # token -> connection

    def offer(self, count, first=0, owner=None):
        """`count` fresh tokens; the connection that brings the i-th is number first + i of its session. owner: an Owner, None: of this process."""
        tokens = [secrets.token_bytes(TOKEN_SIZE) for _ in range(count)]
        with self._condition:
            self._offered.update((token, (index, owner)) for index, token in enumerate(tokens, first))
        return tokens

    def of(self, owner):
        """This, for a session of `owner`: tokens that it offers are good for connections of that owner only."""
        return OwnedRendezvous(self, owner)

    def deliver(self, token, make_connection, fits=lambda owner: owner is None):
        """A connection brought `token`: make_connection(index) answers Joined(index) and makes a DataConnection of it.

        fits(owner): whether a connection of this kind may bring a token of that owner; where not, the token is not used up.
        Returns the index, or None if nobody waits for this token (then nothing was made of it, or it was closed again).
        """
        token = bytes(token)
        with self._condition:
            if token not in self._offered or token in self._used or not fits(self._offered[token][1]):
                return None
            self._used.add(token)
            index = self._offered[token][0]
        connection = make_connection(index)
        with self._condition:
            if token in self._offered:
                self._arrived[token] = connection
                self._condition.notify_all()
                return index
        connection.close()  # withdrawn meanwhile
        return None

    def wait(self, token, timeout=30.0):
        """The connection that brought `token`. Raises TimedOut, or Disconnected once it was withdrawn; it is forgotten then."""
        with self._condition:
            self._condition.wait_for(lambda: token in self._arrived or token not in self._offered, timeout)
            offered, connection = self._forget(token)
        if connection is not None:
            return connection
        if offered:
            raise TimedOut(f"a data connection did not arrive within {timeout:g} s")
        raise Disconnected("nobody waits for this data connection any more")

    def withdraw(self, tokens):
        """Forget tokens and close what came for them but was not taken; wakes whoever waits for one."""
        with self._condition:
            forgotten = [self._forget(token)[1] for token in tokens]
            self._condition.notify_all()
        for connection in forgotten:
            if connection is not None:
                connection.close()

    def _forget(self, token):
        self._used.discard(token)
        return self._offered.pop(token, None) is not None, self._arrived.pop(token, None)


class OwnedRendezvous:
    """A Rendezvous as one session sees it."""

    def __init__(self, rendezvous, owner):
        self.owner, self.wait, self.withdraw = owner, rendezvous.wait, rendezvous.withdraw
        self._rendezvous = rendezvous

    def offer(self, count, first=0):
        return self._rendezvous.offer(count, first, self.owner)
