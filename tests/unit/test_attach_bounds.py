"""What is attached: nobody else's directory or device, no more space than there is, and notes of an earlier agent that cannot be read."""

import os
from types import SimpleNamespace

import pytest

from qrep.daemon import attach, attachdevice
from qrep.errors import Refused, UsageError
from qrep.store import Directory

TARGET = SimpleNamespace(machine=SimpleNamespace(record=SimpleNamespace(size=1 << 60)))


@pytest.fixture
def attachments(tmp_path):
    with Directory(tmp_path / "state") as state:
        told = []
        node = SimpleNamespace(state=state, events=SimpleNamespace(add=lambda code, text, **_: told.append(code)), told=told)
        yield attach.Attachments(node, str(tmp_path))


def test_what_is_promised_to_one_is_not_free_for_another(attachments):
    free = os.statvfs(attachments.node.state.path)
    room = free.f_bavail * free.f_frsize
    half = attachments._limit("", TARGET)
    assert half <= room // 2 + (64 << 20)
    with pytest.raises(Refused, match="free for it"):
        attachments._limit(f"{4 * room // 1024}K", TARGET)
    attachments._all["db@1"] = SimpleNamespace(limit=4 * room, server=None)
    with pytest.raises(UsageError, match="no space"):
        attachments._limit("", TARGET)
    attachments._all["db@1"].server = SimpleNamespace(figures={"overlay": 1 << 62})  # of a process that is not trusted
    assert attachments._limit("1M", TARGET) == 1 << 20


def test_sockets_are_made_in_no_directory_that_others_can_change(attachments, tmp_path):
    attachments._check_directory()
    assert os.stat(tmp_path / "attached").st_mode & 0o777 == 0o700
    os.chmod(tmp_path / "attached", 0o770)
    with pytest.raises(Refused, match="agent's alone"):
        attachments._check_directory()
    os.rename(tmp_path / "attached", tmp_path / "mine")
    os.symlink(tmp_path / "mine", tmp_path / "attached")
    with pytest.raises(Refused, match="agent's alone"):
        attachments._check_directory()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xff", b"[" * 4000, b" " * 5000, b"[1]", b'{"path": 1, "directory": ["/"]}'], ids=len)
def test_notes_that_cannot_be_read_do_not_keep_an_agent_from_starting(attachments, content):
    with attachments.node.state.sub(attach.NOTES) as notes:
        notes.write("db@1.json", content)
        os.symlink("/etc/passwd", os.path.join(notes.path, "db@2.json"))
        attachments.recover()
        assert attachments.list() == [] and attachments.node.told == ["attach-ended"] * 2
        assert notes.names() == []
    assert os.path.exists("/etc/passwd")


@pytest.mark.parametrize(("whose", "goes"), [("ours", True), ("", True), ("qrep-of-another", False)])
def test_a_device_that_is_anothers_by_now_is_not_taken_away(monkeypatch, whose, goes):
    device, gone = object.__new__(attachdevice.KernelDevice), []
    device.path, device.whose = "/dev/nbd0", "ours"
    monkeypatch.setattr(attachdevice.kernel, "backend", lambda path: whose)
    monkeypatch.setattr(attachdevice.kernel, "disconnect", gone.append)
    device.close()
    assert bool(gone) == goes


@pytest.mark.parametrize("text", ["1.2.3.4:²", "1.2.3.4:٣٤", "1.2.3.4:-1", "1.2.3.4:0", "1.2.3.4:65536", ":10809", "$(id):1", "--foo:1", "1.2.3.4:1\n"])
def test_an_address_that_is_none_is_a_usage_error(text):
    with pytest.raises(UsageError):
        attach._address(text)
