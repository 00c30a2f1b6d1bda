"""Roles that go back another way than they came: a host that took over by force is demoted again, and a restore that was refused leaves nothing held."""

import os

import pytest
from agents import b3sum

pytestmark = pytest.mark.root


@pytest.mark.parametrize("known", [pytest.param(True, marks=pytest.mark.slow), False], ids=["the-source-answers", "the-source-is-down"])
def test_a_host_that_took_over_by_force_is_demoted_and_the_old_source_takes_over_what_was_written_meanwhile(sites, known):
    scene = sites()
    a, b = scene.a, scene.b
    if not known:
        a.kill()  # so that site-b never heard the id of the volume there
    b.qrep("job", "promote", "db", "--force", "-y")
    scene.write("site-b", "only-on-b", b"b" * 60000)
    if not known:
        a.start()
    assert a.qrep("job", "demote", "db", "-y")["what"] == "overtaken"
    assert b.qrep("job", "demote", "db", "-y")["what"] == "last-run"
    assert a.qrep("job", "promote", "db", "-y")["what"] == "planned"
    scene.equal()
    scene.holds("site-a")
    scene.write("site-a", "only-on-a", b"a" * 60000)
    scene.sync("site-a", "site-b")
    assert a.call("verify", "db")[0] == 0, "the map of site-b is of what it holds, not of what it held before it took over"


def test_a_restore_that_was_refused_holds_no_sync_point(sites):
    scene = sites()
    scene.write("site-a", "second", b"2" * 60000)
    scene.a.run()
    with scene.mounted("site-a"):
        assert scene.a.refused("job", "restore", "db@1", "-y")["code"] == "source-in-use"
    scene.b.qrep("snapshot", "delete", "db@1", "-y")


@pytest.mark.slow
def test_a_source_that_dies_in_a_restore_keeps_nobody_from_taking_over(sites):
    scene = sites()
    scene.write("site-a", "second", b"2" * 60000)
    scene.a.run()
    before = b3sum(scene.device["site-b"])
    scene.a.terminate()
    scene.a.start(QREP_CRASH="role-give-up-before:1")
    scene.a.run_command("job", "restore", "db@1", "-y", "--discard")
    assert scene.a.process.wait(60) == -9
    assert scene.b.refused("snapshot", "delete", "db@1", "-y")["code"] == "point-in-use"
    scene.b.qrep("job", "promote", "db", "--force", "-y")
    assert scene.b.qrep("volume", "show", "db")["role"] == "primary" and b3sum(scene.device["site-b"]) == before


@pytest.mark.slow
def test_job_files_from_before_a_change_of_roles_change_none(sites):
    scene = sites()
    a, b = scene.a, scene.b
    files = {agent: agent.config / "jobs" / "db.toml" for agent in (a, b)}
    of_source = files[a].read_text()
    a.qrep("job", "demote", "db", "-y")
    of_target = files[a].read_text()
    b.qrep("job", "promote", "db", "-y")
    files[a].write_text(of_source)
    (failed,) = a.call("reload")[1]["failed"]
    assert failed["code"] == "other-role"
    a.kill()
    a.start()
    assert "role-file" in a.codes() and files[a].read_text() == of_target
    scene.write("site-b", "third", b"3" * 1000)
    scene.sync("site-b", "site-a")

    b.qrep("job", "failback", "db", "-y")
    a.kill()
    files[a].write_text(of_target)
    a.start()
    scene.write("site-a", "fourth", b"4" * 1000)
    scene.sync("site-a", "site-b")


@pytest.mark.slow
def test_a_sync_point_that_rotted_at_the_target_does_not_become_the_source(sites):
    scene = sites()
    a = scene.a
    scene.write("site-a", "second", b"2" * 60000)
    a.run()
    good = b3sum(scene.device["site-a"])
    with open(scene.device["site-b"], "r+b", buffering=0) as device:
        device.seek(20 << 20)
        device.write(b"rot" * 1000)
        os.fsync(device.fileno())
    error = a.refused("job", "restore", "db@1", "-y", "--discard")
    assert error["code"] == "damaged" and a.qrep("volume", "show", "db")["role"] == "replica"
    kept = [point["point"] for point in a.qrep("snapshot", "db") if not point["current"]]
    a.qrep("snapshot", "rollback", f"db@{kept[0]}", "-y")
    a.qrep("job", "promote", "db", "--force", "-y")
    assert b3sum(scene.device["site-a"]) == good, "nothing of the source was lost"
    assert scene.sync("site-a", "site-b")["root"] == good


def test_a_source_that_has_forgotten_its_job_keeps_nobody_from_taking_over(sites):
    scene = sites()
    a, b = scene.a, scene.b
    a.qrep("job", "demote", "db", "-y")
    a.qrep("job", "delete", "db", "-y")
    error = b.refused("job", "promote", "db", "-y")
    assert error["code"] == "no-such-pair" and "--force" in error["hint"]
    b.qrep("job", "promote", "db", "--force", "-y")
    scene.holds("site-b")
    b.qrep("job", "delete", "db", "-y")
    b.qrep("volume", "remove", "db", "-y")


def test_a_source_that_has_become_the_replica_gives_up_its_oldest_sync_points_as_any_other(sites):
    scene = sites(job=("--sync-points", 1))
    a, b = scene.a, scene.b
    a.qrep("job", "demote", "db", "-y")
    b.qrep("job", "promote", "db", "-y")
    for content in (b"1", b"2"):
        scene.write("site-b", "more", content * 1000)
        scene.sync("site-b", "site-a")
    assert len(a.qrep("snapshot", "db")) == 2 and a.qrep("volume", "show", "db")["problem"] is None
    a.qrep("snapshot", "delete", f"db@{a.qrep('snapshot', 'db')[1]['point']}", "-y")
    scene.equal()
