"""A stranger at the other end of the wire: reads TCP connections to their end and writes down how many bytes came when. Nothing of qrep's is in it.

    python sink.py BIN_MS          prints its port, then for each line on stdin one line of JSON: {connection: [bytes of each bin]}, and begins anew

Connections are numbered in the order in which they came. Bins are of CLOCK_MONOTONIC, all from the same start.
"""

import json
import os
import selectors
import socket
import sys
import time

CHUNK = 4 << 20


def main():
    bin_ns = int(float(sys.argv[1]) * 1e6)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))  # so that what is counted is when it came, not when we had a CPU
    except PermissionError:
        pass
    selector, count = selectors.DefaultSelector(), 0
    server = socket.create_server(("127.0.0.1", 0), backlog=256)
    selector.register(server, selectors.EVENT_READ, "accept")
    selector.register(sys.stdin, selectors.EVENT_READ, "ask")
    print(server.getsockname()[1], flush=True)
    bins, start = {}, time.monotonic_ns()
    while True:
        for key, _events in selector.select():
            if key.data == "accept":
                connection, _address = server.accept()
                connection.setblocking(False)
                selector.register(connection, selectors.EVENT_READ, count)
                count += 1
            elif key.data == "ask":
                if not sys.stdin.readline():
                    return
                length = (time.monotonic_ns() - start) // bin_ns
                print(json.dumps({"bins": length, "start_ns": start, "received": bins}), flush=True)
                bins, start, count = {}, time.monotonic_ns(), 0
            else:
                try:
                    # MSG_TRUNC: TCP throws the bytes away instead of copying them
                    got = key.fileobj.recv_into(BUFFER, CHUNK, socket.MSG_TRUNC)
                except ConnectionResetError:
                    got = 0
                if got:
                    counted = bins.setdefault(key.data, {})
                    at = (time.monotonic_ns() - start) // bin_ns
                    counted[at] = counted.get(at, 0) + got
                else:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()


BUFFER = bytearray(CHUNK)
if __name__ == "__main__":
    main()
