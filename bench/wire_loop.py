"""Bare peers for the network benches: a connected pair on loopback, and loops that only send or only receive."""

import contextlib
import random
import socket
import threading

from qrep._native import sockets
from qrep.protocol import unpaced


@contextlib.contextmanager
def connect(zero_copy=False):
    """A pair of tuned TCP sockets on loopback: (sending end, receiving end)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = unpaced.connect(server.getsockname())
        theirs, _ = server.accept()
    with ours, theirs:
        for end in (ours, theirs):
            sockets.tune(end.fileno(), zero_copy=zero_copy and end is ours)
        yield ours, theirs


def frames_of(size):
    """A header of 64 bytes and an incompressible payload."""
    return bytearray(64), bytearray(random.Random(1).randbytes(size))


def receive_all(stream, size):
    buffer = bytearray(1 << 20)
    while size:
        got = stream.recv_into(buffer, min(size, len(buffer)))
        if not got:
            raise ConnectionError(f"the stream ended with {size} bytes to come")
        size -= got


def send_all(stream, count, size):
    header, payload = frames_of(size)
    for _ in range(count):
        stream.sendall(header, socket.MSG_MORE)
        stream.sendall(payload)


def run_with_peer(work, peer):
    """work() here while peer() runs in a thread; what work returns. Raises what the peer raised."""
    failures = []

    def guarded():
        try:
            peer()
        except OSError as err:
            failures.append(err)

    thread = threading.Thread(target=guarded)
    thread.start()
    result = work()
    thread.join()
    if failures:
        raise failures[0]
    return result
