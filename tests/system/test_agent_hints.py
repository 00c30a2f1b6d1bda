"""Two agents in two network namespaces, the source a loop device over an image on XFS: a run reads about what has changed, and says so."""

import os
import subprocess
from pathlib import Path

import pytest
from agents import MIB, wait_until
from machine import image
from system.cables import Cables
from system.pathscene import over_cables

pytestmark = pytest.mark.root
SIZE, LEAF = 128 * MIB, 4096


def write_at(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@pytest.fixture
def backing(xfs):
    return image(xfs, "db.img", size=SIZE)


def snapshots(backing):
    return list((backing.parent / ".qrep-snapshots").iterdir())


def test_a_run_of_a_sparse_image_reads_what_has_changed(agents, backing, loop_device, undo_after, random_source):
    source, target = loop_device(backing=backing), loop_device(SIZE)
    write_at(source, 0, random_source.randbytes(24 * MIB))
    a = over_cables(agents, Cables(undo_after), source, target, SIZE).a
    a.run()
    for offset in (0, 17 * LEAF, 9 * MIB, 100 * MIB):  # clustered and alone, in data and in a hole
        write_at(source, offset, random_source.randbytes(LEAF))
    write_at(source, 12 * MIB, random_source.randbytes(8 * MIB))
    assert a.qrep("start", "db", "-n")["db"]["would_send"] == 8 * MIB + 4 * LEAF
    report = a.run()
    assert subprocess.run(["cmp", source, target], check=False).returncode == 0
    assert report["changed"] == 8 * MIB + 4 * LEAF and report["hints"]["state"] == "used"
    assert report["read_per_changed"] <= 1.2
    shown = a.job()["last_run"]
    assert (shown["read"], shown["read_per_changed"]) == (report["read"], report["read_per_changed"])
    assert "hint used: 8.0 MiB named" in a.text("status", "db")[0] and "for each byte changed" in a.text("job", "show", "db")[0]
    assert len(snapshots(backing)) == 1
    # After a kill the snapshot is remembered, and the next run is hinted by it.
    a.kill()
    a.start()
    write_at(source, 5 * MIB, random_source.randbytes(LEAF))
    report = a.run()
    assert report["changed"] == LEAF and report["hints"]["state"] == "used" and report["read"] < MIB
    # Off at once, and the job's end leaves nothing.
    a.qrep("job", "set", "db", "--hints", "off")
    assert snapshots(backing) == [] and a.job()["hints"] == "off"
    assert a.run()["hints"]["state"] == "off" and snapshots(backing) == []
    a.qrep("job", "set", "db", "--hints", "auto", "--hint-sample", "50%")
    a.run()
    assert len(snapshots(backing)) == 1
    assert a.run()["hints"]["sampled"] == 25 * MIB // 2  # of the granules (1 MiB) that hold data
    assert a.refused("job", "set", "db", "--hint-sample", "0%")["exit"] == 2
    a.qrep("job", "delete", "db", "-y")
    assert snapshots(backing) == []


@pytest.mark.slow
def test_an_agent_that_is_killed_in_a_hinted_run_leaves_one_snapshot(agents, backing, loop_device, random_source):
    target = loop_device(SIZE)
    write_at(backing, 0, random_source.randbytes(16 * MIB))
    a, _b = agents.replica(backing, target)
    a.run()
    for point in ("source-kept-remembered:1", "source-kept-old-released:1"):
        write_at(backing, 3 * MIB, random_source.randbytes(MIB))
        a.kill()
        a.start(QREP_CRASH=point)
        a.call("start", "db")
        a.process.wait(30)
        a.start()
        wait_until(lambda: a.job()["state"] == "idle")  # it is taken up by itself
        assert subprocess.run(["cmp", backing, target], check=False).returncode == 0
        assert len(snapshots(backing)) == 1
        assert Path(snapshots(backing)[0]).stat().st_size == SIZE
