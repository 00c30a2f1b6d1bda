"""Clones: copied within a host, carried to another one, proved to be what they are there, and replicated from then on."""

import contextlib
import os
from pathlib import Path

import pytest
from agents import MIB, b3sum, wait_until
from cables import Cables
from machine import is_free, run
from system.hosts import two_hosts

pytestmark = pytest.mark.root
SIZE = 16 * MIB


@pytest.fixture
def disks(loop_device, fill):
    """A source with data, and an empty disk for its clone."""
    source, copy = loop_device(SIZE), loop_device(SIZE)
    fill(source, 6 * MIB)
    return source, copy


def cloned(a, source, copy):
    """Clone db-copy of db, made once. Returns the report of the run."""
    a.qrep("volume", "add", "db", source, "--granule", "1M")
    a.qrep("volume", "add", "db-copy", copy)
    a.qrep("clone", "create", "db", "db-copy")
    return a.qrep("clone", "start", "db", "--wait")


def test_a_clone_is_made_shown_and_made_again_with_what_changed(agents, disks, loop_device, fill):
    source, copy = disks
    a = agents.agent("site-a")
    a.qrep("volume", "add", "db", source, "--granule", "1M")
    a.qrep("volume", "add", "db-copy", copy)
    assert a.qrep("clone") == [] and "qrep clone create" in a.text("clone")[0]
    assert a.refused("clone", "show", "db")["code"] == "no-such-clone"
    plan = a.qrep("clone", "create", "db", "db-copy", "-n")
    assert plan["mode"] == "clone" and a.qrep("clone") == [] and is_free(copy)
    a.qrep("clone", "create", "db", "db-copy")
    error = a.refused("clone", "convert", "db", "-y")
    assert (error["code"], error["exit"]) == ("not-finished", 5) and "qrep clone start db" in error["hint"]
    assert a.qrep("clone", "start", "db", "-n")["would_send"] == 6 * MIB

    first = a.qrep("clone", "start", "db", "--wait")
    assert first["root"] == b3sum(copy) == b3sum(source)
    shown = a.qrep("clone", "show", "db")
    assert (shown["root"], shown["counter"], shown["state"], shown["device"]) == (first["root"], 1, "idle", str(copy))
    text, _ = a.text("clone", "show", "db")
    assert first["root"] in text and "qrep clone convert db" in text and "db-copy" in a.text("clone")[0]
    fill(source, 64 << 10, 8 * MIB)
    second = a.qrep("clone", "start", "db", "--wait")
    assert second["counter"] == 2 and second["changed"] == 64 << 10 and second["root"] == b3sum(copy)
    assert a.qrep("verify", "db")["equal"] and a.job()["mode"] == "clone"

    # What cannot be a clone.
    a.qrep("volume", "add", "third", loop_device(SIZE))
    assert a.refused("clone", "create", "db", "third")["code"] == "clone-exists"
    assert a.refused("clone", "create", "third", "site-b:x")["code"] == "not-local"
    assert a.refused("clone", "create", "db-copy", "third")["code"] == "cascading"
    assert a.refused("clone", "create", "third", "db")["code"] == "cascading"
    assert a.refused("clone", "create", "third", "third")["exit"] == 5
    assert a.refused("job", "demote", "db", "-y")["code"] == "no-roles"
    assert a.refused("job", "set", "db", "--group", "both")["exit"] == 2

    assert "would be forgotten" in a.text("clone", "delete", "db", "-n")[0] and not is_free(copy)
    assert a.refused("clone", "delete", "db")["code"] == "needs-confirmation"
    a.qrep("clone", "delete", "db", "-y")
    assert is_free(copy) and b3sum(copy) == second["root"] and a.qrep("clone") == []
    a.qrep("volume", "remove", "db-copy", "-y")


def test_a_converted_clone_waits_for_its_disk_and_lets_it_go(agents, disks, fill):
    source, copy = disks
    a = agents.agent("site-a")
    cloned(a, source, copy)
    fill(source, 4096, 12 * MIB)
    root = a.qrep("clone", "start", "db", "--wait")["root"]
    a.qrep("attach", "db-copy", "--nbd", "--read-only")
    for command in (("convert", "db", "-n"), ("delete", "db", "-y")):
        assert a.refused("clone", *command)["code"] == "volume-in-use"
    a.qrep("detach", "db-copy")
    plan = a.qrep("clone", "convert", "db", "-n")["would_convert"]
    assert plan["counter"] == 2 and not is_free(copy)
    assert a.refused("clone", "convert", "db")["code"] == "needs-confirmation"
    text, code = a.text("clone", "convert", "db", "-y")
    assert code == 0 and text == f"Move the disks of {str(copy).removeprefix('/dev/')} to the target site, then: qrep job rebuild db --target PEER:VOLUME\n"
    assert is_free(copy) and b3sum(copy) == root and not a.db_pairs()
    fill(source, 8192, 3 * MIB)
    for _ in range(2):
        job = a.job()
        assert (job["state"], job["mode"], job["target"], job["counter"], job["problem"]["code"]) == ("moving", "async", "", 2, "disk-moved")
        assert "from generation 2 on" in job["problem"]["text"] and "qrep job rebuild db --target" in job["problem"]["action"]
        for command in (("start", "db"), ("verify", "db")):
            error = a.refused(*command)
            assert (error["code"], error["exit"]) == ("disk-moved", 5) and "qrep job rebuild db" in error["hint"]
        assert a.qrep("start", "db", "-n")["db"]["would_send"] == 8192  # it is tracked
        assert "action:" in a.text("status")[0] and a.text("status", "--check")[1] == 3
        assert all("is on its way" in a.text(*command)[0] for command in (("status", "db"), ("job", "show", "db")))
        assert a.refused("job", "demote", "db", "-y")["code"] == "no-roles"
        assert "it was converted" in a.refused("clone", "show", "db")["hint"]
        assert a.qrep("check")["problems"] == [] and not a.qrep("reload")["failed"]
        a.end()
        a.start()
    a.qrep("volume", "remove", "db-copy", "-y")
    a.qrep("job", "set", "db", "--schedule", "every 1s", "--sync-points", 3)
    assert a.job()["sync_points"] == 3
    a.qrep("job", "delete", "db", "-y")


@pytest.mark.parametrize(
    "point", ["clone-convert-durable", *(pytest.param(point, marks=pytest.mark.slow) for point in ("clone-convert-before", "clone-let-go", "store-rename-before"))]
)
def test_a_conversion_that_is_killed_has_happened_whole_or_not_at_all(agents, disks, point):
    source, copy = disks
    a = agents.agent("site-a")
    root = cloned(a, source, copy)["root"]
    a.end()
    a.start(QREP_CRASH=f"{point}:1")
    a.call("clone", "convert", "db", "-y")
    assert wait_until(lambda: a.process.poll()) == -9
    a.start()
    if point in ("clone-convert-before", "store-rename-before"):
        assert a.job()["mode"] == "clone" and not is_free(copy)
        assert a.qrep("clone", "start", "db", "--wait")["changed"] == 0
        a.qrep("clone", "convert", "db", "-y")
    assert a.job()["state"] == "moving" and is_free(copy) and not a.db_pairs()
    assert b3sum(copy) == root


# ---- the disk is carried to another host ----


@pytest.fixture
def hosts(agents):
    with contextlib.ExitStack() as stack:
        try:
            cables = stack.enter_context(Cables([0]))
        except RuntimeError as err:
            pytest.skip(f"no network namespaces here: {err}")
        yield two_hosts(agents, cables)


def writes_of(device):
    """How many writes, and sectors written, the kernel has counted of a device."""
    fields = Path(f"/sys/block/{Path(str(device)).name}/stat").read_text().split()
    return int(fields[4]), int(fields[6])


def carried(a, b, source, copy, *, name="logs", accept=True):
    """Clone db of site-a, converted; its disk is volume `name` of site-b. Returns the root of the clone."""
    root = cloned(a, source, copy)["root"]
    a.qrep("clone", "convert", "db", "-y")
    a.qrep("volume", "remove", "db-copy", "-y")
    b.qrep("volume", "add", name, copy, *(["--accept", "site-a"] if accept and a is not b else []))
    return root


def rebuild(target="site-b:logs", *options):
    return ("job", "rebuild", "db", "--target", target, *options)


def test_a_moved_clone_is_proved_and_goes_on_with_what_changed(hosts, disks, loop_device, filesystem, fill, undo_after):
    a, b = hosts
    source, copy = disks
    run("mkfs.ext4", "-q", "-F", source)  # what it carries needs no -y: it is the clone's
    root = carried(a, b, source, copy, accept=False)
    fill(source, 64 << 10, 9 * MIB)  # the host goes on writing meanwhile
    error = a.refused(*rebuild())
    assert error["code"] == "not-accepted" and "qrep volume set logs --accept site-a" in error["hint"]
    b.qrep("volume", "set", "logs", "--accept", "site-a")
    before = writes_of(copy)
    proof = a.qrep(*rebuild("site-b:logs", "-n"))
    assert (proof["differing_leaves"], proof["percent"], proof["dry_run"]) == (0, 100.0, True) and proof["read"] >= SIZE
    wait_until(lambda: is_free(copy))  # the other host has heard that nothing more is asked
    assert a.job()["state"] == "moving" and not b.db_pairs()
    text, code = a.text(*rebuild())
    assert code == 0 and "Every byte is as it was" in text and "Next: qrep start db" in text
    assert writes_of(copy) == before and b3sum(copy) == root and not is_free(copy)
    job = a.job()
    assert (job["state"], job["target"], job["counter"], job["problem"]) == ("idle", "site-b:logs", 1, None)
    received = b.qrep("status", "db")["jobs"][0]
    assert (received["counter"], received["generation"], received["state"]) == (1, job["generation"], "idle")

    report = a.run()
    assert report["counter"] == 2 and report["changed"] == 64 << 10 and report["sent"] < 128 << 10
    assert report["root"] == b3sum(copy) == b3sum(source)
    assert a.qrep("verify", "db")["equal"]
    assert a.refused(*rebuild())["code"] == "not-moved"
    assert b.qrep("snapshot", "rollback", "logs@1", "-y")["root"] == root  # what was carried is a sync point
    assert b3sum(copy) == root
    for agent in (a, b):
        agent.end()
        agent.start()
    report = a.run()
    assert report["root"] == b3sum(copy) == b3sum(source)
    assert "job-rebuilt" in a.codes() and "clone-adopted" in b.codes()


def test_a_wrong_disk_is_refused_with_what_matches_and_not_written_to(hosts, disks, loop_device, fill, random_source):
    a, b = hosts
    source, copy = disks
    carried(a, b, source, copy, name="right")
    wrong, blank, small, third = loop_device(SIZE), loop_device(SIZE), loop_device(SIZE - MIB), loop_device(SIZE + 4 * MIB)
    fill(wrong, 6 * MIB)
    data = bytearray(Path(str(source)).read_bytes())
    for leaf in random_source.sample(range(1536), 1536 * 7 // 10):  # a disk that a third of the clone is on: the sample is not enough
        data[leaf * 4096 : leaf * 4096 + 4096] = random_source.randbytes(4096)
    with open(third, "r+b") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    for name, device in (("logs", wrong), ("blank", blank), ("third", third), ("small", small)):
        b.qrep("volume", "add", name, device, "--accept", "site-a")
    for name, device, percent in (("logs", wrong, "0 %"), ("blank", blank, "0 %"), ("third", third, "30 %")):
        before, content = writes_of(device), b3sum(device)
        for options in ((), ("-n",)):
            error = a.refused(*rebuild(f"site-b:{name}", *options))
            assert (error["code"], error["exit"]) == ("not-the-clone", 5)
            assert error["message"] == f"site-b:{name} is not the clone of db: {percent} of it matches", error
        wait_until(lambda device=device: is_free(device))
        assert writes_of(device) == before and b3sum(device) == content
        assert not (Path(b.state) / "targets" / b.qrep("volume", "show", name)["id"]).exists()
    assert a.refused(*rebuild("site-b:small"))["code"] == "target-too-small"
    assert a.refused(*rebuild("site-b:nothing"))["code"] == "no-such-volume"
    assert a.refused(*rebuild("site-c:logs"))["exit"] == 7
    assert not b.db_pairs() and a.job()["state"] == "moving"
    text, code = a.run_command(*rebuild())[2], a.run_command(*rebuild())[0]
    assert code == 5 and text.startswith("refused: site-b:logs is not the clone of db: 0 % of it matches\n")
    b.qrep("job", "create", "mine", "--source", "logs", "--target", "blank")
    assert a.refused(*rebuild("site-b:blank"))["code"] == "target-taken" and a.refused(*rebuild())["code"] == "cascading"
    assert "clone-refused" in b.codes() and "rebuild-refused" in a.codes()
    assert a.qrep(*rebuild("site-b:right"))["percent"] == 100.0
    assert a.run()["root"] == b3sum(copy)


def test_a_clone_that_was_mounted_and_changed_on_the_way_is_repaired_by_what_differs(hosts, loop_device, random_source, tmp_path):
    a, b = hosts
    source, copy = loop_device(SIZE), loop_device(SIZE + 8 * MIB)  # a larger disk is fine
    run("mkfs.ext4", "-q", "-F", source)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    run("mount", source, mounted)
    try:
        (mounted / "data").write_bytes(random_source.randbytes(5 * MIB))
    finally:
        run("umount", mounted)
    carried(a, b, source, copy)
    run("mount", copy, mounted)
    try:
        error = a.refused(*rebuild())
        assert error["exit"] == 5 and error["code"] == "target-mounted" and str(mounted) in error["message"]
        (mounted / "on the way").write_bytes(b"x" * 100_000)
    finally:
        run("umount", mounted)
    found, held = Path(str(copy)).read_bytes()[:SIZE], Path(str(source)).read_bytes()
    different = sum(found[at : at + 4096] != held[at : at + 4096] for at in range(0, SIZE, 4096))
    before = writes_of(copy)
    proof = a.qrep(*rebuild("site-b:logs", "-n"))
    assert proof["differing_leaves"] == different > 3 and 50 < proof["percent"] < 100
    text, code = a.text(*rebuild())
    assert code == 0 and f"{different} leaves" in text and "were changed on the way" in text
    assert writes_of(copy) == before and Path(str(copy)).read_bytes()[:SIZE] == found
    assert (a.job()["counter"], a.job()["root"]) == (2, b3sum(copy, SIZE))
    report = a.run()
    assert report["counter"] == 3 and report["changed"] == different * 4096  # 2 is what was changed on the way
    assert report["root"] == b3sum(copy, SIZE) == b3sum(source)
    assert a.qrep("verify", "db")["equal"]
    assert [point["counter"] for point in b.qrep("snapshot", "logs")] == [3, 2]
    b.qrep("snapshot", "rollback", "logs@2", "-y")
    assert Path(str(copy)).read_bytes()[:SIZE] == found


def test_a_disk_that_comes_back_to_its_own_host_is_a_local_job(agents, disks, fill):
    source, copy = disks
    a = agents.agent("site-a")
    root = carried(a, a, source, copy)
    assert a.refused(*rebuild("db"))["exit"] == 5  # the source itself
    fill(source, 4096)
    assert a.qrep(*rebuild("logs"))["percent"] == 100.0 and b3sum(copy) == root
    report = a.run()
    assert report["changed"] == 4096 and report["root"] == b3sum(copy)


@pytest.mark.slow
@pytest.mark.parametrize("changed", [False, True], ids=["as it was", "changed on the way"])
def test_a_frozen_source_goes_on_with_what_its_filesystem_says_was_changed(agents, xfs, random_source, changed):
    source, copy = xfs / "source.img", xfs / "copy.img"
    source.write_bytes(random_source.randbytes(SIZE))
    copy.write_bytes(bytes(SIZE))
    a = agents.agent("site-a")
    carried(a, a, source, copy)
    before = a.job()["last_run"]
    assert not before["fuzzy"]
    if changed:
        with open(copy, "r+b") as file:
            file.seek(5 * MIB)
            file.write(b"on the way")
    with open(source, "r+b") as file:
        file.seek(9 * MIB)
        file.write(b"meanwhile")
    assert a.qrep(*rebuild("logs"))["differing_leaves"] == changed
    report = a.run()
    assert report["root"] == b3sum(copy) == b3sum(source) and report["changed"] == 4096 * (1 + changed)
    assert (report["hints"]["state"] == "used") == (not changed)  # else the snapshot that was kept is of another generation than the volume's
    assert a.qrep("verify", "db")["equal"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stop", "the target dies", "the source dies", "the link is gone"])
def test_a_rebuild_that_is_interrupted_while_it_reads_leaves_everything_as_it_was(agents, disks, how):
    source, copy = disks
    a, b = agents.pair(link_rate=4096)  # the sample takes seconds to come back
    carried(a, b, source, copy)
    before = writes_of(copy)
    task = a.client().post("/jobs/db/rebuild", {"target": "site-b:logs"})
    wait_until(lambda: not is_free(copy))
    assert a.refused("start", "db")["code"] == "disk-moved" and a.refused(*rebuild())["code"] == "busy"
    if how == "stop":
        a.qrep("stop", "db")
        assert a.client().get(f"/tasks/{task['id']}")["error"]["code"] == "interrupted"
    elif how == "the source dies":
        a.kill()
        a.start()
    else:
        b.kill() if how == "the target dies" else agents.link.cut()
        wait_until(lambda: a.client().get(f"/tasks/{task['id']}")["state"] == "failed", seconds=30)
        assert a.client().get(f"/tasks/{task['id']}")["error"]["exit"] == 4
        if how == "the target dies":
            b.start()
    wait_until(lambda: is_free(copy), seconds=30)
    assert a.job()["state"] == "moving" and not b.db_pairs() and writes_of(copy) == before


@pytest.mark.parametrize(
    ("end", "point"),
    [
        ("target", "rebuild-adopted"),
        *(
            pytest.param(end, point, marks=pytest.mark.slow)
            for end, point in (
                ("source", "rebuild-told"), ("source", "rebuild-map-durable"), ("source", "rebuild-noted"), ("target", "rebuild-pair-durable"), ("target", "rebuild-adopt-before"),
                ("target", "map-fold-before"), ("source", "map-pending-durable"), ("target", "superblock-create-before"),
            )
        ),
    ],
)  # fmt: skip
def test_a_rebuild_that_is_killed_is_done_by_the_next_one(agents, disks, fill, end, point):
    source, copy = disks
    a, b = agents.pair()
    root = carried(a, b, source, copy)
    with open(copy, "r+b") as file:  # one leaf was changed on the way
        file.write(b"changed")
        file.flush()
        os.fsync(file.fileno())
    changed = b3sum(copy)
    assert changed != root
    fill(source, 8192, 2 * MIB)
    before = writes_of(copy)
    dying = {"source": a, "target": b}[end]
    dying.end()
    dying.start(QREP_CRASH=f"{point}:1")
    a.call(*rebuild())
    assert wait_until(lambda: dying.process.poll()) == -9
    dying.start()
    if point == "rebuild-noted":
        assert a.job()["target"] == "site-b:logs"
    else:
        assert a.job()["state"] == "moving" and a.refused("start", "db")["code"] == "disk-moved"
        answer = a.qrep(*rebuild())
        assert answer["adopted_before"] == (point in ("rebuild-told", "rebuild-adopted")) and answer["counter"] == 2
    assert writes_of(copy) == before and b3sum(copy) == changed
    report = a.run()
    assert report["changed"] == 3 * 4096 and report["counter"] == 3  # neither all of it, nor less
    assert report["root"] == b3sum(copy) == b3sum(source)
    assert a.qrep("verify", "db")["equal"]
    sources = Path(a.state) / "sources" / a.job()["id"]
    assert [entry.name for entry in sources.iterdir() if entry.name.startswith("map")] == ["map"]
