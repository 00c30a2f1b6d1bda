"""Which runs start together, what they share, and how that ends; without threads of runs."""

import os
import threading
from types import SimpleNamespace

import pytest
from agents import wait_until

from qrep import sealed
from qrep.daemon.groups import Member
from qrep.daemon.starting import Starting
from qrep.errors import QrepError, Refused, UsageError
from qrep.jobs.sharedturn import SharedTurn
from qrep.jobs.slots import Slots
from qrep.source.shared import SharedMember, SharedTokens
from qrep.store import Directory


class Runner:
    def __init__(self, name, source, group="", due=False, missed=False, busy=False):
        self.name, self.activity = name, "verify" if busy else None
        self.settings = SimpleNamespace(id=name.encode().hex(), source=source, group=group, finished="", target="site-b:x", role="source", moved="", mode="async")
        self.handled, self.ran, self.told = [], None, []
        self.timing = SimpleNamespace(look=lambda now: SimpleNamespace(missed=missed) if due else None, handle=self.handled.append)

    def begin(self, activity):
        if self.activity is not None:
            raise Refused(f"{self.name} is busy", code="busy")
        self.activity = activity

    def enqueue(self):
        self.told.append("queued")

    def take_back(self):
        self.told.append("taken back")
        self.activity = None

    def release(self):
        self.activity = None

    def run(self, task, cause, together):
        self.ran = together


def starting(*runners):
    by_name = {runner.name: runner for runner in runners}
    jobs = SimpleNamespace(get=by_name.__getitem__, all=lambda: sorted(by_name.items()), active=lambda: sorted(by_name.items()))
    tasks = SimpleNamespace(start=lambda kind, name, action: action(None) or f"task of {name}")
    volumes = SimpleNamespace(get=lambda name: SimpleNamespace(settings=SimpleNamespace(id="ab" * 16)))
    return Starting(SimpleNamespace(stopping=threading.Event(), jobs=jobs, tasks=tasks, slots=Slots(1), shared_tokens=None, volumes=volumes, events=None))


def test_nothing_is_started_while_the_agent_ends():
    runner = Runner("a", "x")
    begins = starting(runner)
    begins.node.stopping.set()
    with pytest.raises(Refused) as caught:
        begins.start(["a"])
    assert caught.value.code == "ending" and runner.activity is None and runner.told == []


def test_one_member_brings_its_group_and_jobs_of_one_source_share():
    runners = [Runner("a", "x", "shop"), Runner("b", "y", "shop"), Runner("c", "z"), Runner("d", "z"), Runner("e", "v")]
    tasks = starting(*runners).start(["a", "c", "d", "e"])
    assert set(tasks) == set("abcde")
    a, b, c, d, e = (runner.ran for runner in runners)
    assert isinstance(a, Member) and a._attempt is b._attempt
    assert isinstance(c, SharedMember) and c._shared is d._shared
    assert e is None


def test_all_begin_or_none():
    runners = [Runner("a", "x"), Runner("b", "y", busy=True), Runner("c", "z")]
    with pytest.raises(Refused, match="b is busy"):
        starting(*runners).start(["a", "b", "c"])
    assert [runner.activity for runner in runners] == [None, "verify", None] and not any(runner.ran or runner.told for runner in runners)
    for names in ([], [7], ["a"] * 257):
        with pytest.raises(UsageError):
            starting(*runners).start(names)


def test_where_a_run_gets_no_thread_it_and_those_after_it_are_taken_back():
    runners = [Runner("a", "x"), Runner("b", "y"), Runner("c", "z")]
    world = starting(*runners)
    start = world.node.tasks.start

    def no_thread(kind, name, action):
        if name == "b":
            raise QrepError("can't start new thread")
        return start(kind, name, action)

    world.node.tasks.start = no_thread
    with pytest.raises(QrepError, match="new thread"):
        world.start(["a", "b", "c"])
    assert [runner.activity for runner in runners] == ["run", None, None]
    assert [runner.told for runner in runners] == [["queued"], ["queued", "taken back"], []]


def test_a_group_whose_targets_are_on_several_hosts_is_not_begun():
    runners = [Runner("a", "x", "shop"), Runner("b", "y", "shop")]
    runners[1].settings.target = "site-c:y"
    with pytest.raises(Refused, match="several hosts"):
        starting(*runners).start(["a"])
    assert not any(runner.activity or runner.ran for runner in runners)


def test_what_is_due_at_the_same_moment_starts_with_the_first():
    due = [Runner("a", "x", due=True), Runner("b", "x", due=True)]
    others = [Runner("c", "x"), Runner("d", "x", due=True, missed=True), Runner("e", "y", due=True), Runner("f", "x", due=True, busy=True)]
    assert starting(*due, *others).start_due("a", "scheduled") == "task of a"
    assert due[0].ran._shared is due[1].ran._shared and not any(runner.ran for runner in others)
    assert due[1].handled and not due[0].handled and not any(runner.handled for runner in others)


def test_a_group_that_is_due_comes_whole_and_its_times_are_dealt_with():
    members = [Runner("a", "x", "shop", due=True), Runner("b", "y", "shop")]
    starting(*members).start_due("a", "scheduled")
    assert all(isinstance(runner.ran, Member) for runner in members) and members[1].handled


# ---- one turn for several ----


def test_jobs_that_wait_for_each_other_take_one_turn():
    slots = Slots(1)
    shared = SharedTurn(slots)
    with shared.member() as first:
        with shared.member() as second:
            assert first.wait() and second.wait()
            assert slots.as_dict() == {"going": 1, "waiting": 0, "limit": 1}
        assert slots.as_dict()["going"] == 1
    assert slots.as_dict()["going"] == 0


def test_one_of_them_that_is_stopped_while_they_wait_lets_the_others_wait():
    slots, answers = Slots(1), []
    other = slots.turn()
    shared = SharedTurn(slots)
    with shared.member() as first, shared.member() as second:
        threads = [threading.Thread(target=lambda turn=turn: answers.append((turn, turn.wait()))) for turn in (first, second)]
        for thread in threads:
            thread.start()
        assert first.place() == (1, 1)
        first.stop()
        wait_until(lambda: answers == [(first, False)])
        slots.end(other)
        threads[1].join(20)
        assert answers[1] == (second, True)


def test_one_that_comes_after_the_others_have_left_gets_a_turn_of_its_own():
    slots = Slots(1)
    with slots.turn() as other:
        assert other.wait()
        shared = SharedTurn(slots)
        first, second = shared.member(), shared.member()
        with first:
            first.stop()
            assert not first.wait()
        second.__enter__()
        assert second.place() == (1, 1), "it waits in the queue"
    assert second.wait()
    second.__exit__(None, None, None)
    with slots.turn() as later:
        assert later.wait()


# ---- a snapshot that several hold ----


@pytest.fixture
def held(tmp_path, monkeypatch):
    """(a function that opens the tokens as an agent that has just started, the tokens that were given back)."""
    os.chmod(tmp_path, 0o700)
    released = []
    monkeypatch.setattr("qrep.source.shared.registry.release", released.append)
    with Directory(tmp_path) as directory:
        yield lambda: SharedTokens(directory), released


def test_a_snapshot_is_given_back_with_the_last_job_that_holds_it(held):
    tokens, released = held
    tokens().hold("t:1", ["a", "b"])
    first = tokens()
    assert first.release("t:1", "a") and not released
    assert tokens().release("t:1", "a") and not released, "once more does no harm"
    assert tokens().release("t:1", "b") and released == ["t:1"]
    assert not tokens().release("t:1", "b"), "it is nobody's"


def test_what_no_record_names_is_given_back_at_the_next_start(held):
    tokens, released = held
    tokens().hold("t:1", ["a", "b"])
    tokens().hold("t:2", ["a"])
    tokens().settle({"a": ["t:1"], "b": []}.__getitem__)
    assert released == ["t:2"] and tokens().tokens() == ["t:1"]
    tokens().settle(lambda job: [])
    assert released == ["t:2", "t:1"]


def test_records_that_are_not_records_are_not_believed(held, tmp_path):
    tokens, _released = held
    for content in (b"{", sealed.dump([]), sealed.dump({"t": "a"}), sealed.dump({"t": [1]}), sealed.dump({"t:1": ["a"]})[:-1], b"x" * (2 << 20)):
        (tmp_path / "shared.json").write_bytes(content)
        assert tokens().tokens() == []
