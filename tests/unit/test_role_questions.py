"""What a peer may make this node do about roles: nothing of a job that it has no part in, and no giving up without permission."""

from types import SimpleNamespace

import pytest

from qrep.daemon import asks
from qrep.daemon.roles import Roles
from qrep.daemon.rolesides import _checked
from qrep.errors import NotFound, ProtocolError, Refused

JOB, VOLUME = "a" * 32, "b" * 32
TOLD = {
    "role": "primary", "id": "", "same_as": "", "common": "", "allows": False, "busy": False, "returns": False, "volume": "db", "volume_id": VOLUME,
    "sync_point": None, "changed": None, "task": None,
}  # fmt: skip


class Runner:
    """A job at its source, whose other side is site-b's."""

    settings = SimpleNamespace(
        id=JOB, source="db", target="site-b:db", target_volume="c" * 32, size=1 << 20, leaf=4096, granule=8192, sync_points=7, keep="", role="source",
        mode="async", moved=None, group="",
    )  # fmt: skip

    def begin(self, activity):
        """It may."""

    def end(self):
        """Done."""

    def note_problem(self, error):
        self.problem = error


@pytest.fixture
def node(tmp_path):
    runner, started = Runner(), []
    volume = SimpleNamespace(name="db", directory=str(tmp_path / "volume"), target=None, settings=SimpleNamespace(id=VOLUME, device="/dev/x", accept=[]))
    return SimpleNamespace(
        name="site-a", started=started, runner=runner, allowed=False, state=SimpleNamespace(path=str(tmp_path)),
        jobs=SimpleNamespace(
            by_id=lambda job_id: ("db", runner) if job_id == JOB else (None, None), all_by_name=lambda: {"db": runner}, active=lambda: [("db", runner)],
            start=lambda name, cause: started.append(("run", name)),
        ),
        grants=SimpleNamespace(pair=lambda job_id: None), events=SimpleNamespace(add=lambda *arguments, **data: None),
        volumes=SimpleNamespace(get=lambda name: volume), tasks=SimpleNamespace(start=lambda kind, *rest: started.append((kind,)) or SimpleNamespace(state="running", kind=kind, error=None, result=None)),
    )  # fmt: skip


@pytest.fixture
def roles(node):
    node.peers = SimpleNamespace(may_switch=lambda peer: node.allowed, fingerprint=lambda peer: "", reach=None)
    return Roles(node)


QUESTIONS = [
    asks.Standing(job_id=JOB), asks.GiveUp(job_id=JOB, last_run=True), asks.CountChanges(job_id=JOB), asks.TakeBack(job_id=JOB, id="d" * 32, same_as="e" * 32),
    asks.RunNow(job_id=JOB), asks.PinPoint(job_id=JOB, point="1"), asks.SendBack(job_id=JOB, point="1"),
]  # fmt: skip


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: type(question).__name__)
def test_a_host_that_is_not_of_the_pair_is_told_that_there_is_none_and_nothing_happens(roles, node, question):
    with pytest.raises(NotFound, match="no such pair"):
        roles.answer(question, "site-c")
    unknown = type(question)(**{name: getattr(question, name) for name in question.__struct_fields__} | {"job_id": "f" * 32})
    with pytest.raises(NotFound, match="no such pair"):
        roles.answer(unknown, "site-b")
    assert not node.started


def test_a_peer_does_not_make_this_host_give_up_without_leave_and_does_with_it(roles, node):
    with pytest.raises(Refused) as raised:
        roles.answer(asks.GiveUp(job_id=JOB, last_run=True), "site-b")
    assert raised.value.code == "not-allowed" and "--may-switch" in raised.value.hint and not node.started
    node.allowed = True
    roles.answer(asks.GiveUp(job_id=JOB, last_run=True), "site-b")
    assert node.started == [("give-up",)]


def test_a_primary_side_is_not_made_primary_again_by_a_peer_whatever_it_claims(roles, node):
    node.allowed = True
    with pytest.raises(Refused, match="primary already"):
        roles.answer(asks.TakeBack(job_id=JOB, id="d" * 32, same_as=""), "site-b")


def test_a_run_of_the_other_side_is_refused_by_a_source_and_kept_as_its_problem(roles, node):
    with pytest.raises(Refused) as raised:
        roles.check_session(JOB, "site-b")
    assert raised.value.code == node.runner.problem.code == "split-brain" and raised.value.exit_code == 5
    roles.check_session(JOB, "site-c")  # of another host: the pair decides
    roles.check_session("f" * 32, "site-b")


def test_two_changes_of_one_pair_do_not_go_on_at_once_and_the_other_side_is_told(roles):
    part, _other = roles.parts("db")
    with roles.alone(part):
        assert roles.answer(asks.Standing(job_id=JOB), "site-b")["busy"]
        with pytest.raises(Refused, match="being changed already"), roles.alone(part):
            raise AssertionError("it was let in")
    assert not roles.answer(asks.Standing(job_id=JOB), "site-b")["busy"]


@pytest.mark.parametrize(
    "change",
    [{"role": "king"}, {"id": "x"}, {"id": "A" * 32}, {"volume_id": "../" * 11}, {"volume": "../../etc"}, {"changed": "1"}, {"more": 1}, {"allows": 1}, {"task": []},
     {"volume_id": ""}, {"changed": -1}, {"changed": 1 << 63}, {"id": "0" * 32}, {"same_as": "0" * 32}, {"id": "a" * 31 + "\n"}, {"sync_point": "never"}, {"task": {}}, {"task": {"state": ["done"]}}],
    ids=str,
)
def test_an_answer_of_a_peer_is_held_to_its_form(change):
    assert _checked(dict(TOLD), "standing").volume == "db"
    with pytest.raises(ProtocolError):
        _checked(TOLD | change, "standing")
