"""Which change of roles may be made: two sides, commands of both interleaved step by step, crashes and a link that fails at any step, by Hypothesis.

What must hold: nobody is primary beside another one unless a person said so (force, split); a side that is said to be equal is; a planned switch loses
nothing that the host wrote; a side gives up its role only when its own operator says so, or allows it.
"""

import random
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrep.errors import QrepError, Refused, Unreachable
from qrep.jobs import roles
from qrep.jobs.roles import PRIMARY, REPLICA, Standing

COMMANDS = ("run", "promote", "force", "demote", "failback", "resync")


class Broken(AssertionError):
    """What must hold does not."""


@dataclass
class Side:
    """What is durable of one side, and which commands go on there. content: a number for what its volume holds."""

    name: str
    role: str
    content: int
    id: str = ""
    same_as: str = ""
    returns: bool = False
    allows: bool = False
    busy: bool = False
    forced: bool = False  # it is primary because a person said so, whatever the other side is
    going: list = field(default_factory=list)

    def standing(self):
        return Standing(self.name, self.role, self.id, self.same_as, "", self.allows, self.busy, self.returns)


class Pair:
    """rules: the decisions (jobs/roles.py, or a defect of them). Every command is a generator that stops between its steps."""

    def __init__(self, rules=roles):
        self.rules = rules
        self.a, self.b = Side("a", PRIMARY, 1), Side("b", REPLICA, 1, id="g0")
        self.count, self.link, self.said = 1, True, False  # said: a person has said that both may be primary

    def fresh(self):
        self.count += 1
        return self.count

    def ask(self, side):
        return side.standing() if self.link else None

    # ---- commands ----

    def take_over(self, side, other, planned):
        same_as = other.id if planned else ""
        yield  # what it is about is durable, the sector is not
        if planned and other.role == PRIMARY and not other.forced:
            raise Broken(f"{side.name} takes over in a planned switch while {other.name} is primary")
        if planned and other.id == same_as and side.content != other.content:  # another id: somebody forced it meanwhile, and both know
            raise Broken("a planned switch loses what the other side holds")
        self.said, side.forced = self.said or not planned or other.forced, not planned
        side.role, side.id, side.same_as, side.returns = PRIMARY, f"p{self.fresh()}", same_as, False

    def give_up(self, side, equal):
        yield
        side.forced = False
        side.role, side.id, side.same_as, side.returns = REPLICA, f"d{self.fresh()}", equal, True

    def last_run(self, side, other):
        """Of a claimed device: both hold the same afterwards. Returns the id of the generation."""
        yield
        if not self.link or other.role != REPLICA or other.busy:
            raise Unreachable("the run fails")
        other.content, other.id, other.same_as = side.content, f"g{self.fresh()}", ""
        return other.id

    def run(self, side, other):
        if side.role != PRIMARY:
            raise Refused("not the source")
        yield from self.last_run(side, other)

    def promote(self, side, other, force=False):
        ours, theirs = side.standing(), self.ask(other)
        what = self.rules.promote("job", ours, theirs, force=force, other=other.name)
        if what == "ask":
            self.consents(other)
            yield from self.for_other(other, self.asked_to_give_up(other, side, last_run=True))
            self.rules.gave_up("job", side.standing(), self.ask(other), other=other.name)
            what = "planned"
        yield from self.take_over(side, other, what == "planned")

    def demote(self, side, other):
        what = self.rules.demote("job", side.standing(), self.ask(other), other=other.name)
        equal = (yield from self.last_run(side, other)) if what == "last-run" else ""
        yield from self.give_up(side, equal)

    def consents(self, side):
        if not side.allows:
            raise Broken("a side is made to give up by the other one")

    def asked_to_give_up(self, side, asker, last_run):
        if side.role == PRIMARY:
            busy, asker.busy = asker.busy, False  # a run is no question of roles
            try:
                equal = (yield from self.last_run(side, asker)) if last_run else ""
            finally:
                asker.busy = busy
            yield from self.give_up(side, equal)

    def failback(self, side, other):
        what = self.rules.failback("job", side.standing(), self.ask(other), other=other.name)
        if what == "ask":
            self.consents(other)
            yield from self.for_other(other, self.asked_to_give_up(other, side, last_run=False))
        equal = yield from self.last_run(side, other)
        yield from self.give_up(side, equal)
        if not self.link:
            raise Unreachable("the other side")
        yield from self.for_other(other, self.taken_back(other, side))

    def taken_back(self, side, asker):
        self.rules.take_back("job", side.standing(), asker.id, asker.same_as, allowed=side.allows)
        yield from self.take_over(side, asker, True)

    def for_other(self, other, action):
        """What a side does because it was asked goes on there, also when whoever asked dies; it is busy meanwhile. Ends, too, when it dies."""
        if other.busy:
            raise Refused("busy")
        other.busy = True
        other.going.insert(0, action)
        while action in other.going:
            yield

    def resync(self, side, other):
        """Given at the losing side."""
        loser = self.rules.losing_side("job", other.name, side.standing(), self.ask(other), names={"here": {side.name}, "there": {other.name}})
        assert loser == "here"
        if side.role == PRIMARY:
            yield from self.give_up(side, "")

    # ---- what happens ----

    def begin(self, side, other, command):
        """A command is given; one at a time on each side, and the other side sees that it is busy."""
        if side.going:
            return
        side.busy = command != "run"
        action = {"force": lambda: self.promote(side, other, force=True)}.get(command) or (lambda: getattr(self, command)(side, other))
        side.going.append(action())
        self.step(side)

    def step(self, side):
        if not side.going:
            return
        try:
            next(side.going[0])
        except (StopIteration, QrepError):
            side.going.pop(0)
            side.busy = False
        self.check()

    def crash(self, side):
        for command in side.going:
            command.close()
        side.going.clear()
        side.busy = False

    def check(self):
        a, b = self.a, self.b
        if REPLICA in (a.role, b.role):
            self.said = False
        elif not self.said:
            raise Broken("both sides are primary, and nobody has said so")
        if roles.equal(a.standing(), b.standing()) and REPLICA == a.role == b.role and a.content != b.content:
            raise Broken("both sides are said to hold the same, and do not")

    def play(self, script):
        for what, first in script:
            side, other = (self.a, self.b) if first else (self.b, self.a)
            if what == "step":
                self.step(side)
            elif what == "write":
                if side.role == PRIMARY and not side.going:  # a claimed device has no writers
                    side.content = self.fresh()
            elif what == "crash":
                self.crash(side)
            elif what == "link":
                self.link = first
            elif what == "allow":
                side.allows = not side.allows
            else:
                self.begin(side, other, what)


EVENTS = (*COMMANDS, *COMMANDS, "write", "crash", "link", "allow", *["step"] * 12)
SCRIPT = st.lists(st.tuples(st.sampled_from(EVENTS), st.booleans()), max_size=60)


@settings(max_examples=300, deadline=None)
@given(SCRIPT)
def test_no_script_of_commands_and_crashes_breaks_what_must_hold(script):
    Pair().play(script)


# ---- each rule is needed ----


def with_rules(**changed):
    return SimpleNamespace(**{name: getattr(roles, name) for name in ("promote", "gave_up", "demote", "failback", "take_back", "losing_side")} | changed)


def never_busy(job, ours, theirs, **options):
    return roles.promote(job, ours, theirs._replace(busy=False) if theirs else None, **options)


def whoever_answers(job, ours, theirs, **options):
    """The source's word is not waited for."""
    return "planned" if ours.role == REPLICA and ours.id and theirs is not None else roles.promote(job, ours, theirs, **options)


def replicas_are_equal(job, ours, theirs, **options):
    """Two replicas are taken for equal whatever their ids say."""
    if theirs is not None and ours.role == theirs.role == REPLICA and not theirs.busy and not options.get("force"):
        return "planned"
    return roles.promote(job, ours, theirs, **options)


def always_given_back(job, ours, new, same_as, *, allowed):
    if ours.role == PRIMARY:
        raise Refused("primary")


def asks_whoever(job, ours, theirs, **options):
    return roles.promote(job, ours, theirs._replace(allows=True) if theirs else None, **options)


def taken_for_given_up(job, ours, theirs, *, other):
    """Found by this test: the side that was asked died in the middle of it, and its ids still said that both had held the same."""
    if theirs is None or not roles.equal(ours, theirs):
        raise Refused("not equal")


@pytest.mark.parametrize(
    "rules",
    [with_rules(promote=rule) for rule in (never_busy, whoever_answers, replicas_are_equal, asks_whoever)] + [with_rules(failback=lambda job, ours, theirs, other: "ask"), with_rules(gave_up=taken_for_given_up)],
    ids=["busy is not looked at", "the source is not asked", "replicas taken for equal", "consent not needed", "failback without consent", "its end not looked at"],
)
def test_a_rule_left_out_is_noticed(rules):
    source = random.Random(1)
    for _ in range(6000):
        script = [(source.choice(EVENTS), source.random() < 0.5) for _ in range(60)]
        try:
            Pair(rules).play(script)
        except Broken:
            return
    raise AssertionError("nobody noticed")


# ---- words ----


def refused(call, *arguments, **options):
    with pytest.raises(Refused) as raised:
        call(*arguments, **options)
    return raised.value


HERE, THERE = Standing("site-b", REPLICA, id="1"), Standing("site-a", PRIMARY)


def test_a_source_that_answers_is_named_with_the_way_out():
    error = refused(roles.promote, "db", HERE, THERE)
    assert error.message == "source site-a answers; a planned switch stops its writers first. --force only if site-a is lost."
    assert (error.code, error.exit_code, error.hint) == ("source-answers", 5, "on site-a: qrep job demote db")


def test_a_source_that_does_not_answer_is_lost_only_when_a_person_says_so():
    assert refused(roles.promote, "db", HERE, None, other="site-a").code == "source-unreachable"
    assert roles.promote("db", HERE, None, force=True, other="site-a") == "forced"


@pytest.mark.parametrize(("ours", "theirs"), [(HERE._replace(id=""), None), (HERE._replace(role=PRIMARY), THERE)])
def test_force_does_not_make_a_primary_of_what_holds_nothing_or_is_one(ours, theirs):
    assert refused(roles.promote, "db", ours, theirs, force=True).code in ("never-synced", "already-primary")


def test_ids_that_are_not_known_are_not_equal():
    assert not roles.equal(Standing("a", REPLICA), Standing("b", REPLICA)) and not roles.equal(Standing("a", REPLICA, id="1"), Standing("b", REPLICA, same_as="1"))
    assert roles.equal(Standing("a", REPLICA, id="1", same_as="2"), Standing("b", REPLICA, id="2"))


def test_both_sides_say_split_brain_in_the_same_words():
    there = roles.split_brain("db", "site-a", "site-b")
    here = refused(roles.failback, "db", Standing("site-b", PRIMARY, id="1"), THERE)
    assert there.code == here.code == "split-brain" and (there.exit_code, here.exit_code) == (5, 5)


@pytest.mark.parametrize(("allowed", "returns", "asked", "code"), [(False, False, "1", "not-allowed"), (True, False, "2", "not-equal"), (False, True, "", "not-equal")])
def test_what_is_taken_back_is_agreed_to_and_equal(allowed, returns, asked, code):
    ours = Standing("site-a", REPLICA, id="1", returns=returns)
    assert refused(roles.take_back, "db", ours, "9", asked, allowed=allowed).code == code
    roles.take_back("db", ours._replace(returns=True), "9", "1", allowed=False)


NAMES = {"here": {"site-a", "source"}, "there": {"site-b", "target"}}


@pytest.mark.parametrize(("side", "loser"), [("site-a", "there"), ("source", "there"), ("site-b", "here"), ("target", "here")])
def test_the_side_that_wins_is_named_by_its_host_or_by_what_it_was(side, loser):
    both = Standing("site-a", PRIMARY), Standing("site-b", PRIMARY, id="1", allows=True)
    assert roles.losing_side("db", side, *both, names=NAMES) == loser


@pytest.mark.parametrize(
    ("ours", "theirs", "target"),
    [
        (("primary", ""), ("replica", ""), False),
        (("replica", ""), ("primary", "7"), True),
        (("primary", ""), ("primary", "7"), False),
        (("primary", "7"), ("primary", ""), True),
        (("primary", "7"), ("primary", "8"), None),
        (("replica", ""), ("replica", ""), None),
        (("primary", "7"), None, None),
        (("primary", ""), None, False),
    ],
)
def test_source_and_target_name_a_side_only_where_they_tell_the_two_apart(ours, theirs, target):
    """After a failback both sides have taken over once: a word that each would take for the other side would give up the wrong one's changes."""
    one = Standing("site-a", ours[0], id="1", common=ours[1])
    other = Standing("site-b", theirs[0], id="2", common=theirs[1]) if theirs else None
    assert roles.is_target(one, other) is target
    if other is not None:
        assert roles.is_target(other, one) is (None if target is None else not target), "both sides mean the same"


def test_a_replica_cannot_win_and_a_loser_that_does_not_allow_it_is_not_asked():
    assert refused(roles.losing_side, "db", "site-b", Standing("site-a", PRIMARY), Standing("site-b", REPLICA, id="1"), names=NAMES).code == "not-primary"
    error = refused(roles.losing_side, "db", "site-a", Standing("site-a", PRIMARY), Standing("site-b", PRIMARY, id="1"), names=NAMES)
    assert error.code == "not-allowed" and "on site-b" in error.hint
