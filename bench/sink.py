"""A stranger on the wire: takes TCP connections to their end and writes down how many bytes came when. Nothing of qrep's is in it.

    python sink.py BIN_MS                 throws away what comes
    python sink.py BIN_MS HOST PORT       passes it on to HOST, and what that answers back; answers are not counted

Prints its port. Then, for each line on stdin, prints one line of JSON, {"bins": count, "received": {connection: {bin: bytes}}}, and begins
anew. Connections are numbered in the order in which they came; a bin is BIN_MS of CLOCK_MONOTONIC.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time

CHUNK = 4 << 20
LOCK = threading.Lock()


class Counted:
    """Bytes by connection and bin since the last reading."""

    def __init__(self, bin_ns):
        self.bin_ns, self.start, self.received = bin_ns, time.monotonic_ns(), {}

    def add(self, connection, size):
        with LOCK:
            counted = self.received.setdefault(connection, {})
            at = (time.monotonic_ns() - self.start) // self.bin_ns
            counted[at] = counted.get(at, 0) + size

    def read(self):
        with LOCK:
            answer = {"bins": (time.monotonic_ns() - self.start) // self.bin_ns, "received": self.received}
            self.start, self.received = time.monotonic_ns(), {}
        return answer


def swallow(connection, number, counted):
    buffer = bytearray(CHUNK)
    with contextlib.suppress(ConnectionError):
        while got := connection.recv_into(buffer, CHUNK, socket.MSG_TRUNC):  # TCP throws the bytes away instead of copying them
            counted.add(number, got)
    connection.close()


def pass_on(near, far, note):
    buffer = memoryview(bytearray(256 << 10))
    with contextlib.suppress(OSError):
        while got := near.recv_into(buffer):
            note(got)
            far.sendall(buffer[:got])
    for end in (near, far):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def serve(connection, number, counted, upstream):
    if upstream is None:
        swallow(connection, number, counted)
        return
    far = socket.create_connection(upstream)
    for end in (connection, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=pass_on, args=(far, connection, lambda size: None), daemon=True).start()
    pass_on(connection, far, lambda size: counted.add(number, size))


def accept_all(server, counted, upstream):
    number = 0
    while True:
        connection, _address = server.accept()
        threading.Thread(target=serve, args=(connection, number, counted, upstream), daemon=True).start()
        number += 1


def main():
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))  # so that what is counted is when it came, not when we had a CPU
    counted = Counted(int(float(sys.argv[1]) * 1e6))
    upstream = (sys.argv[2], int(sys.argv[3])) if len(sys.argv) > 2 else None
    server = socket.create_server(("127.0.0.1", 0), backlog=256)
    threading.Thread(target=accept_all, args=(server, counted, upstream), daemon=True).start()
    print(server.getsockname()[1], flush=True)
    for _line in sys.stdin:
        print(json.dumps(counted.read()), flush=True)


if __name__ == "__main__":
    main()
