"""Clones: copied within a host, carried to another one, proved to be what they are there, and replicated from then on."""

import contextlib
import os

import pytest
from agents import MIB, b3sum, wait_until

pytestmark = pytest.mark.root
SIZE = 16 * MIB


def is_free(device):
    """Whether nobody holds the device: the kernel gives an exclusive descriptor to whoever asks."""
    with contextlib.suppress(OSError):
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
        return True
    return False


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
