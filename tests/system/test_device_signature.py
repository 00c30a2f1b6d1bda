"""A target that carries something is taken only when the operator says so."""

import os
import struct

import pytest
from machine import MIB, image, need_tool, partitioned, run

from qrep import device, devicesafety
from qrep.errors import Refused

pytestmark = pytest.mark.root


def check(target, source=None, **options):
    """check_target with paths; size_needed is the source's size, or the target's."""
    target = device.inspect(target)
    source = device.inspect(source) if source is not None else None
    options.setdefault("size_needed", source.size if source else target.size)
    return devicesafety.check_target(target, source=source, **options)


def refusal(code, *args, **options):
    """The Refused that check raises, which must have that code, exit code 5 and a way out."""
    with pytest.raises(Refused) as caught:
        check(*args, **options)
    assert (caught.value.code, caught.value.exit_code) == (code, 5)
    assert caught.value.hint
    return caught.value


def md_superblock(target):
    """A version 1.2 member of an array, written here because mdadm needs a kernel with md. Source: md_p.h of Linux."""
    superblock = bytearray(512)
    struct.pack_into("<II", superblock, 0, 0xA92B4EFC, 1)
    superblock[16:32] = bytes(range(1, 17))  # uuid of the array
    superblock[32:38] = b"host:0"
    struct.pack_into("<IIQ", superblock, 72, 1, 0, 16384)  # level 1, layout, size in sectors
    struct.pack_into("<II", superblock, 88, 0, 2)  # chunk size, number of disks
    struct.pack_into("<QQQ", superblock, 128, 2048, 16384, 8)  # offset and size of the data, offset of this, in sectors
    with open(target, "r+b") as disk:
        os.pwrite(disk.fileno(), superblock, 4096)


@pytest.mark.parametrize("make, found", [
    (["mkfs.ext4", "-q", "-L", "my db", "TARGET"], "filesystem ext4 labelled 'my db'"),
    (["mkfs.xfs", "-q", "TARGET"], "filesystem xfs"),
    (["mkswap", "TARGET"], "signature swap"),
    (["pvcreate", "-q", "TARGET"], "signature LVM2_member"),
    ([md_superblock], "signature linux_raid_member labelled 'host:0'"),
    (["parted", "-s", "TARGET", "mklabel", "gpt"], "partition table gpt"),
])  # fmt: skip
def test_a_signature_is_named_and_taken_only_when_the_operator_says_so(loop_device, make, found):
    target = loop_device(320 * MIB)
    if callable(make[0]):
        make[0](target)
    else:
        need_tool(make[0])
        run(*(word.replace("TARGET", target.path) for word in make))
    error = refusal("signature", target)
    assert found in error.message and str(target) in error.message
    assert check(target, overwrite=True) == []
    assert check(target, known=True) == []


def test_a_blank_device_and_a_blank_partition_carry_nothing(loop_device, memory_dir):
    disk = partitioned(loop_device(64 * MIB, partscan=True))
    assert check(f"{disk}p1") == []
    assert check(loop_device(MIB)) == []
    assert check(image(memory_dir)) == []


def test_an_image_file_is_probed_too(memory_dir):
    path = image(memory_dir)
    run("mkfs.ext4", "-q", "-F", path)
    assert "filesystem ext4" in refusal("signature", path).message


def test_without_blkid_nobody_knows_and_that_is_said(loop_device, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "which", lambda *args, **options: None)
    target = loop_device(MIB)
    assert "blkid (util-linux) is not installed" in refusal("signature-unknown", target).message
    assert check(target, overwrite=True) == []


def test_a_failing_blkid_is_not_taken_for_a_blank_device(loop_device, tmp_path, monkeypatch):
    (tmp_path / "blkid").write_text("#!/bin/sh\necho broken >&2\nexit 4\n")
    (tmp_path / "blkid").chmod(0o755)
    target = loop_device(MIB)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "exit 4): broken" in refusal("signature-unknown", target).message
    (tmp_path / "blkid").write_text("#!/bin/sh\nexit 8\n")
    assert "contradict" in refusal("signature", target).message
