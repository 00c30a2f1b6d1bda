"""Receiving frames through the ring over loopback, against a bare receive loop over the same kind of connection."""

import socket

import pytest
from measure import FULL, GIB, MIB, rate
from wire_loop import connect, frames_of, run_with_peer, send_all

from qrep._native.buffers import BufferPool
from qrep._native.ring import Ring

TOTAL = GIB if FULL else 512 * MIB
FRAME = 2 * MIB
HEADER = 64


def bare_receive(total):
    with connect() as (ours, theirs):
        header, payload = frames_of(FRAME)

        def receive():
            for _ in range(total // FRAME):
                # MSG_WAITALL ends early where the thread has task work to do, and a ring that was closed leaves some behind.
                arrived = theirs.recvmsg_into([header, payload], 0, socket.MSG_WAITALL)[0]
                while 0 < arrived < HEADER + FRAME:
                    rest = memoryview(header)[arrived:] if arrived < HEADER else memoryview(payload)[arrived - HEADER :]
                    more = theirs.recv_into(rest)
                    arrived = arrived + more if more else 0
                if not arrived:
                    raise ConnectionError("the stream ended early")
            return total

        return run_with_peer(lambda: rate(receive), lambda: send_all(ours, total // FRAME, FRAME))


def ring_receive(total, backend):
    with connect() as (ours, theirs), Ring(backend, 8) as ring:
        pool = BufferPool(FRAME, 1)
        ring.register_buffers(pool)
        ring.register_files([theirs])
        slot, header = pool.lease_nowait(), bytearray(64)

        def receive():
            for _ in range(total // FRAME):
                if ring.receive(0, [header, slot]) != HEADER + FRAME:
                    raise ConnectionError("the stream ended early")
            return total

        return run_with_peer(lambda: rate(receive), lambda: send_all(ours, total // FRAME, FRAME))


@pytest.mark.parametrize("backend", ["uring", "threads"])
def test_receive_over_loopback(compare, backend):
    compare("", f"{backend}, 1 connection / bare loop", lambda: ring_receive(TOTAL, backend), lambda: bare_receive(TOTAL),
            first=0.9 if backend == "uring" else 0.8, goal=0.97)
