"""qrep volume create: storage that was never written and the volume, in one step."""

import os
import tomllib

import pytest
from agents import MIB

pytestmark = pytest.mark.root


def test_a_sparse_image_is_made_in_a_directory_and_is_a_volume(agents, memory_dir):
    a = agents.agent("site-a")
    plan = a.qrep("volume", "create", "db", "--size", "24M", "--in", memory_dir, "-n")
    path = f"{memory_dir}/db.img"
    assert plan == {"name": "db", "kind": "image", "device": path, "size": 24 * MIB, "group": "", "pool": ""}
    assert not os.path.exists(path) and a.qrep("volume") == []
    made = a.qrep("volume", "create", "db", "--size", "24M", "--in", memory_dir, "--snapshots", "none", "--freeze-before", "/bin/echo 'two words'")
    status = os.stat(path)
    assert (made["device"], made["size"], status.st_size, status.st_blocks, status.st_mode & 0o777) == (path, 24 * MIB, 24 * MIB, 0, 0o600)
    assert tomllib.loads((a.config / "volumes" / "db.toml").read_text())["freeze_before"] == ["/bin/echo", "two words"]
    assert [volume["name"] for volume in a.qrep("volume")] == ["db"]


def test_what_is_in_the_way_is_said_and_nothing_is_left(agents, memory_dir):
    a = agents.agent("site-a")
    (memory_dir / "old.img").write_text("precious")

    def refused(*arguments):
        failed = a.refused("volume", "create", *arguments)
        return failed["code"], failed["exit"]

    assert refused("old", "--size", "24M", "--in", memory_dir) == ("exists", 5)
    assert refused("x", "--size", "24M", "--in", memory_dir / "nowhere") == ("no-such-directory", 7)
    assert refused("x", "--size", "4097", "--in", memory_dir) == ("usage", 2)
    assert refused("x", "--size", "much", "--in", memory_dir) == ("usage", 2)
    assert refused("x", "--size", "8E", "--in", memory_dir) in (("create", 1), ("usage", 2))
    assert refused("x", "--size", "24M", "--in", memory_dir, "--accept", "stranger") == ("no-such-peer", 7)
    assert refused("../x", "--size", "24M", "--in", memory_dir) == ("usage", 2)
    a.qrep("volume", "create", "db", "--size", "24M", "--in", memory_dir)
    assert refused("db", "--size", "24M", "--in", memory_dir) == ("name-taken", 5)
    assert sorted(path.name for path in memory_dir.glob("*.img")) == ["db.img", "old.img"]
    assert (memory_dir / "old.img").read_text() == "precious"


def test_an_agent_that_is_killed_in_between_leaves_an_image_that_can_be_added(agents, memory_dir):
    a = agents.agent("site-a")
    a.kill()
    a.start(QREP_CRASH="volume-created:1")
    a.refused("volume", "create", "db", "--size", "24M", "--in", memory_dir)
    a.process.wait(30)
    a.start()
    error = a.refused("volume", "create", "db", "--size", "24M", "--in", memory_dir)
    assert error["code"] == "exists" and f"qrep volume add db {memory_dir}/db.img" in error["hint"]
    assert a.qrep("volume", "add", "db", memory_dir / "db.img")["size"] == 24 * MIB


def test_a_group_that_is_not_there_is_told(agents):
    error = agents.agent("site-a").refused("volume", "create", "db", "--size", "24M", "--in", "no-such-group")
    assert (error["code"], error["exit"]) == ("no-such-group", 7) and "./images" in error["hint"]
