"""The server as clients see it: the handshake, requests right and wrong, limits; and what nbdinfo, nbdcopy, qemu-io and fio say of it."""

import contextlib
import os
import random
import struct
import threading
import time

import pytest
from machine import need_tool, run
from nbd.client import Client
from nbd.conftest import MIB

from qrep.nbd import server, wire


def connect(running):
    return Client(running.connect())


def test_what_is_served_is_read_whatever_the_place_and_length(serve, random_source):
    data = random_source.randbytes(6 * MIB + 512)
    client = connect(serve(data)).go()
    assert client.size == len(data) and client.flags & wire.READ_ONLY and client.flags & wire.CAN_MULTI_CONN
    for offset, length in [(0, 512), (100, 7), (0, 5 * MIB), (len(data) - 1, 1), (511, 3 * MIB + 2), (0, len(data))]:
        assert client.read(offset, length) == data[offset : offset + length]


def test_structured_replies_carry_the_same_bytes(serve, random_source):
    data = random_source.randbytes(5 * MIB)
    client = connect(serve(data)).go(structured=True)
    client.request(wire.READ, 1000, 4 * MIB)
    got, done = b"", 0
    while not done:
        magic, done, kind, cookie, length = wire.CHUNK.unpack(client.take(20))
        assert (magic, kind, cookie) == (wire.CHUNK_MAGIC, wire.CHUNK_DATA, 7)
        assert struct.unpack(">Q", client.take(8))[0] == 1000 + len(got)
        got += client.take(length - 8)
    assert got == data[1000 : 1000 + 4 * MIB]
    client.request(wire.FLUSH)
    assert wire.CHUNK.unpack(client.take(20)) == (wire.CHUNK_MAGIC, 1, wire.CHUNK_NONE, 7, 0)
    client.request(wire.WRITE, 0, 512, bytes(512))
    assert wire.CHUNK.unpack(client.take(20))[2] == wire.CHUNK_ERROR
    assert struct.unpack(">IH", client.take(6)) == (wire.EPERM, 0)


def test_export_name_list_info_and_abort(serve):
    running = serve(bytes(MIB))
    client = connect(running).greet(flags=1)  # this one wants the zeroes
    client.option(wire.LIST)
    listed, end = client.replies()
    assert listed[2] == struct.pack(">I", 4) + b"db@7" + b"sync point 7 of db" and end[1] == wire.ACK
    client.option(wire.INFO, struct.pack(">I", 4) + b"db@7" + struct.pack(">HHHH", 3, wire.INFO_BLOCK_SIZE, wire.INFO_NAME, 99))
    found = {struct.unpack(">H", data[:2])[0]: data[2:] for _option, kind, data in client.replies() if kind == wire.INFORMATION}
    assert found[wire.INFO_BLOCK_SIZE] == struct.pack(">III", 512, 4096, 32 * MIB) and found[wire.INFO_NAME] == b"db@7"
    client.option(wire.EXPORT_NAME, b"db@7")
    assert wire.EXPORT.unpack(client.take(10))[0] == MIB and client.take(124) == bytes(124)
    assert client.read(0, 512) == bytes(512)
    client = connect(running).greet()
    client.option(wire.ABORT)
    assert client.reply()[1] == wire.ACK and client.hung_up()


@pytest.mark.parametrize(("option", "data", "kind"), [
    (wire.STARTTLS, b"", wire.UNSUPPORTED), (77, b"x" * 8000, wire.UNSUPPORTED), (wire.LIST, b"x", wire.INVALID),
    (wire.STRUCTURED_REPLY, b"x", wire.INVALID), (wire.GO, b"", wire.INVALID), (wire.GO, struct.pack(">IH", 1 << 31, 0), wire.INVALID),
    (wire.GO, struct.pack(">I", 0) + struct.pack(">H", 9), wire.INVALID), (wire.GO, struct.pack(">I", 3) + b"ab\0\0", wire.INVALID),
    (wire.INFO, struct.pack(">I", 5) + b"other\0\0", wire.UNKNOWN), (wire.GO, struct.pack(">I", 5000) + b"n" * 5000 + b"\0\0", wire.INVALID),
])  # fmt: skip
def test_an_option_that_is_wrong_or_unknown_is_answered_and_the_handshake_goes_on(serve, option, data, kind):
    client = connect(serve(bytes(MIB))).greet()
    client.option(option, data)
    assert client.reply() == (option, kind, b"")
    client.option(wire.LIST)
    assert client.replies()[-1][1] == wire.ACK


@pytest.mark.parametrize("what", ["magic", "length", "name", "flags", "many"])
def test_what_leaves_no_way_to_go_on_ends_the_connection(serve, what):
    client = connect(serve(bytes(MIB)))
    if what == "flags":
        assert client.greet(flags=0xFF).hung_up()
        return
    client.greet()
    if what == "magic":
        client.option(wire.LIST, magic=1)
    elif what == "length":
        client.option(wire.LIST, length=1 << 31)
    elif what == "name":
        client.option(wire.EXPORT_NAME, b"something else")
    else:
        for _ in range(64):
            client.option(77)
            client.reply()
        client.option(77)
    assert client.hung_up()


@pytest.mark.parametrize(("command", "offset", "length", "flags", "error"), [
    (wire.READ, MIB, 512, 0, wire.EINVAL), (wire.READ, MIB - 512, 513, 0, wire.EINVAL), (wire.READ, (1 << 64) - 1, 4096, 0, wire.EINVAL),
    (wire.READ, 0, 0, 0, wire.EINVAL), (wire.READ, 0, 512, 1 << 9, wire.EINVAL), (wire.READ, 0, 512, wire.DF, 0),
    (wire.WRITE_ZEROES, MIB, 512, 0, wire.ENOSPC), (wire.WRITE_ZEROES, 0, 0xFFFFFFFF, 0, wire.ENOSPC), (wire.TRIM, MIB, 1, 0, wire.EINVAL),
    (wire.TRIM, 0, 512, wire.FUA, 0), (wire.FLUSH, 512, 0, 0, wire.EINVAL), (wire.FLUSH, 0, 0, 0, 0), (5, 0, 512, 0, wire.EINVAL), (0xFFFF, 0, 0, 0, wire.EINVAL),
])  # fmt: skip
def test_a_request_that_is_wrong_is_answered_with_an_error_and_the_next_one_is_served(serve, command, offset, length, flags, error):
    client = connect(serve(bytes(MIB), read_only=False)).go()
    assert client.ask(command, offset, length, flags=flags) == error
    if command == wire.READ and not error:
        client.take(length)
    assert client.read(0, 512) == bytes(512)


def test_a_write_past_the_end_is_taken_off_the_wire_and_refused(serve):
    client = connect(serve(bytes(MIB), read_only=False)).go()
    assert client.ask(wire.WRITE, MIB - 512, 1024, b"x" * 1024) == wire.ENOSPC
    assert client.read(MIB - 512, 512) == bytes(512)


@pytest.mark.parametrize("command", [wire.WRITE, wire.TRIM, wire.WRITE_ZEROES])
def test_a_read_only_export_takes_no_change(serve, command):
    client = connect(serve(b"\1" * MIB)).go()
    assert client.ask(command, 0, 512, bytes(512 * (command == wire.WRITE))) == wire.EPERM
    assert client.read(0, 512) == b"\1" * 512


@pytest.mark.parametrize("what", ["magic", "long read", "long write"])
def test_requests_that_cannot_be_followed_end_the_connection(serve, what):
    client = connect(serve(bytes(MIB), read_only=False)).go()
    if what == "magic":
        client.request(wire.READ, 0, 512, magic=1)
    else:
        client.request(wire.READ if what == "long read" else wire.WRITE, 0, (32 << 20) + 1)
    assert client.hung_up()


def test_a_place_that_cannot_be_read_is_an_error_of_that_place(serve):
    running = serve(bytes(8 * MIB))
    running.below.broken = (5 * MIB,)
    client = connect(running).go()
    assert client.read(5 * MIB, 4096) == wire.EIO
    assert client.read(0, 4096) == bytes(4096)
    client.request(wire.READ, 0, 8 * MIB)  # the reply has begun when the bad block comes: no way to say it but this
    assert client.answer() == 0
    with pytest.raises(EOFError):
        client.take(8 * MIB)


def test_a_client_too_many_is_turned_away_and_one_that_leaves_makes_room(serve):
    running = serve(bytes(MIB), limit=2)
    first, second = connect(running).go(), connect(running).go()
    third = connect(running)
    assert third.hung_up()
    first.request(wire.DISCONNECT)
    assert first.hung_up()
    deadline = time.monotonic() + 20
    while running.server.figures()["connections"] > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert connect(running).go().read(0, 512) == second.read(0, 512)
    assert running.server.figures()["refused"] == 1


def test_a_handshake_that_takes_too_long_is_over(serve, monkeypatch):
    monkeypatch.setattr(server, "HANDSHAKE_S", 0.3)
    client = connect(serve(bytes(MIB)))
    client.take(18)
    with contextlib.suppress(BrokenPipeError):
        for byte in b"\0\0\0":  # trickling does not help
            client.socket.sendall(bytes([byte]))
            time.sleep(0.05)
    assert client.hung_up()


def test_what_was_written_is_read_and_below_nothing_changes(serve, random_source):
    data = random_source.randbytes(2 * MIB)
    running = serve(data, read_only=False)
    client, other, image = connect(running).go(), connect(running).go(), bytearray(data)
    for _ in range(300):
        size = random_source.choice([1, 511, 512, 4096, 5000, 70000])
        offset = random_source.randrange(0, len(data) - size)
        kind = random_source.choice([wire.WRITE, wire.WRITE_ZEROES, wire.TRIM])
        new = random_source.randbytes(size) if kind == wire.WRITE else bytes(size)
        assert client.ask(kind, offset, size, new if kind == wire.WRITE else b"", flags=random_source.choice([0, wire.FUA])) == 0
        image[offset : offset + size] = new
    assert client.ask(wire.FLUSH) == 0
    assert other.read(0, len(data)) == image
    assert running.below.data == data
    states = running.content._states
    assert running.content.used == 4096 * states.count(1) and 2 in states


def test_an_overlay_that_is_full_says_so_and_takes_what_needs_no_room(serve):
    running = serve(b"\1" * MIB, read_only=False, space=64 << 10)
    client = connect(running).go()
    assert client.ask(wire.WRITE, 0, 64 << 10, b"\2" * (64 << 10)) == 0
    assert client.ask(wire.WRITE, 512 << 10, 4096, b"\3" * 4096) == wire.ENOSPC
    assert running.full and client.read(512 << 10, 4096) == b"\1" * 4096
    assert client.ask(wire.WRITE, 100, 5000, b"\4" * 5000) == 0  # blocks it has already
    assert client.ask(wire.TRIM, 0, 8192) == 0
    assert client.ask(wire.WRITE, 512 << 10, 8192, b"\5" * 8192) == 0
    assert client.read(0, 8192) == bytes(8192)


def test_after_a_flush_that_failed_nothing_is_served_any_more(serve, monkeypatch):
    running = serve(bytes(MIB), read_only=False)
    client = connect(running).go()
    client.ask(wire.WRITE, 0, 512, bytes(512))

    def fail():
        raise OSError(5, "the disk is gone")

    monkeypatch.setattr(running.content, "flush", fail)
    client.request(wire.FLUSH)
    assert client.hung_up() and "the disk is gone" in running.failed[0]


@pytest.mark.parametrize("clients", [150, pytest.param(5000, marks=pytest.mark.slow)])
def test_noise_and_mutated_conversations_never_harm_the_server(serve, seed, clients):
    """Half of the clients send noise, half a right conversation with bytes changed. Afterwards an honest one is served."""
    dice = random.Random(seed)
    running = serve(bytes(MIB), read_only=False)
    go = wire.OPTION.pack(wire.OPTION_MAGIC, wire.GO, 6) + bytes(6)
    for _ in range(clients):
        with running.connect() as sock:
            if dice.random() < 0.5:
                data = dice.randbytes(dice.randrange(1, 300))
            else:
                requests = [wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, dice.choice([0, 1, 3, 4, 6]), 1, dice.randrange(MIB), 512) for _ in range(5)]
                data = bytearray(struct.pack(">I", 3) + go + b"".join(requests))
                for _ in range(dice.randrange(4)):
                    data[dice.randrange(len(data))] = dice.randrange(256)
            with contextlib.suppress(OSError):  # it may hang up first
                sock.sendall(bytes(data))
                if dice.random() < 0.7:
                    sock.shutdown(1)
                    sock.settimeout(5)
                    while sock.recv(1 << 16):
                        pass
    deadline = time.monotonic() + 20
    while running.server.figures()["connections"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert connect(running).go().read(0, 512) is not None
    assert not running.bugs


def test_nbdinfo_and_nbdcopy_and_qemu_io_agree(serve, random_source, memory_dir):
    for tool in ("nbdinfo", "nbdcopy", "qemu-io"):
        need_tool(tool)
    data = random_source.randbytes(8 * MIB)
    running = serve(data, read_only=False)
    said = run("nbdinfo", "--json", "--no-content", running.uri)
    assert '"export-size": 8388608' in said and '"can_multi_conn": true' in said and '"structured": true' in said
    run("nbdcopy", "--connections=4", running.uri, memory_dir / "out")
    assert (memory_dir / "out").read_bytes() == data
    new = random_source.randbytes(8 * MIB)
    (memory_dir / "in").write_bytes(new)
    run("nbdcopy", "--flush", memory_dir / "in", running.uri)
    run("nbdcopy", running.uri, memory_dir / "out")
    assert (memory_dir / "out").read_bytes() == new and running.below.data == data
    address = f"nbd:unix:{running.path}"
    out = run(
        "qemu-io", "-f", "raw", address, "-c", "write -f -P 7 4096 8192", "-c", "write -z 65536 65536", "-c", "discard 1M 1M", "-c", "flush",
        "-c", "read -P 7 4096 8192", "-c", "read -P 0 64k 64k", "-c", "read -P 0 1M 1M",
    )  # fmt: skip
    assert "verification failed" not in out.lower() and "error" not in out.lower(), out


def test_fio_verifies_what_it_wrote_over_two_connections(serve, memory_dir):
    need_tool("fio")
    running = serve(bytes(16 * MIB), read_only=False)
    if "nbd" not in run("fio", "--enghelp"):
        pytest.skip("this fio has no nbd engine")
    run(
        "fio", "--name=t", "--ioengine=nbd", f"--uri={running.uri}", "--rw=randrw", "--bs=4k-64k", "--size=8M", "--offset_increment=8M", "--numjobs=2",
        "--verify=crc32c", "--do_verify=1", "--iodepth=8", "--randseed=1", f"--aux-path={memory_dir}", "--verify_state_save=0",
    )  # fmt: skip
    assert running.server.figures()["written"] > MIB


def test_writers_of_neighbouring_sectors_do_not_undo_each_other(serve):
    """Parts of one block: each first write of a part copies the rest up."""
    running = serve(b"\1" * (4 * MIB), read_only=False)

    def write(lane):
        client = connect(running).go()
        for block in range(0, MIB, 4096):
            assert client.ask(wire.WRITE, block + lane * 512, 512, bytes([lane + 2]) * 512) == 0

    threads = [threading.Thread(target=write, args=(lane,)) for lane in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    expected = (b"".join(bytes([lane + 2]) * 512 for lane in range(4)) + b"\1" * 2048) * (MIB // 4096)
    assert connect(running).go().read(0, MIB) == expected


def test_a_block_of_a_very_large_volume_is_larger_so_that_its_states_fit_in_memory():
    from qrep.nbd import overlay

    assert overlay.block_size(64 << 30) == 4096 and overlay.block_size(1 << 40) == 64 << 10
    assert -(-(16 << 40) // overlay.block_size(16 << 40)) <= overlay.BLOCKS_MAX


def test_a_failed_write_of_the_file_leaves_the_block_as_it_was(serve, monkeypatch):
    running = serve(b"\1" * MIB, read_only=False)
    client = connect(running).go()
    real = os.pwrite

    def fail(descriptor, data, offset):
        if descriptor == running.overlay_fd:
            real(descriptor, data, offset)
            raise OSError(28, "no space")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", fail)
    assert client.ask(wire.WRITE, 0, 100, b"\2" * 100) == wire.ENOSPC
    monkeypatch.undo()
    assert client.read(0, 4096) == b"\1" * 4096
    assert client.ask(wire.WRITE_ZEROES, 0, 4096) == 0 and client.read(0, 4096) == bytes(4096)
