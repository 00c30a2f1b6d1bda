"""A source that is frozen by a reflink snapshot: sync points of one moment, and a resume that reads nothing twice."""

import pytest
from agents import MIB, b3sum, wait_until

pytestmark = pytest.mark.root
SIZE = 24 * MIB


@pytest.fixture
def image(xfs, fill):
    path = xfs / "disk.img"
    path.write_bytes(b"")
    fill(path, SIZE)
    return path


def files(image):
    return sorted(path for path in image.parent.rglob("*") if path.is_file())


def test_a_sync_point_of_a_frozen_source_is_not_fuzzy_though_it_is_written_meanwhile(agents, image, loop_device, fill):
    target = loop_device(SIZE)
    a, b = agents.replica(image, target, link_rate=10 * MIB)
    assert a.qrep("volume", "show", "db")["snapshots"]["backend"] == "reflink"
    before = b3sum(image)
    a.qrep("start", "db")
    wait_until(lambda: agents.link.carried > 4 * MIB)
    fill(image, SIZE)
    wait_until(lambda: a.job()["counter"] == 1)
    assert b3sum(target) == before == a.job()["root"] != b3sum(image)
    assert not a.job()["fuzzy"] and not b.job()["fuzzy"] and "run-fuzzy" not in a.codes()
    assert len(files(image)) == 2, "the snapshot of the committed generation is kept, and no other"
    assert a.run()["root"] == b3sum(target) == b3sum(image)


def test_a_resume_after_kill_minus_nine_shows_the_same_moment_and_reads_what_is_missing_only(agents, image, loop_device, fill):
    target = loop_device(SIZE)
    a, _b = agents.replica(image, target, source_volume=("--granule", "1M"), link_rate=10 * MIB)
    before = b3sum(image)
    a.qrep("start", "db")
    wait_until(lambda: agents.link.carried > SIZE * 0.6)
    a.kill()
    fill(image, SIZE)
    a.start()
    wait_until(lambda: a.job()["counter"] == 1)
    assert b3sum(target) == before == a.job()["root"]
    last = a.job()["last_run"]
    assert last["resumed"] and not last["fuzzy"] and last["read"] < SIZE * 0.7 and last["sent"] < SIZE * 0.7
    assert len(files(image)) == 2


def test_deleting_a_job_that_was_stopped_gives_its_snapshot_back(agents, image, loop_device):
    a, b = agents.replica(image, loop_device(SIZE), link_rate=10 * MIB)
    a.qrep("start", "db")
    wait_until(lambda: agents.link.carried > 4 * MIB)
    a.qrep("stop", "db")
    assert len(files(image)) == 2, "it is kept for the resume"
    a.qrep("job", "delete", "db", "-y")
    assert files(image) == [image]
    assert b.qrep("status")["jobs"] == []
