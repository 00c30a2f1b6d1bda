"""Source lanes over every kind of connection: the same bytes arrive, whoever takes which granule, at the rate that is set."""

import os
import socket
import ssl
import threading
import time

import pytest
from machine import need_tool
from machine import run as run_tool
from source_peer import CONNECTION_KINDS, GEOMETRY, LEAF, Peer, Transport, map_of, receive_all

from qrep._native import wire
from qrep._native.bucket import Bucket
from qrep._native.connection import Connection


@pytest.fixture
def tls_pair(memory_dir, undo_after):
    """Two ends of one TLS 1.3 connection."""
    need_tool("openssl")
    key, certificate = memory_dir / "key.pem", memory_dir / "cert.pem"
    run_tool("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", "/CN=peer", "-keyout", key, "-out", certificate)  # fmt: skip
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.minimum_version = ssl.TLSVersion.TLSv1_3
    server.load_cert_chain(certificate, key)
    client = ssl.create_default_context(cafile=str(certificate))
    client.check_hostname = False
    ours, theirs = socket.socketpair()
    ends = []
    accepting = threading.Thread(target=lambda: ends.append(server.wrap_socket(theirs, server_side=True)))
    accepting.start()
    ends.insert(0, client.wrap_socket(ours))
    accepting.join()
    for end in ends:
        undo_after.callback(end.close)
    return ends


SIZE, GRANULES = GEOMETRY.size, GEOMETRY.granules


@pytest.mark.parametrize("kind", CONNECTION_KINDS)
def test_a_full_run_arrives_over_every_kind_of_connection(kind, make_run, source_device, undo_after):
    run, image = make_run(frame_size=64 << 10), bytearray(SIZE)
    line = Transport(kind, 7, undo_after)
    peer = Peer(GEOMETRY, image, line.receive, line.send, 7)
    assert (run.lane(source_device, line.connection), run.failure()) == (0, None)
    peer.close()
    assert image == os.pread(source_device, SIZE, 0) and bytes(run.marked) == b"\2" * GRANULES
    assert run.counters()["sent"] == peer.bytes == SIZE + len(peer.frames) * wire.HEADER_SIZE


def test_a_full_run_arrives_over_tls(make_run, source_device, undo_after, tls_pair):
    ours, theirs = tls_pair
    run, image = make_run(frame_size=1 << 20), bytearray(SIZE)
    peer = Peer(GEOMETRY, image, receive_all(theirs), theirs.sendall)
    assert (run.lane(source_device, Connection.stream(ours, 0)), run.failure()) == (0, None)
    peer.close()
    assert image == os.pread(source_device, SIZE, 0)


def test_what_was_hashed_is_what_was_sent_though_the_source_changes_meanwhile(make_run, source_device, memory_dir, undo_after, random_source):
    run, image = make_run(frame_size=64 << 10, io_size=64 << 10), bytearray(SIZE)
    line, done = Transport("tcp", 0, undo_after), threading.Event()

    def scribble():
        with open(memory_dir / "device", "r+b") as live:
            while not done.is_set():
                live.seek(random_source.randrange(SIZE - LEAF))
                live.write(random_source.randbytes(512))
                live.flush()

    writer = threading.Thread(target=scribble)
    writer.start()
    peer = Peer(GEOMETRY, image, line.receive, line.send)
    number = run.lane(source_device, line.connection)
    done.set()
    writer.join()
    peer.close()  # every digest on the way was checked
    assert number == 0
    assert bytes(map_of(image, GEOMETRY)[1]) == bytes(run.fresh_values)


def test_zero_copy_gives_up_where_the_kernel_says_copied(make_run, source_device, undo_after):
    run, image = make_run(slots=3), bytearray(SIZE)
    line = Transport("zero copy", 0, undo_after)
    peer = Peer(GEOMETRY, image, line.receive, line.send)
    assert run.lane(source_device, line.connection) == 0
    peer.close()
    assert image == os.pread(source_device, SIZE, 0)
    counters = run.counters()
    # Loopback always copies: 16 notifications decide, and what was in flight then may still add some. Threads never ask for it.
    assert counters["zc_copied"] == counters["zc_notified"]
    assert counters["zc_notified"] == 0 or 16 <= counters["zc_notified"] < GRANULES


def test_several_lanes_cover_every_granule_exactly_once(make_run, source_device, undo_after):
    run, image = make_run(), bytearray(SIZE)
    lines = [Transport(kind, index, undo_after) for index, kind in enumerate(["tcp", "pipes", "stream", "socketpair"])]
    peers = [Peer(GEOMETRY, image, line.receive, line.send, index) for index, line in enumerate(lines)]
    results = {}
    threads = [threading.Thread(target=lambda i=i: results.__setitem__(i, run.lane(source_device, lines[i].connection, i))) for i in range(4)]
    for thread in threads:
        thread.start()
    for ending in [*threads, *peers]:
        ending.join(60)
    assert [peer.error for peer in peers] == [None] * 4 and results == dict.fromkeys(range(4), 0)
    assert sorted(granule for peer in peers for granule in peer.last) == list(range(GRANULES))
    assert image == os.pread(source_device, SIZE, 0)


@pytest.mark.parametrize("kind", ["tcp", "zero copy", "pipes", "stream"])
def test_the_rate_is_kept(kind, make_run, source_device, undo_after):
    # 10.01 MiB and headers at 20 MiB/s with 64 KiB of burst: 0.5 s.
    run, image, rate = make_run(), bytearray(SIZE), 20 << 20
    line = Transport(kind, 0, undo_after, bucket=Bucket(rate, 64 << 10))
    peer = Peer(GEOMETRY, image, line.receive, line.send)
    started = time.monotonic()
    assert run.lane(source_device, line.connection) == 0
    seconds = time.monotonic() - started
    peer.close()
    assert image == os.pread(source_device, SIZE, 0)
    least = (peer.bytes - (64 << 10)) / rate
    assert least * 0.999 <= seconds < least + 10  # a busy machine may be late; without a rate it would be early
    assert run.counters()["wait_limit_ns"] > 0.5 * least * 1e9
    assert line.connection.bucket.taken == peer.bytes


@pytest.mark.parametrize("kind", ["tcp", "pipes", "stream"])
def test_at_a_low_rate_a_frame_goes_out_in_small_pieces_and_a_stop_does_not_wait_for_it(kind, make_run, source_device, undo_after):
    # A frame of 256 KiB would take 4 s at 64 KiB/s.
    run, rate, parts = make_run(frame_size=256 << 10), 64 << 10, []
    line = Transport(kind, 0, undo_after, bucket=Bucket(rate))

    def count():
        while data := line.receive(512):
            parts.append(len(data))

    reader, lane = threading.Thread(target=count, daemon=True), threading.Thread(target=run.lane, args=(source_device, line.connection))
    started = time.monotonic()
    reader.start(), lane.start()
    while sum(parts) < 24 << 10:
        assert time.monotonic() - started < 20
        time.sleep(0.01)
        got = sum(parts)
        assert got <= rate * (time.monotonic() - started) + 3072  # a full bucket, and what a piece has above half of it
    run.stop()
    lane.join(3)
    assert not lane.is_alive() and run.counters()["sent"] < 256 << 10


def test_a_lane_that_is_told_to_finish_ends_its_stream_in_order_and_leaves_the_rest(make_run, source_device, undo_after):
    run, image = make_run(), bytearray(SIZE)
    line = Transport("tcp", 0, undo_after)
    peer = Peer(GEOMETRY, image, line.receive, line.send, on_frame=lambda frame: line.connection.finish())
    assert (run.lane(source_device, line.connection), run.failure()) == (0, None)
    peer.close()
    done = sorted(peer.last)
    assert peer.ended and done == list(range(len(done))) and run.marked == b"\2" * len(done) + bytes(GRANULES - len(done))
    rest = Transport("tcp", 0, undo_after)
    peer = Peer(GEOMETRY, image, rest.receive, rest.send)
    assert run.lane(source_device, rest.connection) == 0
    peer.close()
    assert sorted(peer.last) == list(range(len(done), GRANULES)) and image == os.pread(source_device, SIZE, 0)
