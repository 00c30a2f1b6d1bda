"""Sync points over a long life, between two hosts (namespaces): how many are kept and by whose word, and what becomes of the others."""

import msgspec
import pytest
from agents import MIB, b3sum, inside, wait_until
from intruder import admitted, hears, identity_of
from system.cables import ADDRESSES, Cables

from qrep.daemon import asks, tls

pytestmark = pytest.mark.root
SIZE = 16 * MIB


class Sites:
    """Job db from site-a to site-b; roots: of every generation so far."""

    def __init__(self, agents, cables, source, target, fill):
        self.a, self.b = (
            agents.agent(name, host="0.0.0.0", port=7414, prefix=inside(space)) for name, space in zip(("site-a", "site-b"), cables.spaces, strict=True)
        )
        self.a.host = ADDRESSES[0][0]
        self.source, self.target, self.fill, self.roots = source, target, fill, {}
        self.a.qrep("peer", "add", "site-b", ADDRESSES[0][1], "-y")
        self.b.qrep("peer", "add", "site-a", f"{self.a.host}:{self.a.port}", "-y")
        self.a.qrep("volume", "add", "db", source, "--granule", "1M")

    def replicate(self, *job, volume=()):
        self.b.qrep("volume", "add", "db", self.target, "--accept", "site-a", "--undo-space", "1G", *volume)
        self.create(*job)

    def create(self, *job):
        self.a.qrep("job", "create", "db", "--source", "db", "--target", "site-b:db", "--connections", 1, *job)

    def run(self, times=1):
        for _ in range(times):
            counter = max(self.roots, default=0) + 1
            self.fill(self.source, 64 << 10, offset=counter % 8 * MIB)
            report = self.a.run()
            assert report["counter"] == counter
            self.roots[counter] = report["root"]

    def points(self):
        """Counters, newest first."""
        return [point["counter"] for point in self.b.qrep("snapshot", "db")]

    def shows(self, counter, memory_dir):
        """A sync point is copied out: it is what was committed then."""
        image = memory_dir / f"point-{counter}"
        assert self.b.qrep("snapshot", "copy", f"db@{counter}", image)["root"] == self.roots[counter] == b3sum(image)
        image.unlink()


@pytest.fixture
def sites(agents, undo_after, loop_device, fill):
    return Sites(agents, Cables(undo_after), loop_device(SIZE), loop_device(SIZE), fill)


def test_no_word_of_a_source_takes_away_what_the_target_keeps(sites, memory_dir):
    """The floor is a setting of the target's volume: neither fewer sync points, nor a job made anew, nor many runs go below it."""
    sites.replicate("--sync-points", 1, volume=("--keep-points", 3))
    sites.run(5)
    assert sites.points() == [5, 4, 3, 2], "one is asked for, three are kept"
    sites.a.qrep("job", "set", "db", "--sync-points", 0, "--keep", "1x1d")
    sites.run()
    assert sites.points() == [6, 5, 4, 3]
    sites.a.qrep("job", "delete", "db", "-y")
    sites.create("--sync-points", 0)
    sites.run()
    assert sites.points() == [7, 6, 5, 4]
    sites.shows(4, memory_dir)
    assert sites.b.qrep("volume", "show", "db")["keep_points"] == 3
    assert "the newest 3 stay" in sites.b.text("volume", "show", "db")[0]

    sites.b.qrep("volume", "set", "db", "--keep-points", 0, "--keep-for", "1h")
    sites.run(2)
    assert sites.points() == [9, 8, 7, 6, 5, 4], "all of them are younger than an hour"
    sites.b.qrep("volume", "set", "db", "--keep-for", "none")
    sites.run()
    assert sites.points() == [10], "without a floor the source's word counts"


def test_a_peer_that_asks_by_hand_goes_not_below_the_floor_either(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    a, b = agents.replica(source, target, volume=("--keep-points", 2))
    for counter in range(1, 4):
        fill(source, 64 << 10, offset=counter * MIB)
        a.run()
    job_id = msgspec.toml.decode((a.config / "jobs" / "db.toml").read_bytes())["id"]

    def asked(question):
        stream = admitted(b, identity_of(a), tls.ASK)
        body = msgspec.msgpack.encode(question)
        stream.sendall(len(body).to_bytes(4, "little") + body)
        said = hears(stream)
        return msgspec.msgpack.decode(said[4:], type=asks.Answer) if said else None

    assert asked(asks.ChangePair(job_id=job_id, sync_points=0, keep="")).error is None
    for keep in ("1x1y", "x" * 500, "257x1h", "9x1h " * 9):
        assert asked(asks.ChangePair(job_id=job_id, sync_points=0, keep=keep)).error.exit == 2
    assert asked(asks.ChangePair(job_id=job_id, sync_points=0, keep="x" * 5000)) is None, "no field is that long"
    a.run()
    assert [point["counter"] for point in b.qrep("snapshot", "db")] == [4, 3, 2]
    b.kill()
    b.start()
    a.run()
    assert [point["counter"] for point in b.qrep("snapshot", "db")] == [5, 4, 3], "after a restart, too"


def test_more_than_the_superblock_can_name_are_kept_and_reached(sites, memory_dir):
    sites.replicate("--sync-points", 20)
    sites.run(14)
    assert sites.points() == list(range(14, 0, -1))
    sites.shows(1, memory_dir)
    assert sites.b.qrep("snapshot", "rollback", "db@2", "-y")["root"] == sites.roots[2] == b3sum(sites.target)
    assert sites.points() == [15, *range(14, 0, -1)]
    sites.b.kill()
    sites.b.start()
    assert sites.points() == [15, *range(14, 0, -1)]
    assert sites.a.run()["counter"] == 16 and b3sum(sites.target) == b3sum(sites.source)


def test_what_lies_between_two_that_the_grid_keeps_is_merged_away_and_the_rest_stays_what_it_was(sites, memory_dir):
    """All are made within one day, so a daily grid keeps the newest; what is protected for its age goes when that is lifted."""
    sites.replicate("--sync-points", 1, "--keep", "3x1m", volume=("--keep-for", "1d"))
    sites.run(5)
    assert sites.points() == [5, 4, 3, 2, 1]
    assert sites.b.qrep("snapshot", "thin", "db", "-n")["gone"] == []
    sites.b.qrep("snapshot", "delete", "db@3", "-y")
    sites.b.qrep("snapshot", "delete", "db@2", "-y")
    assert sites.points() == [5, 4, 1]
    sites.shows(1, memory_dir)
    sites.b.qrep("volume", "set", "db", "--keep-for", "none")
    wait_until(lambda: len(sites.points()) <= 4 and sites.points()[:2] == [5, 4])
    assert sites.b.qrep("snapshot", "thin", "db", "-y")["keep"][:2] == ["5", "4"]
    for counter in sites.points()[1:]:
        sites.shows(counter, memory_dir)
    sites.run()
    assert sites.points()[:2] == [6, 5] and b3sum(sites.target) == b3sum(sites.source)


def test_a_sync_point_bears_a_name_and_is_meant_by_it(sites, memory_dir):
    sites.replicate()
    sites.run()
    assert sites.a.qrep("snapshot", "create", "db@before-upgrade", "-n") == {"jobs": ["db"]}
    sites.fill(sites.source, MIB, offset=0)
    sites.roots[2] = sites.a.qrep("snapshot", "create", "db@before-upgrade")["db"]["root"]
    sites.run()
    found = {point["counter"]: point for point in sites.b.qrep("snapshot", "db")}
    assert [found[counter]["name"] for counter in (3, 2, 1)] == ["", "before-upgrade", ""]
    assert {point["consistency"] for point in found.values()} == {"fuzzy"}, "these volumes are read live"
    assert "before-upgrade" in sites.b.text("snapshot", "db")[0]
    assert sites.b.qrep("snapshot", "rollback", "db@before-upgrade", "-y")["root"] == sites.roots[2] == b3sum(sites.target)
    assert sites.b.refused("snapshot", "rollback", f"db@{'0' * 32}", "-y")["code"] == "no-such-point"
    for name in ("41", "0" * 32, "../x", "a b"):
        assert sites.a.refused("snapshot", "create", f"db@{name}")["exit"] == 2
    assert sites.b.refused("snapshot", "create", "db@x")["code"] == "no-jobs"
