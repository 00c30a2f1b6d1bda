"""The parts of `qrep copy` that need no device: what a target's name means, stamps, and the first words over ssh."""

import os
import socket
import subprocess

import pytest

from qrep import device, devicesafety
from qrep.cli.copy import split_target
from qrep.errors import ProtocolError, Refused, Unreachable, UsageError
from qrep.oneshot import opening, stamp
from qrep.oneshot.far import address_of
from qrep.oneshot.ssh import SshTarget
from qrep.oneshot.target import CopyTarget, job_of, key_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/dev/vg0/db", (None, "/dev/vg0/db")), ("disk.img", (None, "disk.img")), ("site-b:/dev/sdb", ("site-b", "/dev/sdb")),
        ("root@site-b:disk.img", ("root@site-b", "disk.img")), ("[fe80::1]:/x", ("[fe80::1]", "/x")), ("./a:b", (None, "./a:b")),
        ("/dev/disk/by-path/pci-0000:00:1f", (None, "/dev/disk/by-path/pci-0000:00:1f")), ("dir/a:b", (None, "dir/a:b")),
    ],
)  # fmt: skip
def test_a_target_is_on_another_host_when_a_host_and_a_colon_come_first(text, expected):
    assert split_target(text) == expected


def test_a_host_that_is_an_option_of_ssh_is_refused():
    with pytest.raises(UsageError):
        split_target("-oProxyCommand=x:/y")
    with pytest.raises(UsageError):
        SshTarget("-oProxyCommand=x", None)


def test_a_stamp_of_a_file_tells_whether_it_was_written(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(bytes(8192))
    info = device.inspect(path)
    first = stamp.take(info)
    assert stamp.compare(first, stamp.take(info)) == stamp.SAME
    os.utime(path, ns=(1, 1))
    assert stamp.compare(first, stamp.take(info)) == stamp.WRITTEN
    assert stamp.compare(None, first) == stamp.UNKNOWN


def test_after_a_reboot_or_a_new_attachment_nothing_can_be_said_of_a_device():
    now = {"kind": "block", "boot": "b", "attached": 7, "counters": [1, 2, 3]}
    assert stamp.compare(now, now) == stamp.SAME
    assert stamp.compare(now | {"counters": [1, 2, 4]}, now) == stamp.WRITTEN
    assert stamp.compare(now | {"boot": "a"}, now) == stamp.compare(now | {"attached": 6}, now) == stamp.UNKNOWN


def test_a_file_is_known_by_what_it_is_and_not_by_its_name(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(bytes(8192))
    key = key_of(device.inspect(path))
    path.rename(tmp_path / "other")
    assert key_of(device.inspect(tmp_path / "other")) == key
    path.write_bytes(bytes(8192))
    assert key_of(device.inspect(path)) != key
    assert len({job_of("a", key), job_of("b", key), job_of("a", bytes(16))}) == 3


@pytest.fixture
def copied(tmp_path):
    """(image, target()): a file that a copy ended in, and the target of the next copy; target(overwrite=True): with -y."""
    path = tmp_path / "image"
    path.write_bytes(bytes(1 << 20))

    def target(overwrite=False):
        return CopyTarget(path, size=1 << 20, source="db", state_dir=tmp_path / "state", config_dir=tmp_path / "etc", overwrite=overwrite)

    first = target(overwrite=True)
    first.open()
    first.close()
    return path, target


@pytest.mark.parametrize("waits", ["check_target", "claim"])
def test_what_somebody_writes_while_the_target_is_waited_for_is_not_believed(copied, monkeypatch, waits):
    path, target = copied
    asked = getattr(devicesafety, waits)

    def written_first(*arguments, **options):
        with open(path, "r+b") as file:
            file.write(b"not what the copy left")
        return asked(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(devicesafety, waits, written_first)
        waited = target()
        with pytest.raises(Refused, match="written by someone else"):
            waited.open()
        waited.close()
    with pytest.raises(Refused, match="written by someone else"):
        target().check()
    with monkeypatch.context() as patch:
        patch.setattr(devicesafety, waits, written_first)
        told = target(overwrite=True)
        told.open()
    assert told.compare
    told.close()
    assert not target().check()["compare"]


def test_a_signature_that_comes_while_an_unknown_target_is_waited_for_is_not_overwritten_unasked(tmp_path, monkeypatch):
    path = tmp_path / "image"
    path.write_bytes(bytes(1 << 20))
    claim = devicesafety.claim

    def made_first(info, **options):
        subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True)
        return claim(info, **options)

    monkeypatch.setattr(devicesafety, "claim", made_first)
    target = CopyTarget(path, size=1 << 20, source="db", state_dir=tmp_path / "state", config_dir=tmp_path / "etc")
    with pytest.raises(Refused, match="carries filesystem ext"):
        target.open()
    target.close()
    assert not (tmp_path / "state").exists(), "nothing is noted of it"


def offer():
    return opening.Offer(target="/x", source="a", size=8192, leaf_size=4096, granule_size=8192)


def test_an_offer_crosses_a_stream_as_it_is():
    here, there = socket.socketpair()
    with here, there:
        opening.say(here, offer())
        assert opening.hear(there, opening.Offer) == offer()


@pytest.mark.parametrize("data", [b"Welcome to site-b!\n", b"\0\0\0\0", b"\x03\0\0\0abc", b"\x01\0\1\0" + bytes(65537)])
def test_what_is_no_message_is_told_apart_from_one(data):
    here, there = socket.socketpair()
    with here, there:
        here.sendall(data)
        with pytest.raises(ProtocolError):
            opening.hear(there, opening.Offer)


def test_a_stream_that_ends_early_is_unreachable():
    here, there = socket.socketpair()
    with there:
        with here:
            here.sendall(b"\x10\0\0\0abc")
        with pytest.raises(Unreachable):
            opening.hear(there, opening.Offer)


def test_a_helper_is_sent_to_no_file():
    assert address_of("@qrep-copy-1") == "\0qrep-copy-1"
    with pytest.raises(UsageError):
        address_of("/run/docker.sock")
