"""What is durable before what: the flushes of state files, superblock and undo files, as the kernel is asked for them."""

import fcntl
import os
from types import SimpleNamespace

import pytest

from qrep._native import disk
from qrep._native.wire import Geometry
from qrep.errors import DamagedError
from qrep.store import Directory
from qrep.target import rollback
from qrep.target.superblock import SuperblockFile
from qrep.target.undolog import SEGMENT, BatchWriter
from qrep.target.undomerge import Merge
from qrep.target.undostore import UndoStore
from qrep.target.verify import CheckDriver

VOLUME, SIZE, PAGE = b"v" * 16, 1 << 20, 4096
A, B, C = (bytes([number]) * 16 for number in (1, 2, 3))
BLOCK = disk.Superblock(volume_id=VOLUME, size=SIZE)


def named(descriptor):
    """The last part of its path; of a temporary file: of what it is to become."""
    name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
    return name.split(".")[0] + " new" if name.endswith(".tmp") else name


@pytest.fixture
def calls(monkeypatch):
    """[what the kernel was asked for], from the first mention of this fixture on."""
    found, fsync, rename, unlink = [], os.fsync, os.rename, os.unlink

    def flush(descriptor):
        found.append(("flush", named(descriptor)))
        fsync(descriptor)

    def renamed(old, new, **where):
        found.append(("rename", new))
        rename(old, new, **where)

    def removed(name, **where):
        found.append(("remove", name))
        unlink(name, **where)

    for name, function in (("fsync", flush), ("rename", renamed), ("unlink", removed)):
        monkeypatch.setattr(os, name, function)
    return found


@pytest.fixture
def directory(memory_dir):
    with Directory(memory_dir / "state") as opened:
        yield opened


def test_a_state_file_is_flushed_then_renamed_then_its_directory_is_flushed(directory, calls):
    directory.write("root", b"content")
    assert calls == [("flush", "root new"), ("rename", "root"), ("flush", "state")]


def test_a_removal_is_durable(directory, calls):
    directory.write("root", b"content")
    calls.clear()
    directory.remove("root")
    assert calls == [("remove", "root"), ("flush", "state")]


def test_a_write_of_the_superblock_is_durable_when_it_returns_and_alternates_between_the_slots(directory, monkeypatch):
    file, places, pwritev = SuperblockFile(directory), [], os.pwritev
    file.write(BLOCK)
    monkeypatch.setattr(os, "pwritev", lambda descriptor, parts, offset: places.append(offset) or pwritev(descriptor, parts, offset))
    for _ in range(3):
        file.write(BLOCK)
    assert fcntl.fcntl(file._descriptor, fcntl.F_GETFL) & os.O_DSYNC
    assert places == [0, disk.SUPERBLOCK_SLOT_DISTANCE, 0]
    file.close()


# ---- undo files ----


@pytest.fixture
def store(memory_dir):
    with Directory(memory_dir / "undo") as below:
        yield UndoStore(below, VOLUME, Geometry(SIZE, PAGE, 1 << 16), limit=1 << 30)


def generation(store, base, new, offsets, attempt=7):
    descriptor = store.create(base, new, attempt)
    writer = BatchWriter(descriptor, base, attempt, SIZE, 1 << 30)
    for offset in offsets:
        writer.add(offset, PAGE, new * (PAGE // 16))
    writer.write()
    os.close(descriptor)
    store.seal(new, writer.count)


@pytest.fixture
def device(memory_dir):
    path = memory_dir / "device"
    path.write_bytes(bytes(SIZE))
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def test_an_undo_file_is_there_with_its_header_and_its_name_before_it_is_used(store, calls):
    os.close(store.create(A, B, 7))
    assert calls == [("flush", f"{B.hex()}.undo"), ("flush", "undo")]
    calls.clear()
    store.seal(B, 0)
    assert calls == [("flush", f"{B.hex()}.undo")]


@pytest.mark.parametrize(("base", "attempt"), [(A, 8), (C, 7)])
def test_an_undo_file_of_another_base_or_attempt_is_not_put_back(store, device, base, attempt):
    generation(store, A, B, [0])
    with pytest.raises(DamagedError, match="another base or attempt"):
        store.restore(base, B, attempt, device)
    assert os.pread(device, SIZE, 0) == bytes(SIZE)


def test_an_undo_file_of_another_volume_is_not_believed(store, device):
    generation(store, A, B, [0])
    other = UndoStore(store.directory, b"w" * 16, store.geometry, limit=1 << 30)
    with pytest.raises(DamagedError, match="another volume"):
        other.restore(A, B, 7, device)
    assert os.pread(device, SIZE, 0) == bytes(SIZE)


def test_before_images_are_flushed_before_they_are_put_back(store, device, calls, monkeypatch):
    generation(store, A, B, [0])
    calls.clear()
    restore = rollback.undo.restore
    monkeypatch.setattr(rollback.undo, "restore", lambda *given, **options: calls.append(("restore",)) or restore(*given, **options))
    store.restore(A, B, 7, device, is_file=True)
    assert calls == [("flush", f"{B.hex()}.undo"), ("restore",)]
    assert os.pread(device, PAGE, 0) == B * (PAGE // 16)


def test_a_merged_file_is_flushed_before_it_takes_the_place_of_the_newest(store, calls):
    generation(store, A, B, [0])
    generation(store, B, C, [PAGE])
    calls.clear()
    merge = Merge(store, [C, B, A])
    merge.build()
    assert calls == [("flush", f"{C.hex()} new")]
    merge.finish()
    assert calls[1:] == [("rename", f"{C.hex()}.undo"), ("flush", "undo"), ("remove", f"{B.hex()}.undo"), ("flush", "undo")]


def test_a_rollback_logs_and_flushes_what_it_is_about_to_overwrite(store, device, calls, monkeypatch):
    generation(store, A, B, [0, 8 * PAGE])
    log_fd, restore = store.create(B, C, 9), rollback.undo.restore
    calls.clear()
    log = rollback.UndoLog(log_fd, device, B, 9, SIZE, 1 << 30)
    monkeypatch.setattr(rollback.undo, "restore", lambda *given, **options: calls.append(("restore", log.count)) or restore(*given, **options))
    assert rollback.apply_point(store, (B, A), (B,), log, device, is_file=True) == {0}
    assert calls == [("flush", f"{C.hex()}.undo"), ("restore", 1)]
    assert os.fstat(log_fd).st_size > SEGMENT
    os.close(log_fd)
    assert os.pread(device, PAGE, 8 * PAGE) == B * (PAGE // 16)


def test_half_of_a_slot_of_the_superblock_is_no_commit(directory, monkeypatch):
    file, pwritev = SuperblockFile(directory), os.pwritev
    file.write(BLOCK)
    monkeypatch.setattr(os, "pwritev", lambda descriptor, parts, offset: pwritev(descriptor, [parts[0][:256]], offset) if len(parts[0]) > 256 else 0)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        fcntl.fcntl(file._descriptor, fcntl.F_SETFL, 0)  # without O_DIRECT, which takes no half sectors
        file.write(BLOCK.replace(max_epoch=9))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 71
    file.close()
    assert SuperblockFile(directory).load().max_epoch == 0


class Healing(CheckDriver):
    """The part of a volume that writes a leaf which was found damaged."""

    def __init__(self, device_fd, geometry):
        self.device_fd, self.geometry, self.device = device_fd, geometry, SimpleNamespace(path="device", io_alignment=512)

    def _is_not_ours(self, leaf, offset, data):
        return ""


def test_a_repair_is_flushed_before_it_is_told(store, device, calls):
    assert Healing(device, store.geometry)._repair(3, b"h" * PAGE) == ""
    assert calls == [("flush", "device")] and os.pread(device, PAGE, 3 * PAGE) == b"h" * PAGE
