"""LVM snapshots for real: run in the guest by test_lvm.py, whose kernel has the device-mapper. Not collected anywhere else."""

import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from agents import Agents, b3sum, wait_until
from copying import Copier
from machine import MIB, image, run
from system.conformance_snapshot import VOLUME_SIZE, SnapshotConformance, elsewhere, read, write

from qrep import device
from qrep.volumes import lvmtools, registry
from qrep.volumes.base import FreezeOptions, SnapshotError
from qrep.volumes.lvm import LvmThin
from qrep.volumes.lvm_cow import LvmCow
from qrep.volumes.together import Wanted, freeze_all

GROUP = "qrep-vg"
MAPPED = "qrep--vg"  # as the device-mapper spells it
CONF = """
devices { use_devicesfile = 0 scan = [ "/dev" ] global_filter = [ "a|^/dev/loop|", "r|.*|" ] }
activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }
global { use_lvmpolld = 0 thin_check_executable = "" }
"""


@pytest.fixture(scope="session", autouse=True)
def group(tmp_path_factory):
    """A volume group with a thin pool, a thin volume `thin` and a plain one `plain`, each of VOLUME_SIZE."""
    directory = tmp_path_factory.mktemp("lvm")
    (directory / "lvm.conf").write_text(CONF)
    os.environ.update(LVM_SYSTEM_DIR=str(directory), DM_DISABLE_UDEV="1")
    disk = Path("/dev/shm/lvm-disk")
    with open(disk, "wb") as file:
        file.truncate(512 * MIB)
    loop = run("losetup", "--find", "--show", disk)
    run("pvcreate", loop)
    run("vgcreate", "-s", "1m", GROUP, loop)
    run("lvcreate", "--yes", "-L", "160m", "--poolmetadatasize", "4m", "-T", f"{GROUP}/pool")
    run("lvcreate", "--yes", "-V", f"{VOLUME_SIZE}b", "-T", f"{GROUP}/pool", "-n", "thin")
    run("lvcreate", "--yes", "-L", f"{VOLUME_SIZE}b", "-n", "plain", GROUP)
    yield GROUP
    run("vgremove", "--force", "--yes", GROUP)
    run("losetup", "--detach", loop)


@pytest.fixture(autouse=True)
def nothing_is_left(group):
    yield
    assert lvmtools.report('lv_tags="qrep"') == []


@pytest.fixture
def agents(memory_dir):
    with Agents(memory_dir) as agents:
        yield agents


class LvmConformance(SnapshotConformance):
    crash_points = "snapshot-frozen", "snapshot-named"

    def test_a_snapshot_that_is_not_active_after_a_restart_is_found(self, backend, volume):
        write(volume, 5)
        frozen = backend.freeze(device.inspect(volume), "x")
        run("lvchange", "-an", "-y", frozen.token.partition(":")[2].partition("@")[0])
        assert not os.path.exists(frozen.path)
        assert backend.find(frozen.token) == frozen and os.path.exists(volume)
        assert read(frozen.path) == b"\5" * VOLUME_SIZE
        backend.release(frozen.token)

    def test_a_filesystem_mounted_on_it_is_clean_in_the_snapshot(self, backend, volume, mount):
        run("mkfs.ext4", "-q", "-F", volume)
        point = mount(volume, "defaults")
        (point / "file").write_bytes(b"x" * MIB)
        frozen = backend.freeze(device.inspect(volume), "x")
        assert frozen.consistency == "application"
        (point / "later").write_bytes(b"y" * 4096)  # it is thawed
        run("e2fsck", "-f", "-n", frozen.path)
        backend.release(frozen.token)

    def test_a_token_that_names_another_volume_removes_nothing(self, backend, group):
        for token in (f"{backend.name}:{group}/thin@x~a01234567", f"{backend.name}:{group}/plain.qrep.a0@x~a0", "none:x", f"{backend.name}:a/b;c@x~a01234567"):
            with pytest.raises(SnapshotError, match="is not a"):
                backend.release(token)
        run("lvcreate", "--yes", "-L", "1m", "-n", "mine.qrep.a01234567", group)
        from qrep.errors import Refused

        with pytest.raises(Refused, match="is not a snapshot of qrep's"):
            backend.release(f"{backend.name}:{group}/mine.qrep.a01234567@x~a01234567")
        run("lvremove", "-f", f"{group}/mine.qrep.a01234567")


class TestThin(LvmConformance):
    @pytest.fixture
    def backend(self):
        return LvmThin()

    @pytest.fixture
    def volume(self, group):
        return f"/dev/{group}/thin"


class TestClassic(LvmConformance):
    @pytest.fixture
    def backend(self):
        return LvmCow(FreezeOptions(space="20M"))  # what the tests write is all of the volume

    @pytest.fixture
    def volume(self, group):
        return f"/dev/{group}/plain"


def test_auto_takes_what_the_volume_is(group):
    thin = registry.choose("auto", device.inspect(f"/dev/{group}/thin"))
    assert thin.backend.name == "lvm-thin" and f"pool {group}/pool" in thin.reason
    plain = registry.choose("lvm", device.inspect(f"/dev/{group}/plain"))
    assert plain.backend.name == "lvm-cow" and plain.reason.startswith("up to 4 MiB of ")  # 20 % of 16 MiB in whole extents


def test_a_classic_snapshot_that_overflowed_is_not_found_and_the_source_is_unharmed(group):
    backend, volume = LvmCow(FreezeOptions(space="4M")), f"/dev/{group}/plain"
    write(volume, 1)
    frozen = backend.freeze(device.inspect(volume), "x")
    write(volume, 2)
    assert read(volume) == b"\2" * VOLUME_SIZE
    with pytest.raises(SnapshotError) as caught:
        backend.check(frozen.token)
    assert caught.value.code == "snapshot-full" and "is lost" in caught.value.message
    assert backend.find(frozen.token) is None
    backend.release(frozen.token)


def test_a_classic_snapshot_is_given_up_before_it_overflows(group):
    backend, volume = LvmCow(FreezeOptions(space="8M")), f"/dev/{group}/plain"
    write(volume, 1)
    frozen = backend.freeze(device.inspect(volume), "x")
    with pytest.raises(SnapshotError) as caught:
        for at in range(0, VOLUME_SIZE, MIB // 2):
            write(volume, 2, at, MIB // 2)
            os.sync()
            backend.check(frozen.token)
    assert caught.value.code == "snapshot-full" and "before it overflows" in caught.value.message and caught.value.hint
    assert read(frozen.path) == b"\1" * VOLUME_SIZE  # it was not lost
    backend.release(frozen.token)


def test_a_thin_snapshot_is_given_up_before_its_pool_overflows(group):
    run("lvcreate", "--yes", "-L", "24m", "--poolmetadatasize", "4m", "-T", f"{group}/small")
    run("lvcreate", "--yes", "-V", f"{VOLUME_SIZE}b", "-T", f"{group}/small", "-n", "tight")
    backend, volume = LvmThin(), f"/dev/{group}/tight"
    write(volume, 1)
    os.sync()
    frozen = backend.freeze(device.inspect(volume), "x")
    with pytest.raises(SnapshotError) as caught:
        for at in range(0, VOLUME_SIZE, MIB // 2):
            write(volume, 2, at, MIB // 2)
            os.sync()
            backend.check(frozen.token)
    assert caught.value.code == "snapshot-full" and f"pool {group}/small" in caught.value.message
    assert read(frozen.path) == b"\1" * VOLUME_SIZE
    backend.release(frozen.token)
    write(volume, 3)
    os.sync()
    assert read(volume) == b"\3" * VOLUME_SIZE
    run("lvremove", "--force", "--yes", f"{group}/small")


def test_a_run_whose_snapshot_runs_full_ends_cleanly_and_the_next_one_goes_on(group, memory_dir):
    source, target = f"/dev/{group}/plain", memory_dir / "target.img"
    with open(source, "r+b") as file:
        file.write(os.urandom(VOLUME_SIZE))

    copier = Copier(memory_dir)
    slow = copier.start(source, target, "--json", "--snapshots", "lvm", "--rate", "256K")
    deadline = time.monotonic() + 120
    while not lvmtools.report('lv_tags="qrep"'):
        assert slow.poll() is None and time.monotonic() < deadline, "the run did not freeze its source"
        time.sleep(0.2)
    for at in range(0, 8 * MIB, MIB // 4):  # twice the space of its snapshot, slowly
        if slow.poll() is not None:
            break
        write(source, 7, at, MIB // 4)
        os.sync()
        time.sleep(0.5)
    out, err = slow.communicate(timeout=120)
    assert out, err
    error = json.loads(out)["error"]
    assert slow.returncode == 1 and error["code"] == "snapshot-full" and "unharmed" in error["message"] and error["hint"], out
    assert lvmtools.report('lv_tags="qrep"') == []
    copier(source, target, "--snapshots", "lvm")
    assert target.read_bytes() == read(source)


def test_an_agent_that_is_killed_leaves_a_mounted_volume_writable(group, mount):
    volume = f"/dev/{group}/thin"
    run("mkfs.ext4", "-q", "-F", volume)
    point = mount(volume, "defaults")
    code = "import sys; from qrep import device; from qrep.volumes.lvm import LvmThin; LvmThin().freeze(device.inspect(sys.argv[1]), 'x')"
    for crash in ("snapshot-frozen:1", "snapshot-named:1"):
        status, _ = elsewhere(code, volume, crash=crash)
        assert status == -9
        subprocess.run(["touch", point / crash], timeout=30, check=True)
    left = LvmThin().stale(device.inspect(volume))
    assert len(left) == 1  # the second was made before the crash
    LvmThin().release(left[0])


# What a thin pool knows.

CHUNK = 64 << 10


def test_a_thin_pool_tells_what_two_snapshots_do_not_share_and_what_was_never_written(group):
    run("lvcreate", "--yes", "-V", f"{VOLUME_SIZE}b", "-T", f"{group}/pool", "-n", "fresh")
    volume, backend = f"/dev/{group}/fresh", LvmThin()
    info = device.inspect(volume)
    assert backend.never_written(info) and not backend.never_written(device.inspect(f"/dev/{group}/plain"))
    empty = backend.freeze(info, "x")
    assert backend.allocated(empty.token) == []
    write(volume, 1, MIB, MIB)
    first = backend.freeze(info, "x")
    assert not backend.never_written(info) and backend.allocated(first.token) == [(MIB, MIB)]
    write(volume, 2, MIB + CHUNK, 4096)
    write(volume, 3, VOLUME_SIZE - 4096, 4096)
    second = backend.freeze(info, "x")
    changed = backend.changes(info, first.token, second.token)
    assert changed == [(MIB + CHUNK, CHUNK), (VOLUME_SIZE - CHUNK, CHUNK)]
    assert backend.changes(info, second.token, second.token) == []
    assert backend.changes(info, empty.token, first.token) == [(MIB, MIB)]
    pool = lvmtools.report('lv_name="pool"')[0]
    run("dmsetup", "message", f"{MAPPED}-pool-tpool", "0", "reserve_metadata_snap")  # another program's
    with pytest.raises(SnapshotError, match=f"held by another program.*{MAPPED}-pool-tpool"):
        backend.changes(info, first.token, second.token)
    assert backend.allocated(first.token) is None
    run("dmsetup", "message", f"{MAPPED}-pool-tpool", "0", "release_metadata_snap")
    assert pool.active and backend.changes(info, first.token, second.token) == changed
    for frozen in (empty, first, second):
        backend.release(frozen.token)
    assert backend.changes(info, first.token, second.token) is None
    run("lvremove", "--yes", f"{group}/fresh")


def test_a_clone_of_a_golden_image_is_read_where_it_has_no_blocks(group, memory_dir, random_source):
    """A thin volume with an external origin: a plain volume, and a thin one of another pool that has blocks for half of its size."""
    backend, copier = LvmThin(), Copier(memory_dir)
    run("lvcreate", "--yes", "-L", f"{VOLUME_SIZE}b", "-n", "golden", group)
    run("lvcreate", "--yes", "-L", "24m", "--poolmetadatasize", "4m", "-T", f"{group}/other")
    run("lvcreate", "--yes", "-V", f"{VOLUME_SIZE}b", "-T", f"{group}/other", "-n", "base")
    for origin, size, clone in (("golden", VOLUME_SIZE, "clone"), ("base", VOLUME_SIZE // 2, "further")):
        content = bytearray(random_source.randbytes(size) + bytes(VOLUME_SIZE - size))
        with open(f"/dev/{group}/{origin}", "r+b") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        run("lvchange", "-an", f"{group}/{origin}")
        run("lvchange", "-pr", f"{group}/{origin}")
        run("lvcreate", "--yes", "-s", "--thinpool", f"{group}/pool", f"{group}/{origin}", "-kn", "-ay", "-n", clone)
        volume, target = f"/dev/{group}/{clone}", memory_dir / clone
        info = device.inspect(volume)
        copier(volume, target, "--snapshots", "lvm")  # nothing was written to it yet
        assert target.read_bytes() == content == read(volume) and not backend.never_written(info)
        first = backend.freeze(info, "x")
        content[MIB : MIB + 4096] = random_source.randbytes(4096)
        with open(volume, "r+b") as file:
            file.seek(MIB)
            file.write(content[MIB : MIB + 4096])
        second = backend.freeze(info, "x")
        assert backend.allocated(first.token) is None and backend.allocated(second.token) is None and read(second.path) == content
        assert backend.changes(info, first.token, second.token) == [(MIB, CHUNK)]
        for frozen in (first, second):
            backend.release(frozen.token)
        copier(volume, target, "--snapshots", "lvm")
        assert target.read_bytes() == content
    for name in ("further", "clone", "other", "golden"):
        run("lvremove", "--force", "--yes", f"{group}/{name}")


def test_two_who_ask_a_pool_at_once_are_both_answered(group):
    info = device.inspect(f"/dev/{group}/thin")
    backend = LvmThin()
    tokens = [backend.freeze(info, "x").token for _ in range(2)]
    with ThreadPoolExecutor(4) as several:
        answers = list(several.map(lambda _: backend.changes(info, *tokens), range(4)))
    assert answers == [[]] * 4
    for token in tokens:
        backend.release(token)


def test_a_logical_volume_is_made_where_it_is_asked_for(group, agents):
    a = agents.agent("site-a", start=False)
    a.start(seconds=300)
    plan = a.qrep("volume", "create", "one", "--size", "8M", "--in", group, "-n")
    assert plan == {"name": "one", "kind": "thin", "device": f"/dev/{group}/one", "size": 8 * MIB, "group": group, "pool": "pool"}
    assert a.qrep("volume", "create", "one", "--size", "8M", "--in", f"/dev/{group}")["snapshots"]["backend"] == "lvm-thin"
    run("vgcreate", "-s", "1m", "qrepplain", run("losetup", "--find", "--show", image(Path("/dev/shm"), "second", 64 * MIB)))
    made = a.qrep("volume", "create", "two", "--size", "8M", "--in", "qrepplain", "--snapshot-space", "2M")
    assert made["size"] == 8 * MIB and made["snapshots"]["backend"] == "lvm-cow"
    assert a.refused("volume", "create", "three", "--size", "1G", "--in", "qrepplain")["code"] == "no-space"
    assert a.refused("volume", "create", "three", "--size", "8M", "--in", f"{group}/nopool")["code"] == "no-such-pool"
    (a.config / "volumes" / "two.toml").unlink()
    a.qrep("reload")
    assert a.refused("volume", "create", "two", "--size", "8M", "--in", "qrepplain")["code"] == "exists"
    a.kill()
    run("vgremove", "--force", "--yes", "qrepplain")
    run("lvremove", "--yes", f"{group}/one")


def test_a_job_of_a_thin_volume_reads_what_changed_and_gives_its_snapshot_back_before_the_pool_is_full(group, agents, loop_device):
    run("lvcreate", "--yes", "-L", "48m", "--poolmetadatasize", "4m", "-T", f"{group}/tiny")
    for name in ("hinted", "filler"):
        run("lvcreate", "--yes", "-V", f"{VOLUME_SIZE}b", "-T", f"{group}/tiny", "-n", name)
    volume, target = f"/dev/{group}/hinted", loop_device(VOLUME_SIZE)
    write(volume, 1)
    a = agents.agent("site-a", start=False)
    a.start(seconds=300)
    a.qrep("volume", "add", "db", volume, "--granule", "1M")
    a.qrep("volume", "add", "copy", target)
    a.qrep("job", "create", "db", "--source", "db", "--target", "copy")
    assert a.run()["root"] == b3sum(target)
    write(volume, 2, 4 * MIB, 1 * MIB)
    report = a.run()
    print(f"hints of thin_delta: {report['read']} bytes read, {report['changed']} changed")
    assert report["root"] == b3sum(target) and report["changed"] == MIB and report["hints"]["state"] == "used" and report["read"] <= 1.2 * MIB
    assert len(lvmtools.report('lv_tags="qrep"')) == 1  # kept for the next run
    write(volume, 3)  # what is kept pins 16 of 48 MiB
    write(f"/dev/{group}/filler", 4, 0, 12 * MIB)
    os.sync()
    wait_until(lambda: a.events("snapshot-given-back"), seconds=60)
    assert lvmtools.report('lv_tags="qrep"') == []
    assert a.run()["root"] == b3sum(target) == b3sum(volume)
    a.qrep("job", "delete", "db", "-y")
    a.kill()
    run("lvremove", "--force", "--yes", f"{group}/tiny")


def test_filesystems_on_several_logical_volumes_are_frozen_at_one_moment(group, mount):
    wanted, points = [], []
    for name, backend in (("thin", LvmThin(FreezeOptions(limit_s=120))), ("plain", LvmCow(FreezeOptions(space="8M", limit_s=120)))):
        volume = f"/dev/{group}/{name}"
        run("mkfs.ext4", "-q", "-F", volume)
        points.append(mount(volume, "defaults"))
        (points[-1] / "file").write_bytes(b"x" * MIB)
        wanted.append(Wanted(device.inspect(volume), backend, "x"))
    began = time.monotonic()
    images = freeze_all(wanted)  # they are frozen here, and once more by the device-mapper
    print(f"two logical volumes frozen at one moment in {time.monotonic() - began:.1f} s")
    assert [frozen.consistency for frozen in images] == ["application", "application"]
    for (_info, backend, _name), point, frozen in zip(wanted, points, images, strict=True):
        subprocess.run(["touch", point / "later"], timeout=60, check=True)
        run("e2fsck", "-f", "-n", frozen.path)
        backend.release(frozen.token)
