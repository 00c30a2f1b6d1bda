"""Every snapshot backend passes the conformance suite; reflink also with mounted filesystems, crashes and slowness."""

import contextlib
import fcntl
import os
import subprocess
import time

import pytest
from machine import MIB, image, partitioned, run
from system.conformance_snapshot import FREEZE, VOLUME_SIZE, SnapshotConformance, elsewhere, read, write

from qrep import device
from qrep.errors import Refused, UsageError
from qrep.volumes import quiet, reflink, registry
from qrep.volumes.base import FreezeOptions, SnapshotError

pytestmark = pytest.mark.root
NOBODY = 65534
FREEZE_WITH = """
import sys; from qrep import device; from qrep.volumes.base import FreezeOptions; from qrep.volumes.reflink import Reflink
Reflink(FreezeOptions(tuple(sys.argv[2:]), (), 20)).freeze(device.inspect(sys.argv[1]), "run-1")
"""


class TestNone(SnapshotConformance):
    @pytest.fixture
    def backend(self):
        return registry.BACKENDS["none"]

    @pytest.fixture
    def volume(self, loop_device):
        return loop_device(VOLUME_SIZE).path


class ReflinkConformance(SnapshotConformance):
    @pytest.fixture
    def backend(self):
        return registry.BACKENDS["reflink"]

    def test_the_snapshot_is_hidden_and_closed_to_others(self, backend, volume):
        frozen = backend.freeze(device.inspect(volume), "run-1")
        directory = os.path.dirname(frozen.path)
        assert os.path.basename(directory) == ".qrep-snapshots"
        assert os.stat(directory).st_mode & 0o777 == 0o700
        assert os.stat(frozen.path).st_mode & 0o777 == 0o600
        backend.release(frozen.token)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
class TestReflinkOfAnImage(ReflinkConformance):
    @pytest.fixture
    def volume(self, filesystem, kind):
        return image(filesystem(kind), size=VOLUME_SIZE)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
@pytest.mark.parametrize("direct_io", [True, False])
class TestReflinkOfALoopDevice(ReflinkConformance):
    @pytest.fixture
    def volume(self, filesystem, loop_device, kind, direct_io):
        return loop_device(backing=image(filesystem(kind), size=VOLUME_SIZE), direct_io=direct_io).path


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def mounted(request, xfs, loop_device, filesystem):
    """A filesystem of each kind on a loop device over an image on XFS: (device path, mount point)."""
    disk = loop_device(backing=image(xfs, "db.img", 320 * MIB))
    return disk.path, filesystem(request.param, device=disk)


def is_writable(point):
    """Whether a file can be made there within 5 s; on a frozen filesystem the writer would hang."""
    try:
        return subprocess.run(["touch", point / "probe"], timeout=5, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def test_a_snapshot_of_a_mounted_filesystem_mounts_and_holds_its_files(mounted, mount, loop_device):
    disk, point = mounted
    for number in range(200):
        (point / f"file-{number}").write_bytes(bytes([number]) * 5000)
    (point / "synced").write_bytes(b"s" * MIB)
    with open(point / "synced", "rb") as synced:
        os.fsync(synced.fileno())
    (point / "unsynced").write_bytes(b"u" * MIB)  # freezing the filesystem writes this down, too
    frozen = registry.BACKENDS["reflink"].freeze(device.inspect(disk), "run-1")
    (point / "later").write_bytes(b"l" * MIB)
    (point / "file-7").unlink()
    os.sync()
    # Its own filesystem uuid is mounted already, so XFS and btrfs need to be told; the log needs no replay to be read.
    kind = run("blkid", "-p", "-s", "TYPE", "-o", "value", frozen.path)
    if kind == "btrfs":
        run("btrfstune", "-f", "-u", frozen.path)
    clone = mount(loop_device(backing=frozen.path), "nouuid" if kind == "xfs" else "defaults")
    assert (clone / "synced").read_bytes() == b"s" * MIB
    assert (clone / "unsynced").read_bytes() == b"u" * MIB
    assert (clone / "file-7").read_bytes() == b"\7" * 5000
    assert not (clone / "later").exists()


def test_an_ext4_snapshot_is_clean_for_fsck(xfs, loop_device, filesystem):
    disk = loop_device(backing=image(xfs, size=64 * MIB))
    point = filesystem("ext4", device=disk)
    for number in range(50):
        (point / f"file-{number}").write_bytes(os.urandom(9000))
    frozen = registry.BACKENDS["reflink"].freeze(device.inspect(disk), "run-1")
    run("e2fsck", "-f", "-n", frozen.path)
    assert is_writable(point)


def test_a_partition_mounted_on_a_loop_device_is_frozen_with_it(xfs, loop_device, filesystem, monkeypatch):
    disk = loop_device(backing=image(xfs, size=64 * MIB), partscan=True)
    partitioned(disk)
    point = filesystem("ext4", device=f"{disk}p1")
    (point / "file").write_bytes(b"f" * MIB)
    seen = []
    clone = reflink._clone
    monkeypatch.setattr(reflink, "_clone", lambda *fds: (seen.append(freeze_state(point)), clone(*fds)))
    frozen = registry.BACKENDS["reflink"].freeze(device.inspect(disk), "run-1")
    assert seen == ["frozen"] and freeze_state(point) == "thawed"
    first = loop_device(backing=frozen.path, offset=MIB)
    run("e2fsck", "-f", "-n", first)


def freeze_state(point):
    """`frozen` if someone else's FIFREEZE says EBUSY; a freeze that succeeds is undone at once."""
    fd = os.open(point, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, quiet.FIFREEZE, 0)
    except OSError:
        return "frozen"
    else:
        fcntl.ioctl(fd, quiet.FITHAW, 0)
        return "thawed"
    finally:
        os.close(fd)


def test_a_freezer_that_is_killed_leaves_nothing_frozen(mounted):
    disk, point = mounted
    status, _ = elsewhere(FREEZE, "reflink", disk, "run-1", crash="snapshot-frozen:1")
    assert status == -9
    assert is_writable(point)
    assert registry.BACKENDS["reflink"].stale(device.inspect(disk)) == []


def test_a_clone_that_takes_too_long_is_thrown_away_and_the_filesystem_is_thawed_meanwhile(mounted, monkeypatch):
    disk, point = mounted
    clone, thawed = reflink._clone, []

    def slow(*fds):
        begin = time.monotonic()
        while freeze_state(point) == "frozen" and time.monotonic() - begin < 10:
            time.sleep(0.05)
        thawed.append(time.monotonic() - begin)
        clone(*fds)

    monkeypatch.setattr(reflink, "_clone", slow)
    with pytest.raises(SnapshotError) as caught:
        reflink.Reflink(FreezeOptions(limit_s=0.5)).freeze(device.inspect(disk), "run-1")
    assert caught.value.code == "snapshot-too-slow"
    assert 0 < thawed[0] < 5
    assert is_writable(point)
    assert registry.BACKENDS["reflink"].stale(device.inspect(disk)) == []


def test_a_failed_clone_leaves_the_filesystem_thawed_and_nothing_behind(mounted, monkeypatch):
    disk, point = mounted

    def full(*fds):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reflink, "_clone", full)
    with pytest.raises(SnapshotError, match="No space left"):
        registry.BACKENDS["reflink"].freeze(device.inspect(disk), "run-1")
    assert is_writable(point)
    assert registry.BACKENDS["reflink"].stale(device.inspect(disk)) == []


@contextlib.contextmanager
def frozen_by_them(point):
    """Somebody else has frozen the filesystem, and nobody thaws it meanwhile."""
    fd = os.open(point, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, quiet.FIFREEZE, 0)
        try:
            yield
        finally:
            fcntl.ioctl(fd, quiet.FITHAW, 0)  # raises if it was not frozen any more
    finally:
        os.close(fd)


def test_a_filesystem_that_someone_else_has_frozen_is_left_to_them(xfs, loop_device, filesystem):
    disk = loop_device(backing=image(xfs, size=64 * MIB))
    with frozen_by_them(filesystem("ext4", device=disk)):
        frozen = registry.BACKENDS["reflink"].freeze(device.inspect(disk), "run-1")
    run("e2fsck", "-f", "-n", frozen.path)


@pytest.mark.parametrize("limit_s", [10, 0.3])
def test_a_freeze_of_theirs_outlasts_a_snapshot_that_takes_too_long(xfs, loop_device, filesystem, monkeypatch, limit_s):
    disk = loop_device(backing=image(xfs, size=64 * MIB))
    clone = reflink._clone
    monkeypatch.setattr(reflink, "_clone", lambda *fds: (time.sleep(1), clone(*fds)))
    with frozen_by_them(filesystem("ext4", device=disk)):
        frozen = reflink.Reflink(FreezeOptions(limit_s=limit_s)).freeze(device.inspect(disk), "run-1")
    assert frozen.consistency == "application"


@pytest.mark.parametrize("hooks", [(), ("/bin/true",)])
def test_a_freeze_of_theirs_outlasts_an_agent_that_is_killed(xfs, loop_device, filesystem, hooks):
    disk = loop_device(backing=image(xfs, size=64 * MIB))
    with frozen_by_them(filesystem("ext4", device=disk)):
        status, _ = elsewhere(FREEZE_WITH, disk, *hooks, crash="snapshot-frozen:1")  # and its guard has ended, which has the same stderr
    assert status == -9


def test_a_mount_point_that_another_mount_covers_is_reached_through_a_second_one_or_it_is_said(
    xfs, loop_device, filesystem, memory_dir, undo_after
):
    disk = loop_device(backing=image(xfs, size=64 * MIB))
    point = filesystem("ext4", device=disk)
    (point / "file").write_bytes(b"f" * MIB)
    run("mount", "-t", "tmpfs", "tmpfs", point)
    undo_after.callback(run, "umount", point)
    info = device.inspect(disk)
    with pytest.raises(SnapshotError, match="cannot be reached"):
        registry.BACKENDS["reflink"].freeze(info, "x")
    assert registry.BACKENDS["reflink"].stale(info) == []
    second = memory_dir / "second"
    second.mkdir()
    run("mount", disk, second)
    undo_after.callback(run, "umount", second)
    run("e2fsck", "-f", "-n", registry.BACKENDS["reflink"].freeze(info, "x").path)


def test_an_image_that_is_not_copied_on_write_can_be_cloned_on_btrfs(btrfs):
    path = btrfs / "vm.img"
    path.touch()
    run("chattr", "+C", path)
    os.truncate(path, VOLUME_SIZE)
    write(path, 1)
    frozen = registry.BACKENDS["reflink"].freeze(device.inspect(path), "run-1")
    write(path, 2)
    assert read(frozen.path) == b"\1" * VOLUME_SIZE


def test_stale_names_only_the_snapshots_of_that_image(xfs):
    backend = registry.BACKENDS["reflink"]
    one, two = (device.inspect(image(xfs, name, MIB)) for name in ("a", "a@b"))
    first, second = backend.freeze(one, "x"), backend.freeze(two, "x")
    assert backend.stale(one) == [first.token] and backend.stale(two) == [second.token]
    assert backend.stale(one, keep=[first.token]) == []


@pytest.mark.parametrize("token", [
    "reflink:{}/victim", "reflink:{}/.qrep-snapshots/../victim@x", "reflink:.qrep-snapshots/a@b", "none:{}/victim",
    "reflink:{}/.qrep-snapshots/victim",
])  # fmt: skip
def test_a_token_that_names_something_else_removes_nothing(memory_dir, token):
    victim, inside = memory_dir / "victim", memory_dir / ".qrep-snapshots/victim"
    inside.parent.mkdir()
    for path in (victim, inside, memory_dir / "victim@x"):
        path.write_text("precious")
    with pytest.raises(SnapshotError, match="is not a reflink snapshot"):
        registry.BACKENDS["reflink"].release(token.format(memory_dir))
    assert victim.exists() and inside.exists() and (memory_dir / "victim@x").exists()


def test_a_snapshot_directory_that_others_could_use_is_refused(xfs, memory_dir):
    info = device.inspect(image(xfs, size=MIB))
    (xfs / ".qrep-snapshots").symlink_to(memory_dir)
    with pytest.raises(Refused):
        registry.BACKENDS["reflink"].freeze(info, "x")
    (xfs / ".qrep-snapshots").unlink()
    (xfs / ".qrep-snapshots").mkdir(mode=0o755)
    with pytest.raises(Refused, match="open to others"):
        registry.BACKENDS["reflink"].freeze(info, "x")


@contextlib.contextmanager
def put_in_place_of(frozen, how, precious):
    """The owner of the image's directory moves qrep's away and puts his own there, in which the snapshot's name leads to `precious`. Gives that
    name's path."""
    directory, name = os.path.split(frozen.path)
    theirs = f"{directory}-theirs"
    os.mkdir(theirs, 0o700)
    os.rename(directory, f"{directory}-ours")
    if how == "link":
        os.symlink(precious, f"{theirs}/{name}")
    else:
        os.link(precious, f"{theirs}/{name}")
    if how == "linked directory":
        os.symlink(theirs, directory)
    else:
        os.rename(theirs, directory)
    if how != "another of root's":
        os.chown(directory, NOBODY, NOBODY, follow_symlinks=False)
    try:
        yield frozen.path
    finally:
        os.rename(directory, f"{directory}-was-theirs")
        os.rename(f"{directory}-ours", directory)


@pytest.mark.parametrize("how", ["link", "file", "linked directory", "another of root's"])
def test_what_somebody_puts_in_the_place_of_a_snapshot_is_not_read_mapped_or_removed(xfs, how):
    backend, info, precious = reflink.Reflink(), device.inspect(image(xfs, size=MIB)), image(xfs, "precious", MIB)
    old, frozen = backend.freeze(info, "old"), backend.freeze(info, "run-1")
    fd, alignment = backend.open(frozen)
    os.close(fd)
    assert alignment == device.inspect(frozen.path).io_alignment
    with put_in_place_of(frozen, how, precious) as path:
        with pytest.raises(Refused):
            os.close(backend.open(frozen)[0])
        if how != "another of root's":  # what is in there, only root has put there
            for action in (backend.find, backend.release, lambda token: backend.changes(info, old.token, token)):
                with pytest.raises(Refused):
                    action(frozen.token)
            with pytest.raises(Refused):
                backend.stale(info)
            assert os.path.lexists(path)
    found = backend.find(frozen.token)
    assert found == frozen
    fd, _ = backend.open(found)
    os.close(fd)


def test_a_link_in_the_directory_of_snapshots_is_none(xfs):
    backend, info, precious = reflink.Reflink(), device.inspect(image(xfs, size=MIB)), image(xfs, "precious", MIB)
    frozen = backend.freeze(info, "run-1")
    os.unlink(frozen.path)
    os.symlink(precious, frozen.path)
    assert backend.find(frozen.token) is None
    with pytest.raises(SnapshotError, match="cannot be opened"):
        backend.open(frozen)
    os.unlink(frozen.path)
    os.mkfifo(frozen.path)
    with pytest.raises(Refused, match="no regular file"):
        backend.changes(info, frozen.token, frozen.token)


@pytest.mark.parametrize("other", ["link", "pipe"])
def test_what_somebody_puts_in_the_place_of_the_image_is_not_cloned_and_hangs_nobody(xfs, other):
    info = device.inspect(image(xfs, size=MIB))
    os.rename(info.path, xfs / "moved")
    if other == "link":
        os.symlink(xfs / "moved", info.path)
    else:
        os.mkfifo(info.path)
    with pytest.raises(SnapshotError):
        reflink.Reflink().freeze(info, "run-1")


# Choosing.


def test_auto_takes_reflink_where_it_works_and_says_why_not_elsewhere(xfs, ext4, loop_device):
    good = registry.choose("auto", device.inspect(image(xfs)))
    assert good.backend.name == "reflink" and "clones of" in good.reason
    for path, why in ((image(ext4), "cannot clone files"), (loop_device(MIB).path, "cannot clone files")):
        live = registry.choose("auto", device.inspect(path))
        assert live.backend.name == "none" and why in live.reason and "fuzzy" in live.reason


def test_a_device_that_is_no_image_or_only_a_part_of_one_says_so(xfs, loop_device):
    lower = loop_device(MIB)
    parts = {
        loop_device(backing=image(xfs), offset=MIB).path: "begins 1048576 bytes into",
        loop_device(backing=lower.path).path: "is not the file",
    }
    disk = loop_device(backing=image(xfs, "whole", 64 * MIB), partscan=True)
    partitioned(disk)
    parts[f"{disk}p1"] = "is a partition of"
    for path, why in parts.items():
        with pytest.raises(UsageError, match=why) as caught:
            registry.choose("reflink", device.inspect(path))
        assert caught.value.code == "snapshot-unsupported" and caught.value.hint


def test_an_image_that_was_replaced_below_its_loop_device_is_not_cloned(xfs, loop_device):
    disk = loop_device(backing=image(xfs))
    info = device.inspect(disk)
    image(xfs, "new")
    os.replace(xfs / "new", xfs / "image")
    capability = registry.BACKENDS["reflink"].probe(info)
    assert not capability.ok and "is not the file" in capability.reason


def test_an_unknown_word_is_a_usage_error_that_lists_the_known_ones(xfs):
    with pytest.raises(UsageError) as caught:
        registry.choose("zfs", device.inspect(image(xfs)))
    assert "auto, lvm, reflink, none" in caught.value.hint
