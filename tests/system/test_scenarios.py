"""States that went wrong in twenty years of block replication: each test bears the name of a scenario of LINBIT's drbd9-tests that means
something here, and does what that scenario does with qrep's words. Two agents serve all of them; each has a volume of its own.

Where a scenario is a subject of its own, its file has the cases: test_agent_paths (multi-path, del-path-during-connect), test_agent_connections
(lb-tcp), test_agent_roles* (split-brain, promotions), test_agent_verify*, test_agent_unreadable and test_agent_unwritable (io-errors),
test_agent_groups (consistent-snapshots), tests/unit/test_messages and tests/fuzz (upgrade).
"""

import contextlib
import itertools
import os
import random
import shutil
import tempfile

import pytest
from agents import MIB, Agents, b3sum, wait_until
from machine import run, slow_reads

pytestmark = pytest.mark.root
SIZE, LEAF = 8 * MIB, 4096
numbers = itertools.count(1)


@pytest.fixture(scope="module")
def sites():
    directory = tempfile.mkdtemp(prefix="qrep-test-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    with Agents(directory) as agents:
        yield agents.pair()
    shutil.rmtree(directory, ignore_errors=True)


class Scene:
    """A pair of volumes of SIZE on loop devices, and their job, called `name`."""

    def __init__(self, sites, loop_device, random_source):
        self.a, self.b = sites
        self.loop_device, self.random = loop_device, random_source
        self.name = f"v{next(numbers)}"
        self.source, self.target = loop_device(SIZE), loop_device(SIZE)

    def make(self, *job, synced=True, volume=()):
        self.fill()
        self.a.qrep("volume", "add", self.name, self.source, "--granule", "1M")
        self.b.qrep("volume", "add", self.name, self.target, "--accept", "site-a", "--undo-space", "64x", *volume)
        self.a.qrep("job", "create", self.name, "--source", self.name, "--target", f"site-b:{self.name}", *job)
        if synced:
            self.sync()
        return self

    def fill(self):
        self.write(0, self.random.randbytes(SIZE))

    def write(self, offset, data, device=None):
        with open(device or self.source, "r+b") as file:
            file.seek(offset)
            file.write(data)
            os.fsync(file.fileno())

    def change(self, leaves=8):
        """Other bytes in that many leaves, at random."""
        for leaf in self.random.sample(range(SIZE // LEAF), leaves):
            self.write(leaf * LEAF, self.random.randbytes(LEAF))

    def sync(self):
        """A run to its end, and both equal. Returns the report."""
        report = self.a.run(self.name)
        self.equal()
        return report

    def equal(self):
        assert b3sum(self.source) == b3sum(self.target, SIZE)

    def at_last_point(self):
        """b3sum of the target is the root of its last sync point."""
        assert b3sum(self.target, SIZE) == self.a.job(self.name)["root"]

    @contextlib.contextmanager
    def slowly(self):
        """A run goes on that has sent a little of much, and will not end by itself."""
        group = f"slow-{self.name}"
        self.a.qrep("shape", "set", group, "--peak", "256K")
        self.a.qrep("job", "set", self.name, "--shape", group)
        self.a.qrep("start", self.name)
        wait_until(lambda: (self.a.job(self.name)["progress"] or {}).get("sent", 0) > 64 << 10)
        yield
        self.a.qrep("job", "set", self.name, "--shape", "none")
        self.a.qrep("shape", "delete", group)

    def end(self):
        """Nobody holds the devices any more, whatever became of the job."""
        for verb in ("stop", "job delete", "volume remove"):
            for agent, name in itertools.product((self.a, self.b), (f"{self.name}o", self.name)):
                agent.run_command(*verb.split(), name, *(["-y"] if verb != "stop" else []))

    def state(self):
        return self.a.job(self.name)["state"]

    def to_the_end(self):
        wait_until(lambda: self.state() not in ("running", "queued", "connecting", "committing", "waiting") and not self.state().startswith("syncing"))


@pytest.fixture
def scene(sites, loop_device, random_source):
    made = Scene(sites, loop_device, random_source)
    yield made
    made.end()


@pytest.mark.parametrize("how", ["stop", "target killed", "source killed"])
def test_resync_interrupt_variants(scene, how):
    scene.make().fill()
    with scene.slowly():
        if how == "stop":
            scene.a.qrep("stop", scene.name)
            wait_until(lambda: scene.state() == "stopped")
        else:
            agent = scene.b if how == "target killed" else scene.a
            agent.kill()
            agent.start()
            wait_until(lambda: (scene.a.job(scene.name)["progress"] or {}).get("phase") == "syncing")
    if how == "stop":
        scene.sync()
    else:
        scene.to_the_end()
        scene.equal()


def test_resync_multiple_interrupt(scene):
    scene.make().fill()
    with scene.slowly():
        for _ in range(4):
            scene.a.qrep("stop", scene.name)
            wait_until(lambda: scene.state() == "stopped")
            scene.a.qrep("start", scene.name)
            wait_until(lambda: (scene.a.job(scene.name)["progress"] or {}).get("phase") == "syncing")
        scene.a.qrep("stop", scene.name)
        wait_until(lambda: scene.state() == "stopped")
    scene.sync()


def test_resync_write_during_pause(scene):
    scene.make().fill()
    with scene.slowly():
        scene.a.qrep("stop", scene.name)
        wait_until(lambda: scene.state() == "stopped")
        scene.change(32)
    scene.sync()


def test_write_during_resync(xfs, scene):
    """The source is written while it is read: the sync point is the moment that was frozen."""
    image = xfs / "image"
    with open(image, "wb") as file:
        file.truncate(SIZE)
    scene.source = str(image)
    scene.make().fill()
    frozen = b3sum(scene.source)
    with scene.slowly():
        scene.fill()
    scene.to_the_end()
    assert b3sum(scene.target) == frozen == scene.a.job(scene.name)["root"] != b3sum(scene.source)
    assert not scene.a.job(scene.name)["fuzzy"]
    scene.sync()


def test_brief_resync_oos(scene):
    """A brief outage: only what changed meanwhile is sent."""
    scene.make()
    scene.change(5)
    assert scene.sync()["changed"] == 5 * LEAF


def test_resync_source_becomes_target(scene):
    """A run is interrupted, then the roles change: what it had applied is not taken for a generation."""
    scene.make()
    at_last = b3sum(scene.target)
    scene.fill()
    with scene.slowly():
        scene.a.qrep("stop", scene.name)
        wait_until(lambda: scene.state() == "stopped")
    scene.b.qrep("job", "promote", scene.name, "--force", "-y")
    assert b3sum(scene.target) == at_last
    scene.a.qrep("job", "demote", scene.name, "-y")
    scene.b.run(scene.name)
    scene.equal()
    assert b3sum(scene.source) == at_last


def test_resync_target_promote_interrupt(scene):
    """The target is promoted while data comes in: it is at its last sync point, and the run ends."""
    scene.make()
    at_last = b3sum(scene.target)
    scene.fill()
    with scene.slowly():
        scene.b.qrep("job", "promote", scene.name, "--force", "-y")
        wait_until(lambda: scene.state() == "failed")
    assert scene.a.job(scene.name)["problem"]["code"] == "split-brain"
    assert b3sum(scene.target) == at_last


def test_switch_sync_source(scene, loop_device):
    """Another source takes the target over: only once the first one's job is gone, and by comparing."""
    scene.make()
    other = loop_device(SIZE)
    run("cp", scene.source, other)
    scene.write(LEAF, b"other" * 100, other)
    scene.a.qrep("volume", "add", f"{scene.name}o", other, "--granule", "1M")
    create = ("job", "create", f"{scene.name}o", "--source", f"{scene.name}o", "--target", f"site-b:{scene.name}")
    assert scene.a.refused(*create)["code"] == "target-taken"
    scene.a.qrep("job", "delete", scene.name, "-y")
    scene.a.qrep(*create)
    report = scene.a.run(f"{scene.name}o")
    assert b3sum(other) == b3sum(scene.target) and report["changed"] == LEAF


def test_lost_primary_after_no_writes(scene):
    scene.make()
    scene.b.qrep("job", "promote", scene.name, "--force", "-y")
    scene.equal()


def test_revert_older_data(scene):
    """The target's device is put back behind qrep's back: a verify names what is old, and heals it."""
    scene.make()
    with open(scene.target, "rb") as file:
        older = file.read()
    scene.change(6)
    scene.sync()
    scene.write(0, older, scene.target.backing)
    code, found, _err = scene.a.call("verify", scene.name)
    assert code == 6 and sum(place["size"] for place in found["differences"]) == 6 * LEAF
    scene.a.qrep("verify", scene.name, "--repair", "-y")
    scene.equal()


@pytest.mark.parametrize("winner", ["site-a", "site-b"])
def test_split_brain(scene, winner):
    scene.make()
    scene.b.qrep("job", "split", scene.name, "-y")
    scene.write(0, b"a" * LEAF)
    scene.write(5 * LEAF, b"b" * LEAF, scene.target)
    for agent in (scene.a, scene.b):
        error = agent.refused("start", scene.name, "--wait")
        assert (error["code"], error["exit"]) == ("split-brain", 5)
    loser = scene.b if winner == "site-a" else scene.a
    kept = b3sum(scene.source if winner == "site-a" else scene.target)
    loser.qrep("job", "resync", scene.name, "--authoritative", winner, "-y")
    wait_until(lambda: b3sum(scene.source) == b3sum(scene.target) == kept)


def test_recreate_node_day0(scene):
    """All that qrep knew at the target is lost: added anew, and what is there is not sent again."""
    scene.make()
    scene.a.qrep("job", "delete", scene.name, "-y")
    scene.b.qrep("volume", "remove", scene.name, "-y")
    scene.b.qrep("volume", "add", scene.name, scene.target, "--accept", "site-a")
    scene.change(3)
    scene.a.qrep("job", "create", scene.name, "--source", scene.name, "--target", f"site-b:{scene.name}", "--initial", "compare")
    assert scene.sync()["changed"] == 3 * LEAF


def test_pre_existing_data(scene):
    """Both sides were filled alike before qrep came, but for a little."""
    content = scene.random.randbytes(SIZE)
    scene.fill = lambda: [scene.write(0, content, device) for device in (scene.source, scene.target)]
    scene.make("--initial", "compare", synced=False)
    scene.change(2)
    assert scene.sync()["changed"] == 2 * LEAF


def test_connect_differing_sizes(scene, loop_device):
    scene.target = loop_device(SIZE // 2)
    with pytest.raises(Exception, match="target-too-small"):
        scene.make()
    scene.b.qrep("volume", "remove", scene.name, "-y")
    scene.a.qrep("volume", "remove", scene.name, "-y")
    scene.target = loop_device(SIZE * 2)
    scene.make()


def test_resize(scene):
    """A source that grew or shrank since is no longer what the job is about: refused, nothing written."""
    scene.make()
    before = b3sum(scene.target)
    for size in (2 * SIZE, SIZE // 2):
        os.truncate(scene.source.backing, size)
        run("losetup", "--set-capacity", scene.source.path)
        error = scene.a.refused("start", scene.name, "--wait")
        assert error["exit"] == 5 and "size is" in error["message"] and error["hint"]
    assert b3sum(scene.target) == before


@pytest.mark.parametrize("size", [512, 1536, 4096 + 512, 65536 - 512], ids=str)
def test_misaligned_and_unusual_bios(scene, size):
    """Writes of odd sizes at odd sectors, the last sector of the device among them."""
    scene.make()
    for offset in (512, 3 * LEAF - 512, MIB - 512, SIZE - size):
        scene.write(offset, scene.random.randbytes(size))
    scene.sync()


def test_resync_discard(scene):
    """What is discarded at the source is no data at the target: records of zeroes cross the wire, and holes are punched."""
    scene.make()
    run("blkdiscard", "--offset", str(MIB), "--length", str(4 * MIB), scene.source.path)
    report = scene.sync()
    assert report["sent"] < 64 << 10
    run("sync", str(scene.target.backing))
    assert os.stat(scene.target.backing).st_blocks * 512 <= SIZE - 4 * MIB + 64 * 1024


def test_resync_merge_discards_and_discard_granularity(scene):
    """Discards that are no whole leaves, beside each other and beside data."""
    scene.make()
    for sector in range(9, 2000, 3):
        if sector % 7 == 0:
            run("blkdiscard", "--offset", str(sector * 512), "--length", "1024", scene.source.path)
    scene.write(5 * LEAF + 512, b"x" * 700)
    scene.sync()


def test_checksum_resync(scene):
    """The source's map is lost: digests are compared, and only what differs is sent."""
    scene.make()
    scene.change(4)
    job = scene.a.qrep("job", "show", scene.name)["id"]
    shutil.rmtree(scene.a.state / "sources" / job / "map")
    assert scene.sync()["changed"] == 4 * LEAF


def test_verify_target_becomes_inconsistent(scene):
    """While a generation is open the target answers for its last sync point, or says that it cannot; nothing wrong is called right."""
    scene.make().fill()
    with scene.slowly():
        scene.a.qrep("stop", scene.name)
        wait_until(lambda: scene.state() == "stopped")
        code, found, _err = scene.a.call("verify", scene.name)
        assert code == 0 or found["error"]["exit"] in (1, 5), found
    scene.sync()
    assert scene.a.call("verify", scene.name)[0] == 0


def test_disk_timeout(scene, memory_dir, undo_after):
    """A source that answers each read late is waited for."""
    slow = slow_reads(memory_dir, SIZE, "20ms", undo_after)
    scene.source = scene.loop_device(backing=slow)
    scene.fill = lambda: None
    scene.make()


def test_c_min_rate_and_ahead_behind(scene):
    """A rate is kept although the source runs ahead, and what came meanwhile is brought by one more run, not by many."""
    scene.make().change(200)
    with scene.slowly():
        for _ in range(5):
            scene.change(5)
            assert scene.a.refused("start", scene.name)["code"] == "busy"
    wait_until(lambda: scene.a.job(scene.name)["counter"] == 2)
    scene.to_the_end()
    scene.sync()
    assert scene.a.job(scene.name)["counter"] == 3


def test_invalidate(scene):
    """A person says that the target's content is not to be trusted: all of it is compared again."""
    scene.make()
    scene.write(3 * LEAF, b"rot" * 100, scene.target.backing)
    assert scene.a.call("verify", scene.name)[0] == 6
    scene.sync()


def test_random_life(scene, seed):
    """Twelve of these things in random order; after each run both sides are equal."""
    steps = random.Random(seed)
    scene.make()
    for _ in range(12):
        match steps.choice(("change", "discard", "damage", "stop", "rollback")):
            case "change":
                scene.change(steps.randrange(1, 64))
            case "discard":
                run("blkdiscard", "--offset", str(steps.randrange(SIZE // LEAF - 64) * LEAF), "--length", str(64 * LEAF), scene.source.path)
            case "damage":
                scene.write(steps.randrange(SIZE // LEAF) * LEAF, b"damage", scene.target.backing)
                scene.a.call("verify", scene.name)
            case "stop":
                scene.change(300)
                with scene.slowly():
                    scene.a.qrep("stop", scene.name)
                    wait_until(lambda: scene.state() == "stopped")
            case "rollback":
                points = scene.b.qrep("snapshot", scene.name)
                if len(points) > 1:
                    scene.b.qrep("snapshot", "rollback", f"{scene.name}@{points[1]['point']}", "-y")
        scene.sync()
