"""The source gets a sync point of its target back, over the wire and within one host; what it held before is a sync point of the target."""

import pytest
from agents import b3sum

pytestmark = pytest.mark.root


@pytest.mark.slow
def test_a_source_is_restored_to_an_earlier_sync_point_and_only_differences_travel(sites):
    scene = sites(job=("--sync-points", 2))
    a, b = scene.a, scene.b
    good, files = b3sum(scene.device["site-a"]), dict(scene.files)
    scene.write("site-a", "second", b"2" * 60000)
    a.run()
    scene.write("site-a", "ransom", b"!" * 60000)
    bad, bad_files = b3sum(scene.device["site-a"]), dict(scene.files)

    assert a.refused("job", "restore", "db", "-y")["exit"] == 2
    assert a.refused("job", "restore", "db@77", "-y")["code"] == "no-such-point" and b3sum(scene.device["site-a"]) == bad
    with scene.mounted("site-a"):
        assert a.refused("job", "restore", "db@1", "-y")["code"] == "source-in-use"
    assert "would get sync point 1" in a.text("job", "restore", "db@1", "-n")[0]
    bad = b3sum(scene.device["site-a"])  # a mount leaves its traces
    a.qrep("job", "restore", "db@1", "-y")
    assert scene.equal() == good
    scene.files = files
    scene.holds("site-a")
    assert a.qrep("volume", "show", "db")["role"] == "primary" and b.qrep("volume", "show", "db")["role"] == "replica"

    scene.write("site-a", "third", b"3" * 1000)
    scene.sync("site-a", "site-b")
    assert [point["point"] for point in b.qrep("snapshot", "db")] == ["5", "4", "3"], "3: the last run before the restore"
    a.qrep("job", "restore", "db@3", "-y")
    assert scene.equal() == bad, "what was there before the restore was kept"
    scene.files = bad_files
    scene.holds("site-a")


@pytest.mark.slow
@pytest.mark.parametrize(("site", "point"), [("site-b", "source-frame-sent"), ("site-a", "target-write-done"), ("site-a", "role-taken-over"), ("site-b", "rollback-applied")])
def test_a_restore_that_is_interrupted_goes_on_when_it_is_given_again(sites, site, point):
    scene = sites()
    good = b3sum(scene.device["site-a"])
    scene.write("site-a", "second", b"2" * 60000)
    scene.a.run()
    agent = scene.sites[site]
    agent.terminate()
    agent.start(QREP_CRASH=f"{point}:1")
    scene.a.run_command("job", "restore", "db@1", "-y", "--discard")
    assert agent.process.wait(60) == -9
    agent.start()
    if scene.a.qrep("volume", "show", "db")["role"] == "replica":
        scene.a.qrep("job", "restore", "db@1", "-y")
    assert scene.equal() == good
    scene.write("site-a", "third", b"3" * 1000)
    scene.sync("site-a", "site-b")


@pytest.mark.slow
def test_a_local_source_is_restored(agents, loop_device, fill):
    size = 16 << 20
    source, target = loop_device(size), loop_device(size)
    agent = agents.agent("site-a")
    fill(source, size // 2)
    agent.qrep("volume", "add", "db", source, "--granule", "1M")
    agent.qrep("volume", "add", "copy", target, "--granule", "1M")
    agent.qrep("job", "create", "db", "--source", "db", "--target", "copy")
    good = agent.run()["root"]
    fill(source, 1 << 20)
    agent.run()
    agent.qrep("job", "restore", "db@1", "-y")
    assert b3sum(source) == b3sum(target) == good
    fill(source, 1 << 20)
    assert agent.run()["root"] == b3sum(target) == b3sum(source)
