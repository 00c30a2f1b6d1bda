"""Sync points of a volume in one process: given up by hand and by policy while they are read, pinned, or in the way of something else."""

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest
from flow.harness import MIB, packaged, write_at
from flow.test_view import Reader, change

from qrep.errors import DamagedError, NotFound, QrepError, Refused, UndoSpaceError
from qrep.retention import Policy
from qrep.store import Directory
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


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_an_undo_file_that_somebody_took_away_is_told_and_what_lies_behind_it_stays(site, random_source, memory_dir, gone):
    with site:
        images = some_points(site, random_source, 4)
        ids, directory = list(images), site.volume.undo.directory.path
        path, away = f"{directory}/{ids[gone].hex()}.undo", memory_dir / "away"
        shutil.move(path, away)
        told = None if gone == 1 else path  # it led to the oldest one, which has no file that could be missed
        for _ in range(2):
            assert [point.id for point in site.volume.sync_points()] == ids[: gone - 1 : -1]
            found = site.volume.status()["out_of_reach"]
            assert found is None if told is None else f"{told} is not there" in found
            site.close()
            site.open()
        images |= some_points(site, random_source, 1)
        assert len(os.listdir(directory)) == 3, "a commit leaves what is behind"
        shutil.move(away, path)
        assert [point.id for point in site.volume.sync_points()] == list(images)[::-1] and site.volume.status()["out_of_reach"] is None
        assert [shown(site, point, memory_dir / "copy") for point in images] == list(images.values())


@pytest.mark.parametrize("harm", [os.unlink, lambda path: os.truncate(path, 100)], ids=["gone", "damaged"])
@pytest.mark.parametrize("by_hand", [True, False])
def test_what_is_out_of_reach_goes_with_the_last_point_before_it(site, random_source, harm, by_hand):
    with site:
        ids = list(some_points(site, random_source, 5))
        directory = site.volume.undo.directory
        harm(f"{directory.path}/{ids[2].hex()}.undo")
        assert [point.id for point in site.volume.sync_points()] == ids[:1:-1] and site.volume.status()["out_of_reach"]
        if by_hand:
            site.volume.delete_point(ids[2])
        else:
            site.volume.set_policy(Policy(count=1))
            site.volume.retain()
        assert [point.id for point in site.volume.sync_points()] == ids[:2:-1]
        assert directory.names() == [f"{ids[4].hex()}.undo"] and site.volume.status()["out_of_reach"] is None


def test_a_gap_among_thinned_points_is_told_and_lasts(site, random_source, memory_dir):
    """What lies behind is older than what the superblock remembers, and what it remembers was merged away."""
    with site:
        images = some_points(site, random_source, 4)
        ids, directory = list(images), site.volume.undo.directory.path
        site.volume.delete_point(ids[2])
        away = memory_dir / "away"
        shutil.move(f"{directory}/{ids[3].hex()}.undo", away)
        for _ in range(13):
            images |= some_points(site, random_source, 1)
            if len(site.volume.sync_points()) > 2:
                site.volume.delete_point(list(images)[-2])
            assert site.volume.status()["out_of_reach"]
        ids = list(images)
        shutil.move(away, f"{directory}/{ids[3].hex()}.undo")
        points = site.volume.sync_points()
        assert [point.id for point in points] == [ids[-1], ids[3], ids[1], ids[0]] and all(point.committed_at_ns for point in points)
        assert shown(site, ids[0], memory_dir / "copy") == images[ids[0]]


def test_what_is_in_use_behind_a_gap_is_not_given_up(site, random_source):
    with site:
        ids = list(some_points(site, random_source, 4))
        directory = site.volume.undo.directory
        with site.volume.pin(ids[1]):
            os.unlink(f"{directory.path}/{ids[2].hex()}.undo")
            with pytest.raises(Refused, match="in use"):
                site.volume.delete_point(ids[2])
            site.volume.set_policy(Policy(count=0))
            site.volume.retain()
            assert len(directory.names()) == 2
        site.volume.retain()
        assert directory.names() == []


def test_what_is_left_of_a_merge_is_never_taken_for_a_gap(site, random_source, monkeypatch):
    """A crash after each of the removals that the next start makes."""
    with site:
        ids = list(some_points(site, random_source, 6))
        kept = {name: Path(site.volume.undo.directory.path, name).read_bytes() for name in site.volume.undo.directory.names()}
        site.volume.set_policy(Policy(count=0))
        with site.volume.pin(ids[0]):
            site.volume.thin()
        directory = Path(site.volume.undo.directory.path)
    for name, content in kept.items():
        if not (directory / name).exists():
            (directory / name).write_bytes(content)

    class Crash(BaseException):
        """The process is gone."""

    for _ in range(4):
        real, removed = Directory.remove, []

        def once(self, name, real=real, removed=removed):
            if removed:
                raise Crash
            removed.append(name)
            real(self, name)

        with monkeypatch.context() as patch:
            patch.setattr(Directory, "remove", once)
            with pytest.raises(Crash), site.open(sync_points=Policy(count=9)):
                site.volume.undo.directory.remove("none")
        site.close()
        with monkeypatch.context() as patch:
            patch.setattr(Directory, "remove", lambda self, name: None)
            with site.open(sync_points=Policy(count=9)):
                assert site.volume.status()["out_of_reach"] is None
        site.close()
    with site.open(sync_points=Policy(count=9)):
        assert [point.id for point in site.volume.sync_points()] == [ids[5], ids[0]] and len(os.listdir(directory)) == 1


def test_what_cannot_be_read_just_now_behind_a_gap_stays(site, random_source, monkeypatch):
    with site:
        ids = list(some_points(site, random_source, 4))
        store, real = site.volume.undo, site.volume.undo.header
        os.unlink(f"{store.directory.path}/{ids[2].hex()}.undo")

        def header(new):
            if new == ids[1]:
                raise OSError(errno.EIO, "Input/output error")
            return real(new)

        monkeypatch.setattr(store, "header", header)
        ids += some_points(site, random_source, 1)
        monkeypatch.undo()
        assert store.directory.names() == sorted(f"{ids[at].hex()}.undo" for at in (1, 3, 4))
        site.volume.sync_points()
        assert f"{ids[2].hex()}.undo is not there" in site.volume.status()["out_of_reach"]


def test_nothing_is_begun_beside_what_is_left_of_another_attempt(site, random_source, monkeypatch):
    """Recovery goes by the only file on top of what is committed, should the sector that says what is open rot."""
    with site:
        ids = list(some_points(site, random_source, 2))
        directory, real = site.volume.undo.directory, Directory.remove
        change(site.source, random_source)
        run = site.make_run(timeout_s=0)
        monkeypatch.setattr(site.volume.undo, "seal", fails)
        monkeypatch.setattr(Directory, "remove", lambda self, name: fails(self, name) if name.endswith(".undo") else real(self, name))
        with pytest.raises(QrepError):
            run.run()
        assert len(directory.names()) == 2, "what was taken back could not be removed"
        with pytest.raises(QrepError, match="Structure needs cleaning"):
            site.run()
        assert len(directory.names()) == 2
        monkeypatch.undo()
        ids += some_points(site, random_source, 1)
        assert [point.id for point in site.volume.sync_points()] == ids[::-1] and len(directory.names()) == 2


def fails(*_arguments):
    raise OSError(errno.EUCLEAN, "Structure needs cleaning")


def test_a_file_that_cannot_be_removed_does_not_keep_the_oldest_point(site, random_source, monkeypatch):
    with site:
        ids = list(some_points(site, random_source, 4))
        directory, real = site.volume.undo.directory, Directory.remove
        stray = f"{ids[1].hex()}.undo"
        os.unlink(f"{directory.path}/{ids[2].hex()}.undo")

        def remove(self, name):
            if name == stray:
                raise OSError(errno.EUCLEAN, "Structure needs cleaning")
            real(self, name)

        monkeypatch.setattr(Directory, "remove", remove)
        site.volume.delete_point(ids[2])
        assert directory.names() == [stray]


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


