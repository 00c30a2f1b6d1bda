"""kill -9 of the source, the target or both at every named crash point; each time the target comes back by itself to its last committed
generation, no map lies, and the next run completes. Every opinion on the content is b3sum's and the packaged blake3's.

Both: one of them, or each, stands at its point when both are killed; or the one is killed in a run, and the other in the next attempt. These and
later passages are in the slow tier; kills at random times are in test_random_kills.py.
"""

from pathlib import Path

import oracle
import pytest
from fault.scene import GRANULE, LEAF, SIZE, VOLUME, changed
from fault.test_verify_kills import CORRECTION_POINTS, REPAIR_POINTS

from qrep._native.wire import Geometry
from fault.test_point_kills import DELETE_POINTS
from fault.test_role_kills import FINISH_POINTS, GIVE_UP_POINTS, TAKE_OVER_POINTS

from qrep.crashpoint import POINTS
from qrep.digestmap import DigestMap
from qrep.source.hints import kept

pytestmark = pytest.mark.root

SOURCE_POINTS = (
    "source-frozen", "source-run-saved", "source-send", "source-lanes-before", "source-leaf-page", "source-frame-sent", "source-end",
    "source-lanes-done", "source-release-before", "map-pending-before", "map-pending-durable", "map-fold-before", "map-fold-durable",
    "store-write-unflushed", "store-rename-before", "store-rename-unflushed", "store-remove-unflushed",
)  # fmt: skip
TARGET_POINTS = (
    "undo-create-before", "undo-create-durable", "superblock-write-before", "superblock-write-durable", "target-claimed",
    "target-lanes-started", "target-frame-received", "target-undo-written", "target-undo-flushed", "target-write-submitted",
    "target-write-done", "target-end", "undo-sealed", "target-flush-before", "target-flush-done", "target-reply", "map-pending-before",
    "map-pending-durable", "map-fold-before", "map-fold-durable", "store-write-unflushed", "store-rename-before", "store-rename-unflushed",
)  # fmt: skip
RECOVERY_POINTS = ("undo-restore-before", "undo-restore-batch", "target-flush-before", "target-flush-done", "superblock-write-before", "superblock-write-durable", "undo-prune-before")
# A source that dies in a first run makes the target drain its lanes and note what was applied.
CHECKPOINT_POINTS = ("target-drained", "map-checkpoint-before", "map-checkpoint-durable")
SNAPSHOT_POINTS = ("snapshot-frozen", "snapshot-cloned", "snapshot-named", "source-frozen", "source-run-saved", "source-release-before")
KEPT_POINTS = ("source-kept-remembered", "source-kept-old-released", "source-kept-settled")
AROUND_KEPT_POINTS = ("snapshot-named", "source-frozen", "source-run-saved", "source-lanes-done", "map-pending-durable", "map-fold-before", "map-fold-durable")
LET_GO_POINT = "source-kept-let-go"
DROP_POINT = "map-drop-before"  # of digests whose generation was not committed
INITIAL_POINTS = ("superblock-create-before", "map-forget-before", "target-write-done", "superblock-write-before", "map-fold-before")
ROLLBACK_POINTS = ("undo-create-durable", "rollback-undo-durable", "rollback-applied", "undo-sealed", "superblock-write-before", "superblock-write-durable", "map-fold-before")
CONNECTION_POINTS = ("source-lanes-added", "source-lane-leaves", "target-lanes-added")
# In test_group_kills.py.
GROUP_POINTS = ("group-record-before", "group-record-durable", "group-member-committed", "group-settle-before", "group-settled", "source-agreed", "together-frozen", "shared-frozen", "shared-token-held", "shared-token-released")
COMPARE_POINTS = ("source-searched", "source-leaf-page", "source-lanes-before", "source-frame-sent", "map-pending-durable")

ELSEWHERE = (  # killed at with whole agents
    "map-values-before", "map-values-durable",  # tests/unit/test_digestmap.py: only a root over gigabytes of zeroes comes there
    "copy-committed", "copy-given-back",  # tests/system/test_agent_copy_mode.py
    "clone-convert-before", "clone-convert-durable", "clone-let-go",  # tests/system/test_agent_clones.py
    "volume-created",  # tests/system/test_agent_volume_create.py
    "pairs-copy-durable",  # tests/unit/test_grants.py
    "rebuild-map-durable", "rebuild-pair-durable", "rebuild-adopt-before", "rebuild-adopted", "rebuild-told", "rebuild-noted",
)  # fmt: skip


def test_every_crash_point_is_killed_at():
    tables = (SOURCE_POINTS, TARGET_POINTS, RECOVERY_POINTS, INITIAL_POINTS, ROLLBACK_POINTS, COMPARE_POINTS, CHECKPOINT_POINTS, SNAPSHOT_POINTS, CONNECTION_POINTS, KEPT_POINTS, GROUP_POINTS, TAKE_OVER_POINTS, GIVE_UP_POINTS, FINISH_POINTS, DELETE_POINTS, REPAIR_POINTS, CORRECTION_POINTS)
    assert {point for table in tables for point in table} | set(ELSEWHERE) | {DROP_POINT, LET_GO_POINT} == set(POINTS)


# Whom a target at these points has told of the commit already may end before it is killed: it stands, too.
AFTER_THE_REPLY = ("map-fold-before", "map-fold-durable")
ALONE = ("target-claimed", "superblock-create-before")  # nobody can connect yet
BOTH_AT_THE_TARGET = tuple(point for point in TARGET_POINTS if point not in (*ALONE, *AFTER_THE_REPLY))
BOTH_STAND = (
    *(("source-end", point) for point in TARGET_POINTS if point.startswith(("target-frame", "target-undo", "target-write", "target-end"))),
    *(("map-fold-before", point) for point in AFTER_THE_REPLY),
)


LATER = ("superblock-write-before", "superblock-write-durable", "target-reply", "target-write-done")  # what several passages of one run differ in


def crash_and_recover(scene, source="", target="", how=""):
    """One end is killed."""
    codes = scene.run(source, target, how)
    assert [code == -9 for code in codes] == [bool(source), bool(target)], f"{codes}: nobody came by the crash point, or the other one died"
    scene.recover()
    scene.complete(scene.second)


def kill_both_and_recover(scene, source="", target="", how=""):
    scene.kill_both(source, target, how)
    scene.recover()
    scene.complete(scene.second)


@pytest.mark.parametrize("point", SOURCE_POINTS)
def test_the_source_is_killed(committed, point):
    crash_and_recover(committed, source=f"{point}:1")


@pytest.mark.parametrize("point", COMPARE_POINTS)
def test_the_source_is_killed_in_a_run_without_a_map(committed, point):
    (committed.source_map / "root").unlink()
    crash_and_recover(committed, source=f"{point}:1")


@pytest.mark.parametrize("point", TARGET_POINTS)
def test_the_target_is_killed(committed, point):
    crash_and_recover(committed, target=f"{point}:1")


@pytest.mark.slow
@pytest.mark.parametrize("passage", [2, 3])
@pytest.mark.parametrize("point", LATER)
def test_the_target_is_killed_at_a_later_passage(committed, point, passage):
    crash_and_recover(committed, target=f"{point}:{passage}")


@pytest.mark.slow
@pytest.mark.parametrize("point", SOURCE_POINTS)
def test_both_are_killed_where_the_source_stands(committed, point):
    kill_both_and_recover(committed, source=f"{point}:1")


@pytest.mark.slow
@pytest.mark.parametrize("point", COMPARE_POINTS)
def test_both_are_killed_where_the_source_stands_in_a_run_without_a_map(committed, point):
    (committed.source_map / "root").unlink()
    kill_both_and_recover(committed, source=f"{point}:1")


@pytest.mark.slow
@pytest.mark.parametrize("point", [f"{point}:1" for point in BOTH_AT_THE_TARGET] + [f"{point}:2" for point in LATER])
def test_both_are_killed_where_the_target_stands(committed, point):
    kill_both_and_recover(committed, target=point)


@pytest.mark.slow
@pytest.mark.parametrize("source, target", BOTH_STAND)
def test_both_are_killed_where_each_stands(committed, source, target):
    kill_both_and_recover(committed, f"{source}:1", f"{target}:1")


@pytest.mark.slow
@pytest.mark.parametrize("point", [point for point in TARGET_POINTS if point not in ALONE])
def test_the_target_is_killed_and_then_the_source_in_the_next_attempt(committed, random_source, point):
    assert committed.run("", f"{point}:1")[1] == -9
    changes_if_committed(committed, random_source)
    crash_and_recover(committed, source="source-frame-sent:1")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["target-write-done", "target-flush-done"])
@pytest.mark.parametrize("point", ["source-run-saved", "source-frame-sent", "source-lanes-done", "map-pending-durable", "map-fold-before", "source-release-before"])
def test_the_source_is_killed_and_then_the_target_in_the_next_attempt(committed, random_source, point, target):
    assert committed.run(f"{point}:1")[0] == -9
    changes_if_committed(committed, random_source)
    crash_and_recover(committed, target=f"{target}:1")


def changes_if_committed(scene, random_source):
    """The next attempt has something to do although the last one was committed."""
    if oracle.superblock(scene.state / "target").counter == 2:
        scene.second = scene.images[3] = changed(scene.second, random_source)
        scene.write(scene.second)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["target-claimed", *RECOVERY_POINTS])
def test_both_are_killed_and_the_target_again_while_it_recovers(committed, point):
    committed.kill_both("source-end:1", "target-write-done:1")
    dies_as_it_starts(committed, point)
    assert committed.recover() == 1
    committed.complete(committed.second)


def dies_as_it_starts(scene, point):
    again = scene.start("target", crash=f"{point}:1")
    assert scene.ready(again) is None and again.wait() == -9
    scene.end_all()


@pytest.mark.parametrize("point", RECOVERY_POINTS)
def test_the_target_is_killed_again_while_it_recovers(committed, point):
    codes = committed.run("", "target-flush-before:1")  # everything is written, nothing committed
    assert codes[1] == -9
    dies_as_it_starts(committed, point)
    assert committed.recover() == 1
    committed.complete(committed.second)


@pytest.mark.parametrize("point", INITIAL_POINTS)
def test_the_target_is_killed_in_its_first_run(scene, point):
    codes = scene.run("", f"{point}:1")
    assert codes[1] == -9
    scene.images[1] = scene.first
    scene.recover()
    scene.complete(scene.first)


@pytest.mark.slow
@pytest.mark.parametrize("point", [point for point in INITIAL_POINTS if point not in (*ALONE, *AFTER_THE_REPLY)])
def test_both_are_killed_where_the_target_stands_in_its_first_run(scene, point):
    scene.images[1] = scene.second = scene.first
    kill_both_and_recover(scene, target=f"{point}:1")


@pytest.mark.parametrize("point", CHECKPOINT_POINTS)
def test_both_are_killed_in_a_first_run(scene, point):
    assert scene.run("source-frame-sent:2", f"{point}:1") == [-9, -9]
    scene.images[1] = scene.first
    assert scene.recover() == 0
    scene.complete(scene.first)


def test_the_source_is_killed_while_it_drops_what_was_not_committed(committed):
    assert committed.run("map-pending-durable:1")[0] == -9
    crash_and_recover(committed, source=f"{DROP_POINT}:1")


def test_the_target_is_killed_while_it_drops_what_was_not_committed(committed):
    assert committed.run("", "map-pending-durable:1")[1] == -9
    dies_as_it_starts(committed, DROP_POINT)
    assert committed.recover() == 1
    committed.complete(committed.second)


@pytest.fixture
def resized(committed, random_source):
    """As committed, but everything has changed, so that a run lasts while its connections come and go."""
    committed.second = random_source.randbytes(len(committed.first))
    committed.write(committed.second)
    committed.images[2] = committed.second
    return committed


def test_connections_come_and_go_without_a_kill(resized):
    assert resized.run(how="resize") == [0, 0]
    assert resized.recover() == 2


@pytest.mark.parametrize("point", CONNECTION_POINTS)
def test_one_end_is_killed_as_connections_come_and_go(resized, point):
    crash_and_recover(resized, **{point.partition("-")[0]: f"{point}:1"}, how="resize")


@pytest.mark.slow
@pytest.mark.parametrize("point", CONNECTION_POINTS)
def test_both_are_killed_as_connections_come_and_go(resized, point):
    kill_both_and_recover(resized, **{point.partition("-")[0]: f"{point}:1"}, how="resize")


@pytest.mark.parametrize("end", ["source", "target"])
def test_an_end_is_killed_when_a_removed_connection_ends(resized, end):
    crash_and_recover(resized, **{end: f"{end}-end:1"}, how="resize")  # the first END is that of a connection that was removed


@pytest.mark.slow
@pytest.mark.parametrize("end", ["source", "target"])
def test_both_are_killed_when_a_removed_connection_ends(resized, end):
    kill_both_and_recover(resized, **{end: f"{end}-end:1"}, how="resize")


@pytest.mark.parametrize("point", SNAPSHOT_POINTS)
def test_the_source_is_killed_around_its_snapshot(frozen, point):
    crash_and_recover(frozen, source=f"{point}:1")
    assert not snapshots(frozen)  # of all that were taken none is left


@pytest.mark.slow
@pytest.mark.parametrize("point", SNAPSHOT_POINTS)
def test_both_are_killed_around_the_snapshot_of_the_source(frozen, point):
    kill_both_and_recover(frozen, source=f"{point}:1")
    assert not snapshots(frozen)


def snapshots(scene):
    return sorted(str(path) for path in (Path(scene.source).parent / ".qrep-snapshots").iterdir())


def kept_is_all_there_is(scene):
    """One snapshot is left, and it is the one that is remembered, of the generation that the map describes, with its content."""
    tag, token = kept(scene.source_map.parent)
    assert [token.partition(":")[2]] == snapshots(scene)
    assert tag == DigestMap(scene.source_map, Geometry(SIZE, LEAF, GRANULE), VOLUME).tag
    return Path(token.partition(":")[2]).read_bytes()


@pytest.mark.parametrize("point", [*KEPT_POINTS, "source-release-before", *(pytest.param(point, marks=pytest.mark.slow) for point in AROUND_KEPT_POINTS)])
def test_the_source_is_killed_around_the_snapshot_that_it_keeps(hinted, point):
    assert kept_is_all_there_is(hinted) == hinted.first
    crash_and_recover(hinted, source=f"{point}:1")
    assert kept_is_all_there_is(hinted) == hinted.second


@pytest.mark.slow
@pytest.mark.parametrize("point", [*KEPT_POINTS, "snapshot-named", "map-pending-durable", "map-fold-before"])
def test_both_are_killed_around_the_snapshot_that_the_source_keeps(hinted, point):
    kill_both_and_recover(hinted, source=f"{point}:1")
    assert kept_is_all_there_is(hinted) == hinted.second


@pytest.mark.parametrize("target", ["superblock-write-before:1", "superblock-write-durable:1"])
def test_the_target_is_killed_around_its_commit_and_the_source_keeps_the_right_snapshot(hinted, target):
    """The superblock is written when the attempt is opened, too: both passages are of this run, whatever the source heard of them."""
    crash_and_recover(hinted, target=target)
    assert kept_is_all_there_is(hinted) == hinted.second


def test_the_source_is_killed_when_no_snapshot_is_to_be_kept_any_more(hinted):
    hinted.backend = "reflink"
    crash_and_recover(hinted, source=f"{LET_GO_POINT}:1")
    assert snapshots(hinted) == [] and kept(hinted.source_map.parent) is None


@pytest.mark.parametrize("point", ROLLBACK_POINTS)
def test_the_target_is_killed_while_it_rolls_back(committed, point):
    committed.complete(committed.second)
    process = committed.start("rollback", 1, crash=f"{point}:1")
    process.communicate()
    assert committed.end_all() == [-9]
    committed.images[3] = committed.first
    assert committed.recover() in (2, 3)
    committed.complete(committed.second)
