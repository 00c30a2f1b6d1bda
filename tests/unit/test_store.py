"""Files of qrep's own state: replaced whole or not at all, private, never through a link, and a failed flush is the end."""

import errno
import os
import stat
import subprocess
import sys
import textwrap

import pytest

from qrep.errors import DamagedError, Refused
from qrep.store import FLUSH_FAILED, Directory, read_exact, write_all


@pytest.fixture
def directory(tmp_path):
    with Directory(tmp_path / "state") as opened:
        yield opened


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_directories_and_files_are_for_their_owner_only(directory):
    with directory.sub("map") as below:
        below.write("root", b"one", b"two")
        assert (mode(directory.path), mode(below.path), mode(below.path + "/root")) == (0o700, 0o700, 0o600)
        assert below.read("root", 100) == b"onetwo"


def test_a_directory_others_may_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(Refused, match="not private"):
        Directory(tmp_path)


def test_names_with_a_slash_or_dots_never_reach_the_kernel(directory):
    for name in ("../x", "a/b", "", ".", "..", "a\0b"):
        with pytest.raises(ValueError, match="not a file name"):
            directory.write(name, b"")


def test_a_symbolic_link_is_never_followed(directory, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    os.symlink(tmp_path / "secret", directory.path + "/link")
    os.symlink(tmp_path, directory.path + "/below")
    with pytest.raises(OSError) as caught:
        directory.read("link", 100)
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(NotADirectoryError):
        directory.sub("below")
    directory.write("link", b"mine")  # replaces the link, not what it points to
    assert (tmp_path / "secret").read_bytes() == b"secret"
    assert directory.read("link", 100) == b"mine"


def test_a_pipe_in_the_place_of_a_file_is_refused(directory):
    os.mkfifo(directory.path + "/pipe")
    with pytest.raises(DamagedError, match="not a regular file"):
        directory.read("pipe", 100)


def test_a_file_larger_than_it_can_be_is_not_read(directory):
    directory.write("root", bytes(101))
    with pytest.raises(DamagedError, match="101 bytes"):
        directory.read("root", 100)
    assert directory.read("absent", 100) is None


@pytest.mark.parametrize("point, expected", [
    ("store-write-unflushed", b"old"),
    ("store-rename-before", b"old"),
    ("store-rename-unflushed", b"new"),
])  # fmt: skip
def test_a_crash_while_replacing_leaves_the_old_or_the_new_file(directory, point, expected):
    directory.write("root", b"old")
    program = "import sys; from qrep.store import Directory; Directory(sys.argv[1]).write('root', b'new')"
    died = subprocess.run([sys.executable, "-c", program, directory.path], env={**os.environ, "QREP_CRASH": f"{point}:1"})
    assert died.returncode == -9
    assert directory.read("root", 100) == expected
    directory.sweep()
    assert os.listdir(directory.path) == ["root"]


def test_a_failed_flush_ends_the_process_and_is_never_tried_again(directory):
    program = textwrap.dedent("""
        import os, sys, qrep.store as store
        calls = []
        def fsync(descriptor):
            calls.append(descriptor)
            print("flush", flush=True)
            raise OSError(5, "Input/output error")
        os.fsync = fsync
        try:
            store.Directory(sys.argv[1]).write("root", b"new")
        finally:
            print("went on", flush=True)
    """)
    ended = subprocess.run([sys.executable, "-c", program, directory.path], capture_output=True, text=True)
    assert ended.returncode == FLUSH_FAILED
    assert ended.stdout == "flush\n"  # once, and nothing ran after it
    assert "flush failed: Input/output error" in ended.stderr
    assert directory.read("root", 100) is None


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(directory):
    directory.write("root", b"old")

    class Full:
        def __buffer__(self, flags):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises((OSError, TypeError)):
        directory.write("root", Full())
    assert directory.read("root", 100) == b"old"


def test_whole_transfers_survive_short_ones(tmp_path, monkeypatch):
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, bytes(data)[:3], offset))
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    write_all(descriptor, b"0123456789", 5)
    assert read_exact(descriptor, 100, 5) == b"0123456789"
    os.close(descriptor)


def test_a_write_that_takes_nothing_is_an_error_and_not_tried_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: 0)
    with open(tmp_path / "file", "w+b") as file, pytest.raises(OSError, match="took nothing"):
        write_all(file.fileno(), b"0123456789", 5)


def test_missing_parents_are_private_too(tmp_path):
    with Directory(tmp_path / "a" / "b" / "c"):
        assert [(tmp_path / path).stat().st_mode & 0o777 for path in ("a", "a/b", "a/b/c")] == [0o700] * 3
