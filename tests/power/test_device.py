"""The device with a volatile cache does what a real one may do, and nothing worse: the harness that cuts its power stands on this."""

import ctypes
import errno
import mmap
import os
import threading

import pytest
from power.device import Device, Unavailable, cut

pytestmark = pytest.mark.root
MIB = 1 << 20
SIZE = 8 * MIB
SECTOR = 512


@pytest.fixture
def device(memory_dir, undo_after):
    return one(memory_dir, undo_after)


def one(memory_dir, undo_after, name="disk"):
    try:
        return undo_after.enter_context(Device(memory_dir, SIZE, name))
    except Unavailable as why:
        pytest.skip(str(why))


class Direct:
    """O_DIRECT I/O of whole pages."""

    def __init__(self, device, flags=0):
        self.descriptor = os.open(device, os.O_RDWR | os.O_DIRECT | flags)
        self.page = mmap.mmap(-1, 64 << 10)

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        os.close(self.descriptor)

    def write(self, offset, data):
        self.page[: len(data)] = data
        return os.pwritev(self.descriptor, [memoryview(self.page)[: len(data)]], offset)

    def read(self, offset, size):
        assert os.preadv(self.descriptor, [memoryview(self.page)[:size]], offset) == size
        return self.page[:size]

    def flush(self):
        os.fsync(self.descriptor)


def read(device, offset, size):
    with Direct(device) as direct:
        return direct.read(offset, size)


def write(device, offset, data, flush=False):
    with Direct(device) as direct:
        direct.write(offset, data)
        if flush:
            direct.flush()


def lose_power(device, seed=1, keep=0):
    result = device.cut(seed, keep)
    device.power_on()
    return result


def test_what_was_flushed_survives_and_what_was_not_is_gone(device):
    write(device, 0, b"a" * 4096, flush=True)
    write(device, 0, b"b" * 4096)
    write(device, 8192, b"c" * 4096)
    assert read(device, 0, 4096) == b"b" * 4096
    assert lose_power(device) == (0, 16)  # two writes of eight sectors
    assert read(device, 0, 4096) == b"a" * 4096 and read(device, 8192, 4096) == bytes(4096)


def test_everything_survives_a_cut_that_keeps_everything(device):
    write(device, 0, b"b" * 4096)
    assert lose_power(device, keep=100) == (8, 0)
    assert read(device, 0, 4096) == b"b" * 4096


def test_an_unflushed_write_is_torn_by_the_sector_and_a_seed_repeats_it(device):
    def torn(seed):
        write(device, 0, bytes(64 << 10), flush=True)
        write(device, 0, b"n" * (64 << 10))
        kept, lost = lose_power(device, seed, keep=50)
        found = read(device, 0, 64 << 10)
        sectors = [found[at : at + SECTOR] for at in range(0, 64 << 10, SECTOR)]
        assert kept + lost == 128 and set(sectors) == {bytes(SECTOR), b"n" * SECTOR}
        assert sectors.count(b"n" * SECTOR) == kept
        return found

    assert torn(7) == torn(7) != torn(8)


def test_an_older_unflushed_write_may_survive_a_newer_one(device):
    write(device, 0, b"1" * (64 << 10))
    write(device, 0, b"2" * (64 << 10))
    lose_power(device, seed=3, keep=50)
    found = read(device, 0, 64 << 10)
    assert {found[at : at + 1] for at in range(0, 64 << 10, SECTOR)} == {b"\0", b"1", b"2"}


def test_nothing_that_comes_after_a_cut_is_durable_though_the_kernel_reads_it(device):
    device.cut(1, 0)
    write(device, 0, b"x" * 4096, flush=True)
    assert read(device, 0, 4096) == b"x" * 4096
    device.power_on()
    assert read(device, 0, 4096) == bytes(4096)
    write(device, 0, b"y" * 4096, flush=True)
    lose_power(device)
    assert read(device, 0, 4096) == b"y" * 4096


def test_a_write_that_waits_when_the_power_goes_may_reach_the_medium_or_not(device):
    for keep, left in ((100, b"w" * 4096), (0, bytes(4096))):
        device.hold()
        writer = threading.Thread(target=write, args=(device, 0, b"w" * 4096))
        writer.start()
        while not sum(map(int, open(f"/sys/class/block/{os.path.basename(device.path)}/inflight").read().split())):
            assert writer.is_alive()
        # It is in the queue of the loop device, or in that of FUSE; only the second is a part of the cut, which keeps all or nothing here.
        kept, _lost = device.cut(1, keep)
        writer.join(20)
        device.power_on()
        assert read(device, 0, 4096) == (left if kept else bytes(4096))
        write(device, 0, bytes(4096), flush=True)


def test_devices_lose_their_power_independently(memory_dir, undo_after):
    devices = [one(memory_dir, undo_after, name) for name in ("data", "undo")]
    for device in devices:
        write(device, 0, b"x" * 4096)
    killed = []
    assert cut({devices[0]: 0, devices[1]: 100}, 1, lambda: killed.append(True)) == {devices[0]: (0, 8), devices[1]: (8, 0)}
    for device in devices:
        device.power_on()
    assert [read(device, 0, 1 * 4096)[:1] for device in devices] == [b"\0", b"x"] and killed


def test_power_does_not_come_back_while_someone_of_before_holds_the_device(device):
    descriptor = os.open(device, os.O_RDWR | os.O_EXCL)
    device.cut(1, 0)
    with pytest.raises(TimeoutError):
        device.power_on(wait_s=0.05)
    os.close(descriptor)
    device.power_on()


@pytest.mark.parametrize("kind", ["read", "write"])
def test_the_nth_request_fails_once_or_for_good(device, kind):
    with Direct(device) as direct:

        def ask(number):
            try:
                direct.write(number * 4096, b"f" * 4096) if kind == "write" else direct.read(number * 4096, 4096)
            except OSError as err:
                return err.errno
            return 0

        device.fail(kind, 2)
        assert [ask(number) for number in range(4)] == [0, errno.EIO, 0, 0]
        device.fail(kind, 2, errno.ENOSPC, sticky=True)
        assert [ask(number) for number in range(4)] == [0, errno.ENOSPC, errno.ENOSPC, errno.ENOSPC]
        device.fail(kind, 0)
        assert ask(0) == 0


def test_a_failed_flush_may_lose_what_the_next_one_says_is_durable(device):
    with Direct(device) as direct:
        direct.write(0, b"l" * 4096)
        device.fail("flush", lose=True)
        with pytest.raises(OSError):
            direct.flush()
        direct.flush()
        assert direct.read(0, 4096) == b"l" * 4096
    lose_power(device, keep=100)
    assert read(device, 0, 4096) == bytes(4096)


def test_a_lying_flush_makes_nothing_durable(device):
    device.lie()
    write(device, 0, b"l" * 4096, flush=True)
    lose_power(device)
    assert read(device, 0, 4096) == bytes(4096)


def test_a_detained_write_lands_when_it_is_told_to_and_holds_nobody_up(device):
    device.detain(2)
    with Direct(device) as direct:
        direct.write(0, b"1" * 4096)
        writer = threading.Thread(target=write, args=(device, 4096, b"2" * 4096))
        writer.start()
        while not device.counts().detained:
            assert writer.is_alive()
        direct.write(8192, b"3" * 4096)
        direct.flush()
        assert direct.read(4096, 4096) == bytes(4096) and writer.is_alive()
        assert device.land() == 1
        writer.join(20)
        assert direct.read(4096, 4096) == b"2" * 4096


def test_a_device_stops_at_the_nth_flush_and_goes_on_when_it_is_told_to(device):
    device.hold_at("flush", 2)
    write(device, 0, b"1" * 4096, flush=True)
    writer = threading.Thread(target=write, args=(device, 0, b"2" * 4096), kwargs={"flush": True})
    writer.start()
    while not device.counts().held:
        assert writer.is_alive()
    assert device.cut(1, 0).lost == 8  # the second flush has not happened
    writer.join(20)
    device.power_on()
    assert read(device, 0, 4096) == b"1" * 4096 and not device.counts().held
    device.hold_at("write")
    writer = threading.Thread(target=write, args=(device, 0, b"3" * 4096))
    writer.start()
    while not device.counts().held:
        assert writer.is_alive()
    device.hold(False)
    writer.join(20)
    assert read(device, 0, 4096) == b"3" * 4096


def test_the_log_says_what_was_written_when_on_one_clock_for_all_devices(memory_dir, undo_after):
    first, second = (one(memory_dir, undo_after, name) for name in ("first", "second"))
    for device in (first, second):
        device.record(data=True)
    write(first, 0, b"1" * 4096, flush=True)
    write(second, 4096, b"2" * 4096, flush=True)
    first.fail("write")
    with pytest.raises(OSError):
        write(first, 8192, b"3" * 4096)
    log = sorted([("first", record) for record in first.log()] + [("second", record) for record in second.log()], key=lambda entry: entry[1].done)
    told = [(name, record.kind, record.offset, record.size, record.error, (record.data or b"")[:1]) for name, record in log]
    assert told == [
        ("first", "write", 0, 4096, 0, b"1"), ("first", "flush", 0, 0, 0, b""), ("second", "write", 4096, 4096, 0, b"2"),
        ("second", "flush", 0, 0, 0, b""), ("first", "write", 8192, 4096, errno.EIO, b"3"),
    ]  # fmt: skip
    assert all(record.begun <= record.done for _name, record in log)
    first.record()
    write(first, 0, b"4" * 4096)
    assert [(record.kind, record.data) for record in first.log()] == [("write", None)]


def test_what_was_saved_comes_back_whatever_was_written_since(device):
    write(device, 0, b"s" * 4096, flush=True)
    device.save()
    write(device, 0, b"t" * 8192, flush=True)
    write(device, 16384, b"u" * 4096)
    device.restore()
    assert read(device, 0, 20480) == b"s" * 4096 + bytes(16384)
    lose_power(device)
    assert read(device, 0, 20480) == b"s" * 4096 + bytes(16384)


def test_zeroes_that_are_not_written_are_as_volatile_as_what_is(device):
    write(device, 0, b"z" * 8192, flush=True)
    device.record()
    punch = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    with Direct(device) as direct:
        assert ctypes.CDLL(None).fallocate(direct.descriptor, punch, ctypes.c_long(0), ctypes.c_long(4096)) == 0
        assert direct.read(0, 8192) == bytes(4096) + b"z" * 4096
    assert [(record.kind, record.offset, record.size) for record in device.log()] == [("zero", 0, 4096)]
    lose_power(device)
    assert read(device, 0, 8192) == b"z" * 8192


def test_a_filesystem_comes_back_with_what_was_flushed(device, mount):
    from machine import run

    run("mkfs.ext4", "-q", "-F", device)
    point = mount(device)
    with open(point / "kept", "wb") as file:
        file.write(b"k" * 5000)
        file.flush()
        os.fsync(file.fileno())
    descriptor = os.open(point, os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)
    (point / "lost").write_bytes(b"l" * 5000)
    device.cut(5, 50)
    run("umount", point)
    device.power_on()
    run("mount", device, point)
    assert (point / "kept").read_bytes() == b"k" * 5000
    assert not (point / "lost").exists() or (point / "lost").read_bytes() in (b"", b"l" * 5000)
