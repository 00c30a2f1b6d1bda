"""A planned switch and back, and a disaster with its failback, between two agents in two network namespaces; told by files and by b3sum."""

import pytest
from agents import b3sum
from system.rolescene import SIZE

pytestmark = pytest.mark.root


def test_a_planned_switch_and_back_needs_no_comparison_and_loses_nothing(sites):
    scene = sites()
    a, b = scene.a, scene.b
    with scene.mounted("site-a"):
        error = a.refused("job", "demote", "db", "-y")
        assert (error["code"], error["exit"]) == ("source-in-use", 5) and "umount" in error["hint"]
    scene.write("site-a", "second", b"two" * 5000)
    code, _out, err = b.run_command("job", "promote", "db")
    assert code == 5 and "on site-a" in err
    assert err.startswith("refused: source site-a answers; a planned switch stops its writers first. --force only if site-a is lost.\n")

    assert a.qrep("job", "demote", "db")["what"] == "last-run"
    assert a.refused("start", "db")["code"] == "not-source" and a.qrep("volume", "show", "db")["role"] == "replica"
    assert a.qrep("snapshot", "db")[0]["root"] == b3sum(scene.device["site-a"])
    answer = b.qrep("job", "promote", "db", "-y")
    assert answer["what"] == "planned" and answer["missing_seconds"] == 0
    scene.equal()
    scene.holds("site-b")
    scene.write("site-b", "third", b"three" * 5000)
    report = scene.sync("site-b", "site-a")
    assert report["sent"] < SIZE // 4, "what changed, and nothing is compared"
    assert b.qrep("status", "db")["jobs"][0]["role"] == "source" and a.qrep("status", "db")["jobs"][0]["role"] == "target"

    answer = b.qrep("job", "failback", "db", "-y")
    assert answer["swapped"]
    scene.equal()
    scene.holds("site-a")
    scene.write("site-a", "fourth", b"four" * 5000)
    assert scene.sync("site-a", "site-b")["sent"] < SIZE // 4
    assert b.refused("job", "failback", "db", "-y")["exit"] in (5, 7)


def test_a_disaster_the_old_source_comes_back_and_only_differences_go_back(sites):
    scene = sites()
    a, b = scene.a, scene.b
    at_last = dict(scene.files)
    scene.write("site-a", "only-on-a", b"a" * 9000)  # never replicated
    a.kill()
    error = b.refused("job", "promote", "db")
    assert (error["code"], error["exit"]) == ("source-unreachable", 5)
    text, code = b.text("job", "promote", "db", "--force")
    assert code == 0 and "db: site-b is primary at sync point 20" in text and "of source writes are not here)." in text
    assert text.strip().endswith("When site-a is back: qrep job failback db")
    scene.files = at_last
    scene.holds("site-b")
    scene.write("site-b", "only-on-b", b"b" * 20000)

    a.start()
    before = {site: b3sum(device) for site, device in scene.device.items()}
    for agent in (a, b):
        error = agent.refused("start", "db", "--wait")
        assert (error["code"], error["exit"]) == ("split-brain", 5)
    assert [agent.job()["problem"]["code"] for agent in (a, b)] == ["split-brain"] * 2
    assert b.refused("job", "failback", "db", "-y")["code"] == "split-brain"
    assert {site: b3sum(device) for site, device in scene.device.items()} == before, "nothing was written"

    plan = b.qrep("job", "failback", "db", "-n")
    assert 20000 < plan["changed_here"] < SIZE // 8 and 9000 < plan["changed_there"] < SIZE // 8 and plan["split_brain"]
    assert a.qrep("job", "demote", "db", "-y")["changed"] == plan["changed_there"]
    answer = b.qrep("job", "failback", "db", "--no-swap", "-y")
    assert not answer["swapped"] and answer["report"]["sent"] <= plan["changed_here"] + plan["changed_there"] + SIZE // 50
    scene.equal()
    discarded = [point for point in a.qrep("snapshot", "db") if not point["current"]]
    assert len(discarded) == 1
    copy = scene.point.parent / "discarded.img"
    copied = a.qrep("snapshot", "copy", f"db@{discarded[0]['point']}", copy)
    assert b3sum(copy) == before["site-a"] == discarded[0]["root"] and copied["checked"], "what only site-a had can be carried out"

    assert b.qrep("job", "failback", "db", "-y")["swapped"]
    scene.equal()
    scene.holds("site-a")
    scene.write("site-a", "after", b"c" * 100)
    scene.sync("site-a", "site-b")


@pytest.mark.slow
def test_a_target_that_is_larger_takes_over_and_gives_back_what_is_replicated_of_it(sites):
    scene = sites(larger=4 << 20, switch=True)
    scene.b.qrep("job", "promote", "db", "-y")
    scene.write("site-b", "second", b"2" * 5000)
    scene.sync("site-b", "site-a")
    assert scene.b.qrep("job", "failback", "db", "-n")["changed_there"] in (0, None)
    assert scene.b.qrep("job", "failback", "db", "-y")["swapped"]
    scene.equal()
    scene.holds("site-a")
    scene.sync("site-a", "site-b")


@pytest.mark.slow
def test_a_source_of_two_jobs_is_not_demoted_and_a_replica_is_no_source(sites, loop_device):
    scene = sites()
    scene.a.qrep("volume", "add", "copy", loop_device(SIZE))
    scene.a.qrep("job", "create", "second", "--source", "db", "--target", "copy")
    error = scene.a.refused("job", "demote", "db", "-y")
    assert (error["code"], error["exit"]) == ("cascading", 5)
    scene.a.qrep("job", "delete", "second", "-y")
    scene.a.qrep("job", "demote", "db", "-y")
    assert scene.a.refused("job", "create", "second", "--source", "db", "--target", "copy")["code"] == "cascading"
