"""Sync points of a volume in one process: given up by hand and by policy while they are read, pinned, or in the way of something else."""

import errno
import os
import shutil
import threading

import pytest
from flow.harness import MIB, packaged, write_at
from flow.test_view import Reader, change

from qrep.errors import DamagedError, NotFound, QrepError, Refused, UndoSpaceError
from qrep.retention import Policy
from qrep.target import undomerge


def some_points(site, random_source, count):
    """{id: content} of `count` generations, newest last."""
    images = {}
    for _ in range(count):
        change(site.source, random_source)
        report = site.run()
        with open(site.target_path, "rb") as file:
            images[bytes.fromhex(report.generation)] = file.read()
    with site.volume.lock:  # the target tidies up after it has said that it committed
        return images


def shown(site, point, path):
    site.volume.copy_out(point, str(path))
    content = path.read_bytes()
    path.unlink()
    return content


def test_points_are_read_while_those_between_are_merged_away(site, random_source, memory_dir):
    with site:
        images = some_points(site, random_source, 5)
        ids = list(images)
        with site.volume.pin(ids[0]), site.volume.pin(ids[3]):
            readers = [Reader(site.volume, ids[at], images[ids[at]], at) for at in (0, 3)]
            try:
                for at in (1, 2):
                    site.volume.delete_point(ids[at])
            finally:
                for reader in readers:
                    reader.stop()
            assert [point.id for point in site.volume.sync_points()] == [ids[4], ids[3], ids[0]]
            for at in (0, 3):
                with pytest.raises(Refused, match="in use"):
                    site.volume.delete_point(ids[at])
        assert shown(site, ids[0], memory_dir / "copy") == images[ids[0]]
        site.volume.rollback(ids[3])
        assert packaged(site.target_path) == packaged_bytes(images[ids[3]])
        assert site.run().root == packaged(site.target_path)
    with site:  # and after a restart
        assert shown(site, ids[0], memory_dir / "copy") == images[ids[0]]


def packaged_bytes(content):
    import blake3

    return blake3.blake3(content).hexdigest()


def test_a_pinned_point_stays_whatever_the_policy_says(site, random_source, memory_dir):
    with site:
        images = some_points(site, random_source, 4)
        ids = list(images)
        site.volume.set_policy(Policy(count=0))
        with site.volume.pin(ids[1]):
            some_points(site, random_source, 1)
            assert [point.id for point in site.volume.sync_points()][1:] == [ids[3], ids[2], ids[1]], "only what is older may be cut"
            assert site.volume.thin() == 2, "and what lies between is merged"
            assert [point.id for point in site.volume.sync_points()][1:] == [ids[1]]
            assert shown(site, ids[1], memory_dir / "copy") == images[ids[1]]
        assert site.volume.thin() == 1
        assert len(site.volume.sync_points()) == 1 and site.volume.undo.directory.names() == []
        with pytest.raises(NotFound), site.volume.pin(ids[1]):
            pass


def test_a_merge_that_finds_the_points_changed_gives_up_what_it_made(site, random_source, monkeypatch):
    """While the new file is written a run commits and what it was made for is cut; or the volume is closed."""
    with site:
        ids = list(some_points(site, random_source, 4))
        built, build = threading.Event(), undomerge.Merge.build

        def meanwhile(merge):
            build(merge)
            site.volume.set_policy(Policy(count=1))
            some_points(site, random_source, 1)
            built.set()

        monkeypatch.setattr(undomerge.Merge, "build", meanwhile)
        with pytest.raises(Refused, match="changed meanwhile"):
            site.volume.delete_point(ids[1])
        assert built.is_set() and site.volume.undo.reserved == 0
        assert not [name for name in os.listdir(site.volume.undo.directory.path) if name.endswith(".tmp")]
        assert [point.id for point in site.volume.sync_points()][1:] == [ids[3]]


def test_what_is_damaged_or_has_no_room_is_refused_and_changes_nothing(site, random_source):
    with site:
        ids = list(some_points(site, random_source, 4))
        before = [point.id for point in site.volume.sync_points()]
        site.volume.set_undo_limit(site.volume.undo.used())
        with pytest.raises(UndoSpaceError):
            site.volume.delete_point(ids[2])
        site.volume.set_undo_limit(None)
        path = f"{site.volume.undo.directory.path}/{ids[2].hex()}.undo"
        with open(path, "r+b") as file:
            file.write(bytes(128))
        with pytest.raises((DamagedError, NotFound)):
            site.volume.delete_point(ids[1])
        assert [point.id for point in site.volume.sync_points()] == before[:2], "what lies behind the damage is out of reach, and stays on disk"
        assert len(site.volume.undo.directory.names()) == 3 and path in site.volume.status()["out_of_reach"]


def test_what_cannot_be_read_just_now_is_not_lost_with_the_point_before_it(site, random_source, memory_dir, monkeypatch):
    with site:
        images = some_points(site, random_source, 4)
        ids, store, real = list(images), site.volume.undo, site.volume.undo.header

        def header(new):
            if new == ids[1]:
                raise OSError(errno.EMFILE, "Too many open files")
            return real(new)

        monkeypatch.setattr(store, "header", header)
        with pytest.raises(QrepError, match="cannot be read now"):
            site.volume.delete_point(ids[1])  # it looks like the last one, and the way to the first one leads through it
        site.volume.set_policy(Policy(count=1))
        site.volume.retain()
        monkeypatch.undo()
        assert [point.id for point in site.volume.sync_points()] == ids[::-1]
        assert [shown(site, point, memory_dir / "copy") for point in ids] == list(images.values())
        site.volume.retain()
        assert [point.id for point in site.volume.sync_points()] == ids[:1:-1]


def test_an_undo_directory_that_is_not_there_is_not_made_below_its_mount_point(site, random_source, memory_dir):
    elsewhere = memory_dir / "undo-elsewhere"
    with site.open(undo_directory=str(elsewhere)):
        some_points(site, random_source, 2)
        kept = packaged(site.target_path)
    shutil.move(elsewhere, memory_dir / "unmounted")
    elsewhere.mkdir(mode=0o700)
    with pytest.raises(Refused) as refused, site.open(undo_directory=str(elsewhere)):
        pass
    assert refused.value.code == "undo-missing" and "mount" in refused.value.hint
    site.close()
    assert list(elsewhere.iterdir()) == [] and packaged(site.target_path) == kept
    elsewhere.rmdir()
    shutil.move(memory_dir / "unmounted", elsewhere)
    with site.open(undo_directory=str(elsewhere)):
        assert len(site.volume.sync_points()) == 2
        write_at(site.source, 0, bytes(MIB))
        assert site.run().root == packaged(site.target_path)


