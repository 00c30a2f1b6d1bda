"""Whole runs: what is committed is what b3sum sees, only what changed travels, and sync points can be had back."""

import errno
import os
import threading
import time

import pytest
from flow.harness import GRANULE, LEAF, MIB, Site, b3sum, packaged, write_at

from qrep._native import undo
from qrep.copy import copy_local
from qrep.errors import DamagedError, Interrupted, NotFound, QrepError, Refused, UndoSpaceError, Unreachable
from qrep.source.flow import Run
from qrep.volumes.reflink import Reflink

pytestmark = pytest.mark.root
NOBODY = 65534


def same(site, report):
    """The target is the source, and three opinions agree on the root."""
    assert report.root == b3sum(site.target_path) == b3sum(site.source) == packaged(site.target_path)


def test_a_first_run_copies_everything_and_the_root_is_b3sums(site):
    with site:
        report = site.run()
        same(site, report)
        assert report.counter == 1 and report.fuzzy and not report.resumed
        # 11 MiB of data in 24 MiB: the rest is zero and does not travel
        assert 11 * MIB <= report.sent < 11 * MIB + 64 * 1024
        site.map_is_true(24 * MIB)


def test_an_unchanged_source_sends_nothing(site):
    with site:
        first, second = site.run(), site.run()
        same(site, second)
        assert second.counter == 2 and second.changed == 0 and second.root == first.root
        assert second.sent < 1024


def test_only_changed_leaves_travel(site):
    with site:
        site.run()
        for offset in (0, 5 * MIB + 8192, 13 * MIB, 24 * MIB - LEAF):
            write_at(site.source, offset, b"changed")
        report = site.run()
        same(site, report)
        assert report.changed == 4 * LEAF and report.sent < 4 * LEAF + 4096
        site.map_is_true(24 * MIB)


def test_a_source_that_became_zero_leaves_holes_on_the_target(site):
    with site:
        site.run()
        write_at(site.source, 0, bytes(4 * MIB))
        report = site.run()
        same(site, report)
        assert report.sent < 4096


def test_maps_survive_a_restart_of_both_ends(site):
    with site:
        site.run()
    write_at(site.source, 3 * MIB, b"x" * LEAF)
    with site:
        report = site.run()
        same(site, report)
        assert report.changed == LEAF


def test_a_source_that_lost_its_map_compares_instead_of_sending(site, memory_dir):
    with site:
        site.run()
        for path in (memory_dir / "sources").rglob("root"):
            path.unlink()
        write_at(site.source, 2 * MIB, b"y" * LEAF)
        report = site.run()
        same(site, report)
        assert report.sent < 2 * GRANULE  # one granule differs; without the map its leaves are not known
        assert site.run(initial="full").changed == 0  # and the map is whole again


def test_a_target_that_lost_its_map_still_receives(site, memory_dir):
    with site:
        site.run()
    for path in (memory_dir / "target" / "map").iterdir():
        path.unlink()
    write_at(site.source, 2 * MIB, b"y" * LEAF)
    with site:
        report = site.run()
        same(site, report)
        assert report.changed == LEAF


@pytest.mark.parametrize("size", [24 * MIB - 512, 8192, 8192 + 512, MIB, 3 * MIB + 1536])
def test_sizes_that_are_not_whole_leaves_or_granules(memory_dir, random_source, undo_after, size):
    source, target = memory_dir / "a.img", memory_dir / "b.img"
    source.write_bytes(random_source.randbytes(size))
    target.write_bytes(bytes(size))
    for _ in range(2):
        report = copy_local(source, target, memory_dir / "state", granule_size=GRANULE)
        assert report.root == b3sum(target) == b3sum(source)
        write_at(source, size - 5, b"12345")


def test_a_larger_target_keeps_what_lies_behind(loop_device, memory_dir, random_source, undo_after):
    source, target = loop_device(4 * MIB), loop_device(6 * MIB)
    write_at(source, 0, random_source.randbytes(4 * MIB))
    write_at(target, 4 * MIB, b"behind")
    site = Site(memory_dir, source, target)
    undo_after.callback(site.close)
    with site:
        report = site.run()
    assert report.root == b3sum(source) == b3sum(target, 4 * MIB)
    with open(target, "rb") as file:
        file.seek(4 * MIB)
        assert file.read(6) == b"behind"


@pytest.mark.parametrize("connections", [1, 4])
def test_connections_share_the_work(site, connections):
    with site:
        same(site, site.run(connections=connections))


def test_a_reflink_snapshot_freezes_and_is_given_back(xfs, memory_dir, random_source, undo_after):
    source, target = xfs / "db.img", memory_dir / "copy.img"
    source.write_bytes(random_source.randbytes(8 * MIB))
    target.write_bytes(bytes(8 * MIB))
    frozen = b3sum(source)
    site = Site(memory_dir, source, target)
    undo_after.callback(site.close)
    with site:
        run = site.make_run(backend=Reflink())
        change = lambda *args, **kwargs: write_at(source, MIB, b"later")  # noqa: E731
        original = run._handlers
        from qrep.protocol import actions as do

        run._handlers = {**original, do.StartSending: lambda self, action: (change(), original[do.StartSending](self, action))[1]}
        report = run.run()
        assert not report.fuzzy and report.root == frozen == b3sum(target)
    assert not list((xfs / ".qrep-snapshots").iterdir())


class Swapping(Reflink):
    """As soon as there is a snapshot, the owner of the image's directory has a link to `precious` in its place."""

    def __init__(self, precious):
        super().__init__()
        self.precious = precious

    def freeze(self, device, name, *, quieted=""):
        frozen = super().freeze(device, name, quieted=quieted)
        directory, name = os.path.split(frozen.path)
        os.rename(directory, f"{directory}-ours")
        os.mkdir(directory)
        os.chown(directory, NOBODY, NOBODY)
        os.symlink(self.precious, frozen.path)
        return frozen


@pytest.mark.parametrize("kind", ["device", "file"])
def test_the_owner_of_an_images_directory_has_nothing_else_replicated(xfs, loop_device, memory_dir, random_source, undo_after, kind):
    source, target = xfs / "db.img", memory_dir / "copy.img"
    source.write_bytes(bytes(8 * MIB))
    target.write_bytes(bytes(8 * MIB))
    precious = loop_device(8 * MIB).path if kind == "device" else str(memory_dir / "precious")
    with open(precious, "wb") as file:
        file.write(random_source.randbytes(8 * MIB))
    site = Site(memory_dir, source, target)
    undo_after.callback(site.close)
    with site:
        with pytest.raises(Refused, match="open to others"):
            site.run(backend=Swapping(precious))
        assert target.read_bytes() == bytes(8 * MIB)


def test_sync_points_are_kept_copied_out_and_rolled_back_to(site, memory_dir, random_source):
    roots = []
    with site:
        for number in range(4):
            write_at(site.source, (3 * number + 1) * MIB, random_source.randbytes(2 * MIB + LEAF))
            roots.append(site.run().root)
        points = site.volume.sync_points()
        assert [point.counter for point in points] == [4, 3, 2, 1] and points[0].current
        for point, root in zip(points, reversed(roots), strict=True):
            path = memory_dir / f"out{point.counter}.img"
            site.volume.copy_out(point.id, path)
            assert b3sum(path) == root
            assert os.stat(path).st_mode & 0o777 == 0o600
        with pytest.raises(Refused, match="exists"):
            site.volume.copy_out(points[0].id, memory_dir / "out1.img")
        became = site.volume.rollback(points[2].id)
        assert became.counter == 5 and became.current
        assert b3sum(site.target_path) == roots[1]
        site.map_is_true(24 * MIB)
        # and back again: the rollback is a generation like any other
        site.volume.rollback(site.volume.sync_points()[1].id)
        assert b3sum(site.target_path) == roots[3]
        with pytest.raises(NotFound):
            site.volume.rollback(bytes(16))
    with site:
        assert b3sum(site.target_path) == roots[3]
        same(site, site.run())


def test_old_sync_points_go_when_more_than_wanted_are_there(site, memory_dir):
    with site.open(sync_points=2):
        for number in range(5):
            write_at(site.source, number * MIB, b"n%d" % number)
            site.run()
        assert [point.counter for point in site.volume.sync_points()] == [5, 4, 3]
        assert len(list((memory_dir / "target" / "undo").iterdir())) == 2


def test_undo_space_that_runs_out_is_a_clean_abort(site, random_source):
    write_at(site.source, 0, random_source.randbytes(24 * MIB))
    with site:
        first = site.run()
    write_at(site.source, 0, random_source.randbytes(24 * MIB))
    # 24 MiB of before-images need two segments of 16 MiB behind the first, which holds the header
    with site.open(undo_limit=34 * MIB):
        with pytest.raises(QrepError) as caught:
            site.run(connections=1, leaf_size=LEAF)
        assert isinstance(caught.value, UndoSpaceError) and "undo" in caught.value.message and caught.value.hint
        assert b3sum(site.target_path) == first.root
        assert site.volume.status()["phase"] == "idle"
    site.close()
    with site:
        same(site, site.run())


def test_a_rollback_without_room_for_its_undo_is_undone_and_says_the_way_out(site, random_source, monkeypatch):
    applied = []
    restore = undo.restore
    monkeypatch.setattr("qrep.target.rollback.undo.restore", lambda *given, **more: applied.append(1) or restore(*given, **more))
    with site:
        first = site.run()
        for _ in range(2):
            write_at(site.source, 0, random_source.randbytes(24 * MIB))
            newest = site.run()
        back = site.volume.sync_points()[2].id
        # none for a file; for half of the way: one undo file of two is put back, and its before-images are in three segments behind the first
        for room, says, steps in ((MIB, "left for undo", 0), (60 * MIB, "no room for another", 2)):
            applied.clear()
            site.volume.set_undo_limit(site.volume.undo.used() + room)
            with pytest.raises(QrepError, match=says) as caught:
                site.volume.rollback(back)
            assert caught.value.code == "rollback-failed" and "--undo-space" in caught.value.hint
            assert len(applied) == steps, "the way there, and the way back"
            assert b3sum(site.target_path) == newest.root != first.root
        site.volume.set_undo_limit(None)
        site.volume.rollback(back)
        assert b3sum(site.target_path) == first.root


def test_a_rollback_whose_disk_is_full_says_the_way_out(site, random_source, monkeypatch):
    def full(*_what):
        raise OSError(errno.ENOSPC, "No space left on device")

    with site:
        site.run()
        write_at(site.source, 0, random_source.randbytes(MIB))
        newest = site.run()
        monkeypatch.setattr("qrep.target.undolog.write_all", full)
        with pytest.raises(QrepError, match="no room for another") as caught:
            site.volume.rollback(site.volume.sync_points()[1].id)
        assert "on its filesystem" in caught.value.hint and b3sum(site.target_path) == newest.root


def test_a_rollback_that_cannot_be_undone_is_not_told_as_one_that_was(site, random_source, monkeypatch):
    def fails(*_what, **_more):
        raise undo.RestoreError(errno.EIO, 0)

    with site:
        site.run()
        write_at(site.source, 0, random_source.randbytes(MIB))
        newest = site.run()
        monkeypatch.setattr("qrep._native.undo.restore", fails)
        with pytest.raises(DamagedError, match="out of service"):
            site.volume.rollback(site.volume.sync_points()[1].id)
        monkeypatch.undo()
    with site:
        assert b3sum(site.target_path) == newest.root


def test_a_stopped_run_resumes_without_sending_again(site, random_source):
    from qrep._native.bucket import Bucket

    write_at(site.source, 0, random_source.randbytes(24 * MIB))
    with site:
        site.local._bucket = Bucket(30 * MIB)
        run = site.make_run(backend=None, connections=1)
        threading.Timer(0.4, run.stop).start()
        with pytest.raises(Interrupted):
            run.run()
        site.local._bucket = None
        report = site.run()
        same(site, report)
        assert report.resumed
        assert report.sent < 20 * MIB  # 0.4 s at 30 MiB/s: about 12 of 24 MiB were applied before


def test_a_run_that_is_stopped_without_a_connection_was_stopped_and_has_not_failed(site, random_source):
    def nobody():
        run.stop()
        raise Unreachable("nobody is there")

    def cut():
        channel = site.local.dial()
        channel.close()
        return channel

    with site:
        for dial, on_lost in ((nobody, None), (cut, lambda _why: run.stop())):
            run = Run(site.make_run_request(timeout_s=60), dial, site.local.connect, on_lost=on_lost)
            with pytest.raises(Interrupted) as stopped:
                run.run()
            assert isinstance(stopped.value.__cause__, Unreachable), "why it had none"
        same(site, site.run())


def test_an_initial_run_resumes_after_a_restart_of_the_target_from_its_checkpoint(site, random_source, monkeypatch):
    from qrep._native.bucket import Bucket

    write_at(site.source, 0, random_source.randbytes(24 * MIB))
    monkeypatch.setattr("qrep.target.volume.CHECKPOINT_SECONDS", 0.2)
    monkeypatch.setattr("qrep.target.volume.TICK_S", 0.1)
    with site:
        site.local._bucket = Bucket(20 * MIB)
        run = site.make_run(connections=1)
        threading.Timer(0.6, run.stop).start()
        with pytest.raises(Interrupted):
            run.run()
    with site:
        assert site.volume.status()["phase"] == "open"
        report = site.run()
        same(site, report)
        assert report.resumed


def test_a_damaged_undo_file_takes_the_volume_out_of_service_and_leaves_the_device_alone(site, memory_dir, random_source):
    from qrep._native import disk
    from qrep.errors import QrepError

    with site:
        site.run()
        before = site.volume.machine.record
        base, new = before.committed_id, bytes([9]) * 16
        # a generation that was opened and whose undo file is then lost
        os.close(site.volume.undo.create(base, new, 77))
        site.volume._write_superblock(type("Action", (), {"record": before.opened(1, new, 77)}))
    content = b3sum(site.target_path)
    undo_file = memory_dir / "target" / "undo" / f"{new.hex()}.undo"
    undo_file.write_bytes(bytes(disk.UNDO_HEADER_SIZE))
    with site:
        status = site.volume.status()
        assert status["phase"] == "faulted" and undo_file.name in status["damaged"]
        with pytest.raises(DamagedError):
            site.volume.sync_points()
        with pytest.raises(QrepError, match="out of service|faulted"):
            site.run(timeout_s=1)
        assert b3sum(site.target_path) == content


def test_a_device_that_carries_a_filesystem_is_refused_before_anything_is_written(loop_device, filesystem, memory_dir):
    source, target = loop_device(320 * MIB), loop_device(320 * MIB)
    import subprocess

    subprocess.run(["mkfs.ext4", "-q", "-F", str(target)], check=True)
    before = b3sum(str(target))
    with pytest.raises(Refused) as caught:
        copy_local(str(source), str(target), memory_dir / "state")
    assert caught.value.exit_code == 5 and b3sum(str(target)) == before


def test_source_and_target_on_the_same_storage_are_refused(loop_device, memory_dir):
    source = loop_device(8 * MIB)
    other = loop_device(backing=source.backing)
    with pytest.raises(Refused, match="same storage"):
        copy_local(str(source), str(other), memory_dir / "state")


def test_a_second_volume_on_the_same_device_is_refused(site):
    with site:
        again = Site(site.directory / "other", site.source, site.target_path, claim_wait=0.2)
        with pytest.raises(Refused):
            again.open()
        again.close()


def test_a_source_that_grew_is_refused(memory_dir, random_source):
    source, target = memory_dir / "a.img", memory_dir / "b.img"
    source.write_bytes(random_source.randbytes(2 * MIB))
    target.write_bytes(bytes(4 * MIB))
    copy_local(source, target, memory_dir / "state", granule_size=GRANULE)
    os.truncate(source, 3 * MIB)
    with pytest.raises(Refused) as caught:
        copy_local(source, target, memory_dir / "state", granule_size=GRANULE)
    assert caught.value.code == "resized"
    assert b3sum(target, 2 * MIB) == b3sum(source, 2 * MIB)


def test_progress_says_what_is_going_on(site, random_source):
    from qrep._native.bucket import Bucket

    write_at(site.source, 0, random_source.randbytes(24 * MIB))
    with site:
        site.local._bucket = Bucket(24 * MIB)
        run = site.make_run(connections=1)
        worker = threading.Thread(target=run.run)
        worker.start()
        time.sleep(0.5)
        seen = run.progress()
        worker.join()
        assert seen["phase"] == "syncing" and 0 < seen["percent"] < 100 and seen["seconds_left"] > 0
        assert seen["bottleneck"] == "limit" and seen["rate_bytes_per_s"] < 40 * MIB


def test_unreadable_sectors_are_listed_and_nothing_is_committed(site, monkeypatch):
    pytest.importorskip("qrep._native.source_lane")
    from qrep.errors import Unsynced
    from qrep.source import flow

    class Unreadable(flow.SourceRun):
        def bad_extents(self):
            return [(3 * MIB, 512, 5)]

    with site:
        first = site.run()
        write_at(site.source, 8 * MIB, b"new")
        with monkeypatch.context() as patch:
            patch.setattr(flow, "SourceRun", Unreadable)
            with pytest.raises(Unsynced) as caught:
                site.run()
            assert caught.value.unreadable == [(3 * MIB, 512)] and "512 bytes at 3145728" in caught.value.message
            assert site.volume.machine.record.committed_counter == 1 and site.volume.has_open_generation()
            assert b3sum(site.target_path) != first.root
            with pytest.raises(Unsynced):
                site.run(hold=False)
            assert not site.volume.has_open_generation() and b3sum(site.target_path) == first.root
        same(site, site.run())


def test_a_full_state_directory_of_the_source_is_named_with_the_way_out_and_the_target_stays(site, monkeypatch):
    with site:
        first = site.run()
        write_at(site.source, 0, b"changed")
        with monkeypatch.context() as patch:
            patch.setattr("qrep.source.runrecord.RunFile.save", full_disk)
            with pytest.raises(QrepError, match="No space left") as raised:
                site.run()
        assert raised.value.code == "no-space" and str(site.directory) in raised.value.message and "make room" in raised.value.hint
        assert b3sum(site.target_path) == first.root
        same(site, site.run())


def full_disk(*_arguments, **_named):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
