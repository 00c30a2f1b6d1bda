"""The paths of a job in an agent: which are dialled in which order, what is told, and how often a route is probed."""

import pytest

from qrep.config import Job, Peer
from qrep.daemon import jobpaths, pathedit, pathwatch
from qrep.daemon.jobpaths import JobPaths, Way
from qrep.daemon.peers import Reach
from qrep.errors import NotFound, Refused, Unreachable, UsageError
from qrep.settings import Node, Path

ADDRESSES = ["10.0.1.2", "10.0.2.2:9999"]


class Stream:
    """What a fake path leads to."""

    def __init__(self, way):
        self.way = way
        self.stream = self

    def getsockname(self):
        return ("10.9.9.9", 1234)

    def close(self):
        pass


class FakeReach(Reach):
    """Answers over the addresses that are not in `dead`; `asked` are the ways that were tried."""

    def __init__(self):
        super().__init__(None, "site-b", Peer(addresses=list(ADDRESSES), fingerprint="SHA256:" + ":".join(["00"] * 32), certificate="PEM"))
        self.dead, self.asked, self.refusing = set(), [], set()

    def connect(self, purpose, way=None):
        self.asked.append(way)
        if way[1][0] in self.dead:
            raise Unreachable(f"{way[1][0]}: no route to host")
        if way[1][0] in self.refusing:
            raise Refused("another key", code="wrong-fingerprint")
        return Stream(way)

    def channel(self, way=None):
        return self.connect("control", way)


class Events:
    def __init__(self):
        self.told = []

    def add(self, code, text, **data):
        self.told.append((code, text))

    def codes(self):
        return [code for code, _text in self.told]


class FakeNode:
    """Of jobs with paths to site-b."""

    def __init__(self):
        self.events, self.settings, self.reach_of_b = Events(), Node(), FakeReach()
        self.peers = self.jobs = self
        self.runners = []
        self.path_watch = pathwatch.PathWatch(self)

    def reach(self, _name):
        return self.reach_of_b

    def all(self):
        return [(runner.name, runner) for runner in self.runners]

    def get(self, name):
        return next(runner for runner in self.runners if runner.name == name)

    def set_paths(self, name, ways, preferred):
        settings = self.get(name).settings
        settings.preferred_path = preferred
        if ways is not None:
            settings.paths = [Path(source=source, to=to) for source, to in ways]


class Runner:
    def __init__(self, node, name="db", **settings):
        self.name, self.is_going, self.moves = name, False, []
        self.settings = Job(
            id="ab" * 16, source="db", target="site-b:db", target_volume="cd" * 16, size=1 << 20, leaf=4096, granule=8192, **settings
        )  # fmt: skip
        self.now = 1000.0
        self.paths = JobPaths(node, name, self.settings, "site-b", clock=lambda: self.now)
        node.runners.append(self)

    def move(self, why, *, at_once):
        self.moves.append((why, at_once))


@pytest.fixture
def node():
    return FakeNode()


@pytest.fixture
def job(node, monkeypatch):
    monkeypatch.setattr(pathwatch.asks, "ask", lambda stream, question, timeout: {})
    return Runner(node)


def states(job):
    return [(path["state"], path["active"]) for path in job.paths.shown()]


def test_a_job_without_paths_of_its_own_has_one_to_each_address_of_its_peer(node, job):
    assert job.paths.ways() == [Way("auto", "10.0.1.2"), Way("auto", "10.0.2.2:9999")]
    assert job.paths.dial().way == (None, ("10.0.1.2", 7414))
    node.reach_of_b.peer.addresses.append("10.0.3.2")
    assert len(job.paths.ways()) == 3 and states(job)[0] == ("up", True)  # what is known of the others stays
    with pytest.raises(NotFound, match="db has no path 4"):
        job.paths.way(4)


def test_the_port_of_a_path_is_that_of_the_peers_first_address_where_none_is_written(node):
    node.reach_of_b.peer.addresses[:] = ["10.0.1.2:7777"]
    assert Runner(node, paths=[Path(source="10.0.3.1", to="10.0.3.2")]).paths.dial().way == ("10.0.3.1", ("10.0.3.2", 7777))
    assert Runner(node, paths=[Path(to="[fe80::1]:7415")]).paths.dial().way == (None, ("fe80::1", 7415))


def test_dialling_goes_through_the_paths_and_tells_what_it_finds(node, job):
    node.reach_of_b.dead = {"10.0.1.2"}
    assert job.paths.dial().way[1] == ("10.0.2.2", 9999)
    assert node.events.codes() == ["path-down", "path-switched"]
    assert states(job) == [("down", False), ("up", True)] and job.paths.in_use == Way("auto", "10.0.2.2:9999")
    node.reach_of_b.asked.clear()
    job.paths.dial()
    assert [way[1][0] for way in node.reach_of_b.asked] == ["10.0.2.2"]  # the dead one would be tried last


def test_when_no_path_answers_all_reasons_are_said_and_when_all_refuse_it_is_a_refusal(node, job):
    node.reach_of_b.dead = {"10.0.1.2", "10.0.2.2"}
    with pytest.raises(Unreachable, match=r"10\.0\.1\.2: no route.*10\.0\.2\.2: no route"):
        job.paths.dial()
    assert job.paths.in_use is None
    node.reach_of_b.refusing = {"10.0.1.2"}
    with pytest.raises(Unreachable):  # one of them may come back
        job.paths.dial()
    node.reach_of_b.dead, node.reach_of_b.refusing = set(), {"10.0.1.2", "10.0.2.2"}
    with pytest.raises(Refused):
        job.paths.dial()


def test_what_is_lost_is_the_path_in_use_and_data_connections_go_over_it(node, job):
    job.paths.dial()
    job.paths.lost("nothing was heard")
    job.paths.lost("once more")  # there is none in use any more
    assert node.events.told == [("path-down", "path 1 (auto -> 10.0.1.2): nothing was heard")]
    with pytest.raises(Unreachable, match="left"):
        job.paths.data_connection(b"token", 0)
    job.paths.dial()
    assert job.paths.in_use == Way("auto", "10.0.2.2:9999")
    job.paths.ended()
    assert job.paths.in_use is None and states(job)[1] == ("up", True)


def test_the_address_that_the_system_picked_is_shown(node, job):
    assert [path["source"] for path in job.paths.shown()] == [None, None]
    job.paths.dial()
    assert [path["source"] for path in job.paths.shown()] == ["10.9.9.9", None]


def probes(node, rounds, step=0.5):
    """Let the watch look so often; the routes that were asked, in order."""
    node.reach_of_b.asked.clear()
    clock = node.__dict__.setdefault("clock", [0.0])  # goes on with the next call
    pathwatch.time = type("Clock", (), {"monotonic": staticmethod(lambda: clock[0])})
    for _ in range(rounds):
        node.path_watch.look()
        clock[0] += step
    return [way[1][0] for way in node.reach_of_b.asked]


@pytest.fixture
def at_once(monkeypatch):
    """Probes happen where they are begun."""

    class Now:
        def __init__(self, target, args, **_options):
            self.start = lambda: target(*args)

    monkeypatch.setattr(pathwatch.threading, "Thread", Now)
    monkeypatch.setattr(pathwatch, "time", pathwatch.time)


def test_a_route_of_many_jobs_is_probed_once_every_ten_seconds(node, job, at_once):
    for number in range(63):
        Runner(node, f"job{number}")
    asked = probes(node, 61)  # 30 s
    # At 0, 10, 20 and 30 s each.
    assert sorted(asked) == ["10.0.1.2"] * 4 + ["10.0.2.2"] * 4
    assert all(states(runner)[0][0] == "up" for runner in node.runners)


def test_a_route_that_a_run_is_connected_over_is_not_probed_and_known_to_be_well(node, job, at_once):
    other = Runner(node, "web")
    job.is_going = True
    job.paths.dial()
    assert set(probes(node, 21)) == {"10.0.2.2"} and states(other)[0] == ("up", True)


def test_while_a_run_is_off_its_preferred_path_that_is_probed_every_two_seconds_and_returned_to(node, job, at_once):
    job.is_going = True
    job.paths.dial()
    job.paths.lost("gone")
    node.reach_of_b.dead = {"10.0.1.2"}
    job.paths.dial()
    assert probes(node, 21) == ["10.0.1.2"] * 6  # 10 s: at 0, 2, ... 10 s
    node.reach_of_b.dead = set()
    assert not job.moves
    probes(node, 4)
    job.now += 19
    node.path_watch.look()
    assert not job.moves
    job.now += 1
    node.path_watch.look()
    assert job.moves == [("a better path is well again", False)]


def test_probes_under_way_are_bounded_and_none_is_told_of_after_the_end(node, job, monkeypatch):
    waiting = []

    class Later:
        def __init__(self, target, args, **_options):
            self.start = lambda: waiting.append((target, args))

    monkeypatch.setattr(pathwatch.threading, "Thread", Later)
    job.settings.paths = [Path(to=f"10.0.{number}.2") for number in range(8)]
    for _ in range(5):
        node.path_watch.look()
    assert len(waiting) == pathwatch.PROBES_MAX
    node.path_watch.stop()
    node.reach_of_b.dead = {f"10.0.{number}.2" for number in range(8)}
    for target, args in waiting:
        target(*args)
    assert node.events.told == []


def test_paths_are_written_down_with_the_first_change(node, job):
    (added,) = pathedit.add(node, "db", "auto", "10.0.3.2")
    assert added == {"job": "db", "number": 3, "from": "auto", "to": "10.0.3.2", "source": "10.9.9.9", "reason": ""}
    assert [path.to for path in job.settings.paths] == [*ADDRESSES, "10.0.3.2"]
    with pytest.raises(Refused, match="has the path auto -> 10.0.3.2 already: 3"):
        pathedit.add(node, "db", "auto", "10.0.3.2")
    for number in range(4, 9):
        pathedit.add(node, "db", "auto", f"10.0.{number}.2")
    with pytest.raises(Refused, match="8 is the limit"):
        pathedit.add(node, "db", "auto", "10.0.9.2")


def test_an_address_that_is_not_of_this_host_is_refused(node, job):
    for source in ("192.0.2.1", "2001:db8::1"):
        with pytest.raises(UsageError, match="is no address of this host"):
            pathedit.add(node, "db", source, "10.0.3.2")
    with pytest.raises(UsageError, match="is no address of a host"):
        pathedit.add(node, "db", "site-a", "10.0.3.2")
    pathedit.check_ours("127.0.0.1")
    assert not job.settings.paths


def test_a_path_is_used_only_if_it_answers_and_a_run_moves_at_once(node, job):
    job.is_going = True
    job.paths.dial()
    node.reach_of_b.dead = {"10.0.2.2"}
    with pytest.raises(Unreachable, match="path 2 of db does not answer"):
        pathedit.use(node, "db", 2)
    assert not job.moves and job.settings.preferred_path == 1
    node.reach_of_b.dead = set()
    assert pathedit.use(node, "db", 2, dry_run=True)["moves"] and not job.moves
    assert pathedit.use(node, "db", 2)["moves"] and job.moves == [("path 2 was asked for", True)]
    assert job.paths.dial().way[1][0] == "10.0.2.2"
    assert not pathedit.use(node, "db", 2)["moves"] and len(job.moves) == 1


def test_removing_a_path_moves_the_run_over_it_and_keeps_the_preferred_one(node, job):
    job.is_going = True
    pathedit.add(node, "db", "auto", "10.0.3.2")
    pathedit.use(node, "db", 3)
    job.paths.dial()
    pathedit.remove(node, "db", 2)
    assert job.settings.preferred_path == 2 and job.paths.in_use == Way("auto", "10.0.3.2") == job.paths.way(2) and not job.moves[1:]
    pathedit.remove(node, "db", 2)
    assert job.settings.preferred_path == 1 and job.moves[-1] == ("path 2 was removed", True)
    assert job.paths.dial().way[1][0] == "10.0.1.2"
    with pytest.raises(Refused, match="no other path"):
        pathedit.remove(node, "db", 1)


def test_a_job_of_this_host_has_no_paths(node):
    runner = Runner(node, "local")
    runner.paths = None
    with pytest.raises(Refused, match="on this host"):
        pathedit.use(node, "local", 1)
    assert jobpaths.ways_of(Path(to="auto"), ["a", "b"]) == [Way("auto", "a"), Way("auto", "b")]
