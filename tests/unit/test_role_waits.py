"""A source that is dead, hangs or lies is waited for so long and no longer, and a takeover by force does not wait for it at all."""

import contextlib
import threading
import time
from types import SimpleNamespace

import pytest

from qrep.daemon import asks, rolesides
from qrep.daemon.rolecommands import RoleCommands
from qrep.daemon.roles import Roles
from qrep.daemon.rolesides import PeerSide
from qrep.errors import Interrupted, Refused, TimedOut, Unreachable
from qrep.jobs import roles as decide

JOB, OURS, THEIRS = "a" * 32, "b" * 32, "c" * 32
TOLD = {
    "role": "primary", "id": "", "same_as": "", "common": "", "allows": True, "busy": False, "returns": False, "volume": "db", "volume_id": "d" * 32,
    "sync_point": None, "changed": None, "task": {"state": "running", "error": None},
}  # fmt: skip


class Source:
    """The agent at the other end. says: what it answers with, a dict or an error. asked: what it was asked, the kinds."""

    def __init__(self):
        self.says, self.asked, self.waited_for = TOLD, [], threading.Event()

    def ask(self, question):
        self.asked.append(type(question))
        if asks.GiveUp in self.asked and self.asked.count(asks.Standing) > 2:
            self.waited_for.set()
        if isinstance(self.says, Exception):
            raise self.says
        return dict(self.says)


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def part():
    target = SimpleNamespace(sync_points=lambda: [])
    volume = SimpleNamespace(name="db", replica=lambda: target, settings=SimpleNamespace(device="/dev/x"))
    return SimpleNamespace(job_id=JOB, job="db", peer="site-a", volume=volume, other="db", other_id="d" * 32, runner=None)


@pytest.fixture
def commands(source, part):
    """RoleCommands of site-b, whose volume is a replica. taken: what take_over() was called with."""
    node = SimpleNamespace(name="site-b", peers=SimpleNamespace(reach=lambda name: source))
    roles = Roles(node)
    side = PeerSide(node, part)
    roles.parts = lambda name: (part, side)
    roles.standing = lambda part: decide.Standing("site-b", decide.REPLICA, OURS)
    roles.sync_point = lambda part: "2026-11-22T09:00:00+00:00"
    made = RoleCommands(roles)
    made.taken = []
    made.steps = SimpleNamespace(take_over=lambda part, **how: made.taken.append(how["why"]))
    return made


def in_thread(commands, task):
    """A planned promote, and the list that what came of it is put into."""
    found = []

    def work():
        try:
            found.append(commands.promote(task, "db"))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, found


def task():
    return SimpleNamespace(progress=None, cancel=None)


def test_a_source_that_says_for_ever_that_it_is_at_it_is_not_waited_for_for_ever(commands, monkeypatch):
    monkeypatch.setattr(rolesides, "WORK_S", 0.5)
    with pytest.raises(TimedOut, match="gives up its role: that is not done after") as raised:
        commands.promote(task(), "db")
    assert "qrep job promote db --force" in raised.value.hint and not commands.taken
    with commands.roles.alone(commands.roles.parts("db")[0]):
        """It is free again."""


def test_a_source_that_falls_silent_is_not_waited_for_longer_than_is_said(commands, source, monkeypatch):
    monkeypatch.setattr(rolesides, "SILENT_S", 0.5)
    thread, found = in_thread(commands, task())
    assert source.waited_for.wait(10)
    source.says = Unreachable("nothing there")
    thread.join(10)
    assert isinstance(found[0], TimedOut) and "has not answered for" in found[0].message and "--force" in found[0].hint and not commands.taken


def test_one_that_was_silent_for_a_moment_is_waited_for_still(commands, source, part, monkeypatch):
    monkeypatch.setattr(rolesides, "SILENT_S", 1.0)
    answers = [TOLD, TOLD, Unreachable("x"), TOLD, Unreachable("x"), TOLD | {"role": "replica", "id": THEIRS, "same_as": OURS, "task": {"state": "done", "error": None}}]

    def ask(question):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    source.ask = ask
    assert commands.promote(task(), "db")["what"] == "planned" and commands.taken == ["planned switch"]


@pytest.mark.parametrize("silent", [False, True])
def test_force_takes_over_from_a_planned_promote_that_waits_for_its_source_which_does_nothing_any_more(commands, source, silent):
    thread, found = in_thread(commands, task())
    assert source.waited_for.wait(10)
    with pytest.raises(Refused) as raised:
        commands.promote(task(), "db")
    assert raised.value.code == "busy" and "--force" in raised.value.hint
    if silent:
        source.says = Unreachable("nothing there")
    assert commands.promote(task(), "db", force=True)["what"] == "forced"
    source.says = TOLD | {"role": "replica", "id": THEIRS, "same_as": OURS, "task": {"state": "done", "error": None}}  # now it has given up
    thread.join(10)
    assert isinstance(found[0], Interrupted) and found[0].code == "ended" and "--force was given" in found[0].message
    assert commands.taken == ["forced"]


def test_a_source_that_gives_up_in_the_very_question_during_which_force_was_given_changes_nothing(commands, source):
    """Its answer is on the way when the planned promote is ended."""
    answering, may_answer, ask = threading.Event(), threading.Event(), source.ask

    def slow(question):
        if isinstance(question, asks.Standing) and asks.GiveUp in source.asked and not answering.is_set():
            answering.set()
            assert may_answer.wait(10)
            return TOLD | {"role": "replica", "id": THEIRS, "same_as": OURS, "task": {"state": "done", "error": None}}
        return ask(question)

    source.ask = slow
    thread, found = in_thread(commands, task())
    assert answering.wait(10)
    began = time.monotonic()
    assert commands.promote(task(), "db", force=True)["what"] == "forced" and time.monotonic() - began < 5, "the other one is not waited for"
    may_answer.set()
    thread.join(10)
    assert isinstance(found[0], Interrupted) and commands.taken == ["forced"]


def test_a_planned_promote_can_be_cancelled_while_it_waits(commands, source):
    waiting = task()
    thread, found = in_thread(commands, waiting)
    assert source.waited_for.wait(10)
    waiting.cancel()
    thread.join(10)
    assert isinstance(found[0], Interrupted) and "it was cancelled" in found[0].message and not commands.taken


def test_what_has_decided_and_what_never_gives_way_is_not_ended_and_the_turn_of_one_is_not_freed_by_another(commands, part):
    roles = commands.roles
    for gives_way in (True, False):
        with roles.alone(part, gives_way=gives_way) as turn:
            roles.decided(turn)
            with pytest.raises(Refused, match="being changed already"), roles.alone(part, force=True):
                pytest.fail("it was let in")
    with contextlib.ExitStack() as forced:
        with roles.alone(part, gives_way=True) as planned:
            forced.enter_context(roles.alone(part, force=True))
            with pytest.raises(Interrupted):
                roles.decided(planned)
        with pytest.raises(Refused, match="being changed already"), roles.alone(part):
            pytest.fail("the one that was ended has freed it")
    with roles.alone(part):
        """It is free again."""
