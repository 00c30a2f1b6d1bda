"""What a device or image file is, and how it is known again, on real loop devices."""

import os

import pytest
from machine import MIB, image, partitioned, run

from qrep import device, devicesafety
from qrep.errors import NotFound, QrepError, Refused, UsageError

pytestmark = pytest.mark.root


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_loop_device_is_described_with_its_sectors_and_its_backing_file(loop_device, sector_size):
    disk = loop_device(8 * MIB, sector_size)
    info = device.inspect(disk)
    status = os.stat(disk.backing)
    assert (info.kind, info.size, info.logical_sector_size) == ("block", 8 * MIB, sector_size)
    assert info.io_alignment == sector_size and info.physical_sector_size >= sector_size
    assert (info.backing_file, info.inode, info.backing_offset) == (str(disk.backing), status.st_ino, 0)
    assert info.is_loop and not info.read_only and info.holders == ()


def test_a_link_is_followed_and_the_path_as_given_is_kept(loop_device, tmp_path):
    disk = loop_device(MIB)
    (tmp_path / "link").symlink_to(disk.path)
    info = device.inspect(tmp_path / "link")
    assert (info.path, info.real_path) == (str(tmp_path / "link"), disk.path)


def test_an_image_file_is_described_with_what_direct_io_asks_of_it(xfs, filesystem, loop_device):
    info = device.inspect(image(xfs))
    assert (info.kind, info.size, info.logical_sector_size, info.io_alignment) == ("file", 8 * MIB, 512, 512)
    on_4k = filesystem("xfs", device=loop_device(320 * MIB, sector_size=4096))
    assert device.inspect(image(on_4k)).io_alignment == 4096


def test_what_is_no_device_is_refused_by_kind(tmp_path, memory_dir):
    with pytest.raises(NotFound):
        device.inspect(tmp_path / "missing")
    with pytest.raises(UsageError, match="neither a block device"):
        device.inspect(tmp_path)
    with pytest.raises(UsageError, match="neither a block device"):
        device.inspect("/dev/null")


@pytest.mark.alone  # another test may be given the number that it lets go of
def test_a_loop_device_with_nothing_attached_has_no_medium(loop_device):
    disk = loop_device(MIB)
    path = disk.path
    disk.detach()
    with pytest.raises(QrepError) as caught:
        device.inspect(path)
    assert caught.value.code == "no-medium"


def test_the_identity_of_a_loop_device_survives_another_number_and_tells_files_apart(loop_device, xfs):
    one, two = image(xfs, "one"), image(xfs, "two")
    first = loop_device(backing=one)
    stored = device.identity(device.inspect(first))
    blocker = loop_device(backing=two)
    other = device.identity(device.inspect(blocker))
    assert [difference.field for difference in device.same_identity(stored, other)] == ["inode"]
    first.detach()
    loop_device(MIB)  # takes the number that has become free
    again = device.identity(device.inspect(loop_device(backing=one)))
    assert device.same_identity(stored, again) == []


def test_a_device_of_another_size_is_not_the_volume(loop_device, xfs):
    path = image(xfs)
    stored = device.identity(device.inspect(path))
    os.truncate(path, 9 * MIB)
    with pytest.raises(Refused, match=f"size is {9 * MIB}, was {8 * MIB}") as caught:
        devicesafety.check_still_the_volume("db", stored, device.inspect(path))
    assert caught.value.code == "wrong-device"


def test_a_serial_number_that_is_gone_or_another_is_a_difference_and_a_new_one_is_not():
    stored = {"kind": "block", "size": 1, "serial": "A"}
    assert device.same_identity(stored, stored | {"wwn": "naa.5"}) == []
    assert str(device.same_identity(stored, stored | {"serial": "B"})[0]) == "serial is B, was A"
    assert str(device.same_identity(stored, {"kind": "block", "size": 1})[0]) == "serial is unknown, was A"


def test_partitions_of_one_disk_are_told_apart(loop_device):
    disk = partitioned(loop_device(64 * MIB, partscan=True))
    one, two = (device.identity(device.inspect(f"{disk}p{number}")) for number in (1, 2))
    assert "partition_start" in [difference.field for difference in device.same_identity(one, two)]


def test_the_partition_uuid_comes_from_udev_where_the_kernel_gives_none(loop_device, tmp_path, monkeypatch):
    disk = partitioned(loop_device(64 * MIB, partscan=True))
    info = device.inspect(f"{disk}p1")
    major, minor = info.device_number
    (tmp_path / f"b{major}:{minor}").write_text("I:1\nE:ID_PART_ENTRY_UUID=AB-12\nE:ID_SERIAL=x\n")
    monkeypatch.setattr(device, "UDEV_RECORDS", str(tmp_path))
    assert device.inspect(f"{disk}p1").partition_uuid == (info.partition_uuid or "ab-12")


def test_a_filesystem_has_the_same_name_after_it_was_mounted_again(filesystem, loop_device, mount):
    for kind in ("xfs", "btrfs", "ext4"):
        disk = loop_device(320 * MIB)
        point = filesystem(kind, device=disk)
        image(point)
        before = device.inspect(point / "image")
        run("umount", point)
        after = device.inspect(mount(disk) / "image")
        assert device.same_identity(device.identity(before), device.identity(after)) == [], kind
