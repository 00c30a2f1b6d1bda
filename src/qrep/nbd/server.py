"""Clients of one export: accepted, limited, served by a thread each."""

import contextlib
import mmap
import socket
import struct
import threading
import time
from collections import Counter

from qrep.nbd import wire
from qrep.nbd.handshake import Fatal, Handshake
from qrep.nbd.transmission import Ended, FlushFailed, Transmission

HANDSHAKE_S = 10.0  # for all of it
STALL_S = 60  # within a request or a reply; between requests a client may be silent for ever
BUFFER = (2 << 20) + 4096  # bytes of a connection's; longer requests go through it in pieces
FIRST_PAUSE_S = 0.1  # after an accept that failed for want of something


class Stream:
    """A connected socket, all or nothing. Raises transmission.Ended."""

    def __init__(self, sock):
        self.socket = sock
        self.deadline = None  # of the handshake

    def limit_silence(self):
        """The kernel's time limits: a blocking call costs nothing more than one without."""
        self.socket.settimeout(None)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self.socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", STALL_S, 0))

    def receive_into(self, view, idle=False):
        """Fill it. idle: silence before the first byte is no stall."""
        while len(view):
            self._hurry()
            try:
                got = self.socket.recv_into(view)
            except BlockingIOError:
                if idle:
                    continue
                raise Ended(f"silent for {STALL_S} s within a request") from None
            except OSError as err:  # TimeoutError, too
                raise Ended(str(err)) from err
            if not got:
                raise Ended("the connection ended")
            view, idle = view[got:], False

    def receive(self, size):
        data = bytearray(size)
        self.receive_into(memoryview(data))
        return bytes(data)

    def send(self, *buffers):
        views = [memoryview(buffer) for buffer in buffers if len(buffer)]
        while views:
            self._hurry()
            try:
                sent = self.socket.sendmsg(views)
            except OSError as err:
                raise Ended(f"not taken: {err}") from err
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if views:
                views[0] = views[0][sent:]

    def _hurry(self):
        """However slowly it trickles, a handshake has one limit."""
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise Ended(f"no handshake within {HANDSHAKE_S:g} s")
            self.socket.settimeout(left)


def shake_hands(stream, export):
    """The finished Handshake. Raises Ended."""
    stream.deadline = time.monotonic() + HANDSHAKE_S
    talk = Handshake(export)
    stream.send(wire.GREETING)
    try:
        talk.client_flags(stream.receive(wire.CLIENT_FLAGS.size))
        while talk.done is None:
            option, length = talk.header(stream.receive(wire.OPTION.size))
            stream.send(talk.option(option, stream.receive(length)))
    except Fatal as err:
        raise Ended(str(err)) from err
    stream.deadline = None
    return talk


class Server:
    """export: handshake.Export. content: what it holds. limit: connections at once. on_flush_failed(text): must not return."""

    def __init__(self, export, content, limit, *, on_flush_failed, on_bug, on_full=lambda: None):
        self.export, self.content, self._limit = export, content, limit
        self._on_flush_failed, self._on_bug, self._on_full = on_flush_failed, on_bug, on_full
        self.counts = Counter()  # of connections that have ended
        self._going = {}  # Stream -> Counter
        self._lock = threading.Lock()

    def figures(self):
        with self._lock:
            total = sum(self._going.values(), Counter(self.counts))
            return {name: total[name] for name in ("requests", "read", "written", "refused")} | {"connections": len(self._going)}

    def listen(self, listening):
        """Accept for ever, in this thread."""
        while True:
            try:
                sock, _address = listening.accept()
            except OSError:  # out of descriptors or memory, or the client left already
                time.sleep(FIRST_PAUSE_S)
                continue
            self.serve(sock)

    def serve(self, sock, *, trusted=False):
        """Serve a connected socket by a thread of its own; closed at the end. trusted: without a handshake, and whatever the limit."""
        stream, counts = Stream(sock), Counter()
        with self._lock:
            if len(self._going) >= self._limit and not trusted:
                self.counts["refused"] += 1
                sock.close()
                return
            self._going[stream] = counts
        if sock.family != socket.AF_UNIX:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        try:
            threading.Thread(target=self._work, args=(stream, counts, trusted), name="client", daemon=True).start()
        except RuntimeError:  # no thread is to be had
            self._end(stream)

    def _work(self, stream, counts, trusted):
        try:
            structured = False
            if not trusted:
                talk = shake_hands(stream, self.export)
                if not talk.done:
                    return
                structured = talk.structured
            stream.limit_silence()
            buffer = mmap.mmap(-1, BUFFER)  # goes with the last view of it
            Transmission(stream, self.export, self.content, buffer, structured=structured, counts=counts, on_full=self._on_full).serve()
        except Ended:
            pass  # what a client does is no event
        except FlushFailed as err:
            self._on_flush_failed(f"the overlay could not be flushed: {err}")
        except Exception as err:
            self._on_bug(err)
        finally:
            self._end(stream)

    def _end(self, stream):
        with self._lock:
            counts = self._going.pop(stream, None)
            if counts is not None:
                self.counts.update(counts)
        stream.socket.close()
