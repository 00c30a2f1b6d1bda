"""Sending frames through the ring over loopback, against a bare send loop over the same kind of connection."""

import socket
from pathlib import Path

import pytest
from measure import FULL, GIB, MIB, rate
from wire_loop import connect, frames_of, receive_all, run_with_peer

from qrep._native.buffers import BufferPool
from qrep._native.ring import NOTIFY, Ring

TOTAL = GIB if FULL else 512 * MIB
FRAME = 2 * MIB


def bare_send(total, congestion=None):
    """sendmsg of header and payload in a loop: what a connection can take. congestion: instead of the one it is tuned to."""
    with connect() as (ours, theirs):
        for end in (ours, theirs) if congestion else ():
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion)
        header, payload = frames_of(FRAME)

        def send():
            for _ in range(total // FRAME):
                done = ours.sendmsg([header, payload])
                view = memoryview(payload)
                done -= len(header)
                while done < FRAME:
                    done += ours.send(view[done:])
            return total

        return run_with_peer(lambda: rate(send), lambda: receive_all(theirs, total // FRAME * (64 + FRAME)))


def ring_send(total, backend, zero_copy=False):
    """The same frames as one request each, two buffers in turn, a buffer used again once it is ours again."""
    with connect(zero_copy) as (ours, theirs), Ring(backend, 8) as ring:
        pool = BufferPool(FRAME, 2)
        ring.register_buffers(pool)
        ring.register_files([ours])
        header, payload = frames_of(FRAME)
        slots = [pool.lease_nowait(), pool.lease_nowait()]
        for slot in slots:
            with memoryview(slot) as view:
                view[:] = payload

        def send():
            for number in range(total // FRAME):
                tag = number % 2
                while tag in ring.held:
                    ring.wait()
                ring.start_send(0, [header, slots[tag]], tag, zero_copy=zero_copy)
                sent = False
                while not sent:  # one send at a time on a stream; a notification of an older one may come first
                    sent = any(not flags & NOTIFY for _, _, flags in ring.wait())
            while ring.held:
                ring.wait()
            return total

        return run_with_peer(lambda: rate(send), lambda: receive_all(theirs, total // FRAME * (64 + FRAME)))


@pytest.mark.parametrize("backend", ["uring", "threads"])
def test_send_over_loopback(compare, backend):
    compare("", f"{backend}, 1 connection / bare loop", lambda: ring_send(TOTAL, backend), lambda: bare_send(TOTAL),
            first=0.9 if backend == "uring" else 0.8, goal=0.97)


def test_zero_copy_over_loopback_is_slower_and_says_copied(compare):
    # Not judged: loopback always copies, after the work of preparing not to. It shows what the fall-back to plain sends is worth.
    compare("", "uring, zero-copy, 1 connection / bare loop", lambda: ring_send(TOTAL, "uring", True), lambda: bare_send(TOTAL),
            note="loopback always copies")


def test_bbr_over_loopback(compare):
    if "bbr" not in Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split():
        pytest.skip("this kernel has no bbr")
    compare("", "bare loop, bbr / cubic", lambda: bare_send(TOTAL, b"bbr"), lambda: bare_send(TOTAL))
