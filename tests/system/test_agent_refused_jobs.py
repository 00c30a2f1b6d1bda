"""Jobs that are refused whatever their devices are: cascades, taken targets, volumes that accept nobody."""

import pytest
from agents import MIB, b3sum

pytestmark = pytest.mark.root
SIZE = 8 * MIB


def create(agent, name, source, target):
    return ("job", "create", name, "--source", source, "--target", target)


def assert_refused(error, code, *words):
    assert (error["code"], error["exit"]) == (code, 5), error
    assert error["hint"] and all(word in error["message"] + error["hint"] for word in words), error


def test_a_volume_accepts_nobody_until_its_administrator_says_so(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    before = b3sum(target)
    a, b = agents.pair()
    a.qrep("volume", "add", "db", source)
    b.qrep("volume", "add", "db", target)
    assert_refused(
        a.refused(*create(a, "db", "db", "site-b:db")), "not-accepted",
        "site-b:db does not accept replication", "on site-b: qrep volume set db --accept site-a",
    )  # fmt: skip
    assert b3sum(target) == before
    b.qrep("volume", "set", "db", "--accept", "site-a")
    a.qrep(*create(a, "db", "db", "site-b:db"))
    a.run()

    fill(source, MIB)
    before = b3sum(target)
    a.qrep("job", "set", "db", "--timeout", "1s")
    b.qrep("peer", "remove", "site-a", "-y")
    assert_refused(a.refused("start", "db", "--wait"), "not-pinned", "does not know this host")
    assert b3sum(target) == before
    assert {"peer-removed", "peer-refused"} <= set(b.codes())


def test_a_target_that_is_taken_and_every_kind_of_cascade(agents, loop_device, fill):
    devices = [loop_device(SIZE) for _ in range(4)]
    a, b = agents.pair()
    a.qrep("volume", "add", "db", devices[0])
    a.qrep("volume", "add", "web", devices[1])
    b.qrep("volume", "add", "db", devices[2], "--accept", "site-a")
    b.qrep("volume", "add", "far", devices[3])
    a.qrep(*create(a, "db", "db", "site-b:db"))
    assert_refused(a.refused(*create(a, "web", "web", "site-b:db")), "target-taken", "job db of site-a")
    assert_refused(a.refused(*create(a, "db", "web", "site-b:db")), "name-taken")
    assert_refused(b.refused(*create(b, "on", "db", "far")), "cascading")
    assert_refused(a.refused(*create(a, "back", "web", "db")), "cascading")
    assert_refused(a.refused("volume", "remove", "db", "-y"), "volume-in-use")
    assert_refused(b.refused("volume", "remove", "db", "-y"), "volume-in-use")
    assert_refused(a.refused("peer", "remove", "site-b", "-y"), "peer-in-use")
    missing = a.refused(*create(a, "none", "web", "site-b:nothing"))
    assert (missing["code"], missing["exit"]) == ("no-such-volume", 7) and "site-b" in missing["hint"]

    a.qrep("job", "delete", "db", "-y")
    a.qrep(*create(a, "web", "web", "site-b:db"))
    assert a.run("web")["counter"] == 1


def test_a_volume_of_an_agent_is_not_copied_onto_and_two_agents_do_not_share_a_device(agents, loop_device, memory_dir, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, _b = agents.replica(source, target)
    root = a.run()["root"]
    code, value, err = a.call("copy", loop_device(SIZE), target, "-y")
    assert code == 5 and value["error"]["code"] == "target-in-use", (value, err)
    third = agents.agent("third")
    third.qrep("volume", "add", "db", target)
    third.qrep("volume", "add", "other", loop_device(SIZE))
    assert_refused(third.refused(*create(third, "x", "other", "db"), "-y"), "target-in-use")
    assert b3sum(target) == root


def test_a_replica_of_one_source_is_not_taken_by_a_source_of_another_shape(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(2 * SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target)
    root = a.run()["root"]
    a.qrep("job", "delete", "db", "-y")
    a.qrep("volume", "add", "web", loop_device(2 * SIZE))
    assert_refused(a.refused(*create(a, "web", "web", "site-b:db"), "-y"), "other-shape")
    assert b3sum(target, SIZE) == root and len(b.qrep("snapshot", "db")) == 1
