"""A target that lies: what a source believes of it is bounded by what the source can check, and the rest is found by verify."""

import itertools

import pytest
from agents import MIB, b3sum
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qrep.errors import ProtocolError
from qrep.protocol import actions as do
from qrep.protocol import messages as say
from qrep.protocol.messages import NO_ID
from unit.test_source_machine import NEW, OLD, SIZE, T, machine, names, sending, state

IDS = st.sampled_from([T, OLD, NEW, NO_ID, b"x" * 16])


def test_a_target_that_changes_its_mind_about_what_it_holds_is_compared_with_or_sent_everything():
    """Whatever it says it holds, only the generation that the source's own map describes lets it skip a block."""
    for held in (OLD, NEW, b"x" * 16, NO_ID):
        source = machine(tag=T)
        actions = source.message(state(source, committed=held))
        assert "ForgetSourceMap" in names(actions) or not any(isinstance(action, do.Freeze) for action in actions), (held, actions)
    believed = machine(tag=T)
    assert "ForgetSourceMap" not in names(believed.message(state(believed, committed=T)))


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(IDS, IDS, st.integers(0, 9), st.booleans(), st.integers(0, 1 << 63)), min_size=1, max_size=6))
def test_states_that_flip_end_the_connection_or_are_taken_as_they_are_and_never_raise_anything_else(states):
    source = machine(tag=T)
    for committed, opened, attempt, resumable, epoch in states:
        try:
            source.message(state(source, committed=committed, new=opened, attempt=attempt, resumable=resumable, max_epoch=epoch))
        except ProtocolError:
            return


def test_a_history_without_end_is_no_message():
    good = dict(
        version=1, committed=T, counter=5, size=SIZE, leaf_size=4096, granule_size=1 << 20, role=1, history=[T] * say.HISTORY_MAX, open_new=NO_ID,
        open_attempt=0, resumable=False, sector_size=512, max_epoch=1, features=[],
    )  # fmt: skip
    body = say.encode(say.State(**good))[4:]
    assert isinstance(say.decode(body, "target"), say.State)
    with pytest.raises(ProtocolError):
        say.decode(say.encode(say.State(**good | {"history": [T] * (say.HISTORY_MAX + 1)}))[4:], "target")


def test_answers_that_do_not_fit_what_was_asked_end_the_connection():
    lies = [
        say.Committed(NEW, 6), say.Digests(0, b"\1", bytes(32)), say.Prepared(9), say.Root(bytes(32)), say.Added(7, [bytes(16)] * 16),
        say.Resumed(7, 9, bytes(32), [bytes(16)], 1), say.Leaves(0, bytes(32)), say.Checked(0, 0, 0, [], [], [], 0, True),
    ]  # fmt: skip
    for first, second in itertools.permutations(lies, 2):
        source = sending()
        said = []
        for lie in (first, second):
            said += source.message(lie) if source.phase != "done" else []
        assert not [action for action in said if isinstance(action, do.FoldPending | do.WritePending)], "nothing of it reaches the map"


@pytest.mark.root
@pytest.mark.slow
def test_a_change_that_a_target_hides_is_found_by_verify_and_by_a_stranger(agents, loop_device, fill):
    """Its map says what the source wants to hear, the device holds something else: a run skips it, and verify reads the device."""
    source, target = loop_device(8 * MIB), loop_device(8 * MIB)
    fill(source, 8 * MIB)
    a, _b = agents.replica(source, target)
    root = a.run()["root"]
    with open(target.backing, "r+b") as file:  # behind its agent's back, as a target does that lies about what it holds
        file.seek(3 * MIB)
        file.write(b"something else")
    assert a.run()["changed"] == 0, "a source that trusts what its target committed does not look again"
    code, result, _err = a.call("verify", "db")
    assert code == 6 and result["differences"] == [{"offset": 3 * MIB, "size": 4096}]
    assert b3sum(target) != root, "and nobody's code but b3sum's says the same"
