"""Several targets of one source: one frozen snapshot and one pass of reading, given back with the last of them."""

import pytest
from agents import MIB, b3sum, inside, wait_until
from cables import Cables, addresses

from qrep.settings import Job

pytestmark = pytest.mark.root
SIZE = 16 * MIB
GRANULE = MIB
NO_HINTS = ("--hints", "off") if "hints" in Job.__struct_fields__ else ()  # with hints nobody would read much


@pytest.fixture
def sites(agents, xfs):  # mounted before the agents get mount namespaces of their own
    with Cables([0]) as cables:
        a, b = (
            agents.agent(name, host=host, port=7414, prefix=inside(space))
            for name, host, space in zip(("site-a", "site-b"), addresses(0), cables.spaces, strict=True)
        )
        a.qrep("peer", "add", "site-b", f"{b.host}:{b.port}", "-y")
        b.qrep("peer", "add", "site-a", f"{a.host}:{a.port}", "-y")
        yield a, b


def fan_out(sites, xfs, loop_device, fill, count):
    """`count` jobs of one image at site-a to as many volumes at site-b: (image, {job: target})."""
    a, b = sites
    image = xfs / "db.img"
    image.write_bytes(b"")
    fill(image, SIZE)
    a.qrep("volume", "add", "db", image, "--granule", "1M")
    targets = {f"db{number}": loop_device(SIZE) for number in range(count)}
    for job, target in targets.items():
        b.qrep("volume", "add", job, target, "--accept", "site-a")
        a.qrep("job", "create", job, "--source", "db", "--target", f"site-b:{job}", "--connections", 1, "--timeout", "2m", *NO_HINTS)
    return image, targets


def snapshots(image):
    directory = image.parent / ".qrep-snapshots"
    return list(directory.iterdir()) if directory.exists() else []


def read_by(reports):
    return sum(report["read"] for report in reports.values())


def shares(reports):
    """Each has seen all of the source, and together they have read it about once: on a machine that is busy one may come late and read by itself."""
    return all(report["read"] + report["read_shared"] == SIZE for report in reports.values()) and read_by(reports) < len(reports) / 2 * SIZE


def test_eight_targets_of_one_source_cost_one_pass_over_it(sites, xfs, loop_device, fill):
    a, _b = sites
    image, targets = fan_out(sites, xfs, loop_device, fill, 8)
    first = a.qrep("start", *targets, "--wait")
    assert {report["root"] for report in first.values()} == {b3sum(image)} == {b3sum(target) for target in targets.values()}
    assert shares(first) and len({report["frozen_at_ns"] for report in first.values()}) == 1
    fill(image, GRANULE // 2, 5 * GRANULE)
    second = a.qrep("start", *targets, "--wait")
    assert {report["root"] for report in second.values()} == {b3sum(image)} == {b3sum(target) for target in targets.values()}
    assert shares(second) and all(report["changed"] == GRANULE // 2 for report in second.values())
    assert not snapshots(image)


@pytest.mark.slow
def test_a_snapshot_that_several_jobs_hold_outlives_a_kill_until_the_last_has_committed(sites, xfs, loop_device, fill):
    a, b = sites
    image, targets = fan_out(sites, xfs, loop_device, fill, 2)
    b.kill()
    before = b3sum(image)
    b.start(QREP_CRASH="target-write-done:3")
    a.qrep("start", *targets)
    wait_until(lambda: b.process.poll() is not None)
    a.kill()
    fill(image, SIZE)
    b.start()
    a.start()
    wait_until(lambda: all(a.job(job)["counter"] == 1 for job in targets), 60)
    assert {b3sum(target) for target in targets.values()} == {before}, "both resumed from the snapshot that they share"
    assert not snapshots(image)


@pytest.mark.slow
def test_a_shared_snapshot_is_kept_for_hints_once_and_goes_with_the_last_job(agents, xfs, loop_device, fill):
    image = xfs / "db.img"
    image.write_bytes(b"")
    fill(image, SIZE)
    a = agents.agent("site-a")
    a.qrep("volume", "add", "db", image)
    targets = {f"db{number}": loop_device(SIZE) for number in range(2)}
    for job, target in targets.items():
        a.qrep("volume", "add", job, target)
        a.qrep("job", "create", job, "--source", "db", "--target", job)
    for _ in range(3):
        fill(image, GRANULE, 3 * GRANULE)
        reports = a.qrep("start", *targets, "--wait")
        assert {report["root"] for report in reports.values()} == {b3sum(image)} == {b3sum(target) for target in targets.values()}
    assert len(snapshots(image)) == 1, "of the last generation, for both"
    assert reports["db0"]["hints"]["state"] == "used" and read_by(reports) < SIZE
    a.qrep("job", "delete", "db0", "-y")
    assert len(snapshots(image)) == 1
    assert a.run("db1")["root"] == b3sum(image) and len(snapshots(image)) == 1
    a.qrep("job", "delete", "db1", "-y")
    assert not snapshots(image)


def test_nothing_cascades(agents, loop_device):
    a = agents.agent("site-a")
    for name in ("x", "y", "z"):
        a.qrep("volume", "add", name, loop_device(SIZE))
    a.qrep("job", "create", "first", "--source", "x", "--target", "y")
    for ways in (
        ("job", "create", "next", "--source", "y", "--target", "z"),
        ("job", "create", "next", "--source", "y", "--target", "z", "--mode", "copy"),
        ("job", "create", "next", "--source", "z", "--target", "x"),
        ("clone", "create", "y", "z"),
        ("clone", "create", "z", "x"),
    ):
        refusal = a.refused(*ways)
        assert (refusal["code"], refusal["exit"]) == ("cascading", 5), ways
    assert [job["name"] for job in a.qrep("job")] == ["first"]
