"""The superblock file: a torn or damaged slot costs one write at most, and nothing is believed that does not check."""

import os

import pytest

from qrep._native import disk
from qrep.errors import DamagedError
from qrep.store import Directory
from qrep.target.superblock import FILE_SIZE, SLOT_DISTANCE, SuperblockFile

BLOCK = disk.Superblock(volume_id=bytes([7]) * 16, size=64 << 20)


@pytest.fixture
def opened(tmp_path, undo_after):
    directory = Directory(tmp_path / "target")
    undo_after.callback(directory.close)

    def make():
        file = SuperblockFile(directory)
        undo_after.callback(file.close)
        return file

    return make


def write(file, *epochs):
    for epoch in epochs:
        file.write(BLOCK.replace(max_epoch=epoch))


def test_there_is_none_before_the_first_write(opened):
    assert opened().load() is None


def test_the_last_write_is_what_is_read(opened, tmp_path):
    file = opened()
    file.load()
    write(file, 1, 2, 3)
    assert opened().load().max_epoch == 3
    assert os.stat(tmp_path / "target" / "superblock").st_size == FILE_SIZE


@pytest.mark.parametrize("writes", [2, 3])
def test_a_torn_last_slot_leaves_the_write_before(opened, tmp_path, writes):
    file = opened()
    file.load()
    write(file, *range(1, writes + 1))
    with open(tmp_path / "target" / "superblock", "r+b") as raw:
        raw.seek(writes % 2 * SLOT_DISTANCE + 256)
        raw.write(bytes(256))
    again = opened()
    assert again.load().max_epoch == writes - 1
    write(again, 9)
    assert opened().load().max_epoch == 9


def test_two_bad_slots_are_refused_with_a_way_out(opened, tmp_path):
    write(opened(), 1)
    (tmp_path / "target" / "superblock").write_bytes(bytes(FILE_SIZE))
    with pytest.raises(DamagedError) as caught:
        opened().load()
    assert "superblock" in caught.value.message and "replicate it anew" in caught.value.hint


def test_a_failed_write_ends_the_process(opened, tmp_path):
    file = opened()
    write(file, 1)
    child = os.fork()
    if child == 0:
        os.close(file._descriptor)
        file._descriptor = os.open("/dev/full", os.O_WRONLY)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        write(file, 2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 71
    assert opened().load().max_epoch == 1


def test_a_superblock_that_cannot_be_confirmed_ends_the_process(opened):
    file = opened()
    write(file, 1)
    file.confirm()
    child = os.fork()
    if child == 0:
        os.close(file._descriptor)
        file._descriptor = os.open("/dev/full", os.O_WRONLY)  # it has no fsync
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        file.confirm()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 71


def test_a_superblock_that_was_cut_off_is_no_superblock(opened, tmp_path):
    write(opened(), 1, 2)
    os.truncate(tmp_path / "target" / "superblock", SLOT_DISTANCE)
    with pytest.raises(DamagedError, match="ends before its second slot"):
        opened().load()
