"""What may be a target: sizes, sectors, same device, mounted, in use."""

import os
import socket
import threading

import pytest
from machine import MIB, image, need_tool, partitioned, run

from qrep import blocktree, device, devicesafety, deviceusers
from qrep.errors import Refused

pytestmark = pytest.mark.root


def check(target, source=None, **options):
    """check_target with paths; size_needed is the source's size, or the target's."""
    target = device.inspect(target)
    source = device.inspect(source) if source is not None else None
    options.setdefault("size_needed", source.size if source else target.size)
    return devicesafety.check_target(target, source=source, **options)


def claim(target, *, overwrite, wait_seconds):
    """claim with a path; it is closed again."""
    os.close(devicesafety.claim(device.inspect(target), wait_seconds=wait_seconds))


def refusal(code, *args, **options):
    """The Refused that check raises, which must have that code, exit code 5 and a way out."""
    with pytest.raises(Refused) as caught:
        check(*args, **options)
    assert (caught.value.code, caught.value.exit_code) == (code, 5)
    assert caught.value.hint
    return caught.value


def test_a_target_that_is_one_sector_too_small_is_refused_and_both_sides_are_named(loop_device):
    source, target = loop_device(8 * MIB), loop_device(8 * MIB - 512)
    error = refusal("target-too-small", target, source)
    assert str(source) in error.message and str(target) in error.message and "512 bytes too small" in error.message
    refusal("target-too-small", target, source, overwrite=True, known=True)


def test_an_equal_target_is_taken_without_a_word_and_a_larger_one_with_a_note(loop_device):
    source = loop_device(8 * MIB)
    assert check(loop_device(8 * MIB), source) == []
    notes = check(loop_device(9 * MIB), source)
    assert len(notes) == 1 and "1 MiB larger" in notes[0]


def test_512_byte_sectors_onto_4096_are_taken_with_a_note_if_the_size_fits(loop_device):
    notes = check(loop_device(8 * MIB, 4096), loop_device(8 * MIB, 512))
    assert len(notes) == 1 and "losetup -b 512" in notes[0]


def test_512_byte_sectors_onto_4096_are_refused_if_the_tail_could_not_be_written(loop_device):
    source, target = loop_device(8 * MIB + 1536), loop_device(9 * MIB, 4096)
    error = refusal("sector-size", target, source)
    assert "last 1536 bytes" in error.message and "sectors of 512 bytes" in error.hint


def test_4096_byte_sectors_onto_512_are_taken_without_a_word(loop_device):
    assert check(loop_device(8 * MIB, 512), loop_device(8 * MIB, 4096)) == []


def test_an_image_whose_size_is_no_whole_sector_is_refused_onto_a_device(loop_device, memory_dir):
    error = refusal("sector-size", loop_device(MIB), image(memory_dir, size=1000001))
    assert "multiple of 512" in error.hint


def test_sectors_larger_than_the_leaf_are_refused_on_either_side(loop_device):
    small, large = loop_device(MIB, 512), loop_device(MIB, 4096)
    assert "target" in refusal("sector-size", large, small, leaf_size=2048).message
    assert "source" in refusal("sector-size", small, large, leaf_size=2048).message


def test_a_device_is_not_its_own_target_also_through_a_link(loop_device, tmp_path):
    disk = loop_device(MIB)
    (tmp_path / "link").symlink_to(disk.path)
    assert "both are" in refusal("same-device", disk, disk).message
    refusal("same-device", tmp_path / "link", disk, overwrite=True, known=True)


def test_the_loop_device_of_an_image_and_the_image_are_the_same_device(loop_device, memory_dir):
    path = image(memory_dir)
    os.link(path, memory_dir / "hard")
    disk = loop_device(backing=path)
    assert "is a loop device over" in refusal("same-device", path, disk).message
    refusal("same-device", disk, path)
    refusal("same-device", disk, memory_dir / "hard")


def test_two_loop_devices_over_one_file_are_the_same_device(loop_device, memory_dir):
    path = image(memory_dir)
    first, second = loop_device(backing=path), loop_device(backing=path)
    assert "both are loop devices over" in refusal("same-device", first, second).message


def test_a_loop_device_over_a_loop_device_is_the_same_device(loop_device):
    lower = loop_device(MIB)
    refusal("same-device", lower, loop_device(backing=lower.path))
    refusal("same-device", loop_device(backing=lower.path), lower)


def test_a_partition_and_its_disk_are_the_same_device_but_two_partitions_are_not(loop_device):
    disk = partitioned(loop_device(64 * MIB, partscan=True))
    assert "is a part of" in refusal("same-device", disk, f"{disk}p1").message
    refusal("same-device", f"{disk}p2", disk)
    assert check(f"{disk}p2", f"{disk}p1", size_needed=MIB) != []  # it only remarks that it is larger
    assert deviceusers.same_storage(device.inspect(f"{disk}p1"), device.inspect(f"{disk}p2")) == ""


def test_parts_of_one_file_that_do_not_overlap_are_two_devices(loop_device, memory_dir):
    path = image(memory_dir, size=8 * MIB)
    whole, tail = device.inspect(loop_device(backing=path)), device.inspect(loop_device(backing=path, offset=4 * MIB))
    assert deviceusers.same_storage(whole, tail) != ""
    other = device.inspect(loop_device(backing=image(memory_dir, "other")))
    assert deviceusers.same_storage(whole, other) == ""


def test_a_target_file_on_a_filesystem_of_the_source_is_refused(filesystem, loop_device):
    for kind in ("ext4", "btrfs"):
        source = loop_device(256 * MIB)
        point = filesystem(kind, device=source)
        target = image(point)
        error = refusal("same-device", target, source, size_needed=MIB)
        assert str(point) in error.message and str(source) in error.message
        refusal("same-device", loop_device(backing=target), source, size_needed=MIB)


def test_two_paths_to_one_world_wide_name_are_the_same_storage():
    place = blocktree.Place(("disk", "naa.5000"), 0, MIB)
    one, two = (blocktree.Storage(place, frozenset([(8, minor)]), ()) for minor in (0, 16))
    multipath = blocktree.Storage(blocktree.Place(("dev", 254, 0), 0, MIB), frozenset([(254, 0)]), (place,))
    sibling = multipath._replace(place=blocktree.Place(("dev", 254, 1), 0, MIB))
    assert one.shares(two) and one.shares(multipath) and multipath.shares(two)
    assert not multipath.shares(sibling)  # two logical volumes of one disk


def test_a_mounted_target_is_refused_whatever_is_given(filesystem, loop_device):
    disk = loop_device(64 * MIB)
    point = filesystem("ext4", device=disk)
    error = refusal("target-mounted", disk, overwrite=True, known=True)
    assert str(point) in error.message and f"umount {point}" in error.hint


def test_a_disk_with_a_mounted_partition_and_the_image_below_are_mounted(filesystem, loop_device):
    disk = partitioned(loop_device(64 * MIB, partscan=True))
    filesystem("ext4", device=f"{disk}p1")
    assert f"{disk}p1" in refusal("target-mounted", disk, overwrite=True).message
    assert f"{disk}p1" in refusal("target-mounted", disk.backing, overwrite=True).message
    assert check(f"{disk}p2", overwrite=True) == []


def test_a_mounted_btrfs_is_found_although_its_device_number_is_its_own(filesystem, loop_device):
    disk = loop_device(256 * MIB)
    filesystem("btrfs", device=disk)
    refusal("target-mounted", disk, overwrite=True)


def test_every_device_of_a_mounted_btrfs_is_mounted(loop_device, mount):
    need_tool("mkfs.btrfs")
    first, second = loop_device(256 * MIB), loop_device(256 * MIB)
    run("mkfs.btrfs", "-q", "-f", first, second)
    run("btrfs", "device", "scan", first, second)
    mount(first)
    refusal("target-mounted", first, overwrite=True)
    refusal("target-mounted", second, overwrite=True)


def test_a_path_with_spaces_is_unescaped(loop_device, undo_after, memory_dir):
    point = memory_dir / "a b\tc"
    point.mkdir()
    disk = loop_device(64 * MIB)
    run("mkfs.ext4", "-q", disk)
    run("mount", disk, point)
    undo_after.callback(run, "umount", point)
    assert str(point) in refusal("target-mounted", disk).message


def test_swap_is_refused_as_in_use(loop_device, undo_after):
    disk = loop_device(64 * MIB)
    run("mkswap", disk)
    try:
        run("swapon", disk)
    except RuntimeError as err:
        pytest.skip(f"this kernel does not swap on a loop device: {err}")
    undo_after.callback(run, "swapoff", disk)
    error = refusal("target-in-use", disk, overwrite=True, known=True)
    assert "swap" in error.message and f"swapoff {disk}" in error.hint
    assert "swap" in refusal("target-in-use", disk.backing, overwrite=True).message


def test_the_backing_file_of_a_loop_device_is_in_use_and_the_device_is_named(loop_device, memory_dir):
    path = image(memory_dir)
    disk = loop_device(backing=path)
    assert str(disk) in refusal("target-in-use", path, overwrite=True, known=True).message
    assert check(disk) == []


def test_a_device_below_a_loop_device_is_in_use(loop_device):
    lower = loop_device(MIB)
    upper = loop_device(backing=lower.path)
    assert str(upper) in refusal("target-in-use", lower, overwrite=True).message


def test_a_claim_that_shows_nowhere_but_in_the_kernel_is_in_use_and_the_process_is_named(loop_device, undo_after):
    disk = loop_device(MIB)
    fd = os.open(disk, os.O_RDWR | os.O_EXCL)
    undo_after.callback(os.close, fd)
    assert f"pid {os.getpid()}" in refusal("target-in-use", disk, overwrite=True, known=True).message


@pytest.fixture
def kernel_holds(loop_device, undo_after):
    """(device, let go): one that is claimed by a descriptor no process has, as while the kernel ends the I/O of a process that was killed."""
    disk = loop_device(MIB)
    held, queue = socket.socketpair()
    undo_after.enter_context(held)
    fd = os.open(disk, os.O_RDWR | os.O_EXCL)
    socket.send_fds(held, [b"-"], [fd])
    os.close(fd)
    undo_after.callback(queue.close)
    return disk, queue.close


@pytest.mark.parametrize("looked_at", [False, True], ids=["nobody has it open", "somebody looks at it"])
def test_a_device_that_the_kernel_lets_go_of_in_a_moment_is_waited_for(kernel_holds, undo_after, monkeypatch, looked_at):
    disk, let_go = kernel_holds
    monkeypatch.setattr(devicesafety, "OPEN_S", 20)
    if looked_at:
        undo_after.callback(os.close, os.open(disk, os.O_RDONLY))
    refusal("target-in-use", disk, overwrite=True)
    threading.Timer(0.15, let_go).start()
    assert check(disk, overwrite=True, wait_seconds=20) == []


@pytest.mark.parametrize("ask", [check, claim], ids=["checked", "claimed"])
def test_who_comes_by_another_device_over_the_same_bytes_while_it_is_waited_for_is_found(kernel_holds, loop_device, mount, ask):
    disk, let_go = kernel_holds
    run("mkfs.ext4", "-q", disk.backing)

    def come():
        mount(loop_device(backing=disk.backing))
        let_go()

    comes = threading.Timer(0.15, come)
    comes.start()
    with pytest.raises(Refused) as caught:
        ask(disk, overwrite=True, wait_seconds=20)
    assert caught.value.code == "target-mounted"
    comes.join()


def test_a_device_that_the_kernel_holds_for_good_is_in_use(kernel_holds, monkeypatch):
    monkeypatch.setattr(deviceusers, "processes", lambda info: [])  # somebody may look at all devices just now
    assert "by the kernel" in refusal("target-in-use", kernel_holds[0], overwrite=True, wait_seconds=0.2).message


def test_a_passer_by_does_not_end_the_wait_and_who_stays_does(kernel_holds, monkeypatch):
    disk, let_go = kernel_holds
    monkeypatch.setattr(devicesafety, "OPEN_S", 0.5)
    looks = iter([["pid 1"], []] * 20)
    monkeypatch.setattr(deviceusers, "processes", lambda info: next(looks) if next(sleeps) < 16 else let_go() or [])
    sleeps = iter(range(1000))
    assert check(disk, overwrite=True, wait_seconds=60) == [] and next(sleeps) > 16


def test_a_device_that_a_process_keeps_open_is_not_waited_for_to_the_end(kernel_holds, monkeypatch):
    monkeypatch.setattr(devicesafety, "OPEN_S", 0.2)
    monkeypatch.setattr(deviceusers, "processes", lambda info: ["pid 1 (guest)"])
    assert "open in pid 1 (guest)" in refusal("target-in-use", kernel_holds[0], overwrite=True, wait_seconds=600).message


def test_a_read_only_target_is_refused(loop_device, filesystem):
    refusal("target-read-only", loop_device(MIB, read_only=True), overwrite=True)
    disk = loop_device(64 * MIB)
    point = filesystem("ext4", device=disk)
    image(point, size=MIB)
    run("mount", "-o", "remount,ro", point)
    refusal("target-read-only", point / "image", overwrite=True)
    with pytest.raises(Refused):
        devicesafety.claim(device.inspect(point / "image"), wait_seconds=0)


def test_logical_volumes_of_one_disk_are_its_users(tmp_path, monkeypatch):
    """Where the kernel has no device-mapper, sysfs is played by a directory of the same shape."""
    for name, number in (("sda", "8:0"), ("dm-0", "251:7")):
        (tmp_path / name / "queue").mkdir(parents=True)
        (tmp_path / name / "dev").write_text(number + "\n")
        (tmp_path / name / "size").write_text("2048\n")
    (tmp_path / "dm-0/dm").mkdir()
    (tmp_path / "dm-0/dm/name").write_text("vg0-db\n")
    (tmp_path / "dm-0/dm/uuid").write_text("LVM-abc\n")
    (tmp_path / "dm-0/slaves").mkdir()
    (tmp_path / "dm-0/slaves/sda").symlink_to(tmp_path / "sda")
    nodes = {name: blocktree.Node(str(tmp_path / name)) for name in ("sda", "dm-0")}
    monkeypatch.setattr(blocktree, "by_name", nodes.get)
    monkeypatch.setattr(blocktree, "all_nodes", lambda: list(nodes.values()))
    monkeypatch.setattr(blocktree, "node", lambda number: next((n for n in nodes.values() if n.number == number), None))
    disk = device.DeviceInfo("/dev/sda", "/dev/sda", "block", MIB, 512, 512, 512, (8, 0), False)
    volume = device.DeviceInfo("/dev/dm-0", "/dev/dm-0", "block", MIB, 512, 512, 512, (251, 7), False)
    assert [(user.kind, user.what) for user in deviceusers.users(disk)] == [("LVM", "/dev/mapper/vg0-db")]
    assert deviceusers.users(volume) == []
    assert "one lies on the other" in deviceusers.same_storage(disk, volume)
    assert "vgchange" in deviceusers.way_out(deviceusers.users(disk))
