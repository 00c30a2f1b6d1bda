"""Seeds of a consistency group: all members or none, whatever dies; and every rule of it is needed."""

import os

import pytest

from qrep.jobs.groups import GroupRun
from qrep.protocol.target_machine import TargetMachine
from sim.group import Coordinator, GroupController, GroupScenario, Member, TargetNode, play
from sim.world import Violation

FIRST = int(os.environ.get("QREP_SEED", "1")) * 10_000_000
SEEDS = 60


def member_with(**methods):
    return {"member_class": type("DefectMember", (Member,), {"machine_class": type("DefectMachine", (TargetMachine,), methods)})}


def node_with(**methods):
    return {"node_class": type("DefectNode", (TargetNode,), methods)}


def superblocks_before_the_record():
    """Each volume is committed by itself, and the record follows."""

    def write_record(self, name, decisions):
        for target in self.targets:
            if target.volume_id in decisions:
                yield from Member._write_superblock(target, type("Early", (), {"record": target.machine.record.committed()})())
        yield from TargetNode.write_record(self, name, decisions)

    return node_with(write_record=write_record)


def record_not_flushed():
    def flush_record(self):
        """The power goes soon after, which would be rare otherwise."""
        yield 0
        if self.world.chance(0.5):
            self.world.at(self.world.delay(0.1), self.power_cut)

    return node_with(flush_record=flush_record) | {"focus": {"weights": {"cut": 1}, "superblock_latency": 0.1}}


def named_attempt_rolled_back():
    def start(self, has_checkpoint, decided=None):
        return TargetMachine.start(self, has_checkpoint)

    return member_with(start=start)


def record_retired_before_the_superblocks():
    def write_record(self, name, decisions):
        yield from TargetNode.write_record(self, name, decisions)
        yield from self.write(name, {})

    return node_with(write_record=write_record)


def asked_for_before_all_have_agreed():
    class Hasty(GroupRun):
        def _ask(self):
            if self._agreed and not self._asking and self._doom is None:
                self._members_all, self._members = self._members, frozenset(self._agreed)
                try:
                    return GroupRun._ask(self)
                finally:
                    self._members = self._members_all
            return []

    return {"coordinator_class": type("HastyCoordinator", (Coordinator,), {"run_class": Hasty})}


def a_member_freezes_alone():
    class Alone(GroupController):
        def _freeze(self, action):
            yield self.world.delay(0.01)
            token = action.token if action.token in self.volume.snapshots else self.volume.freeze()
            return self.machine.frozen(token, False, int(self.world.now * 1e9))

        performers = {**GroupController.performers}

    from qrep.protocol import actions as do

    Alone.performers[do.Freeze] = Alone._freeze
    return {"controller_class": Alone}


DEFECTS = {
    superblocks_before_the_record: "INV-",
    record_not_flushed: "INV-",
    named_attempt_rolled_back: "INV-",
    record_retired_before_the_superblocks: "INV-",
    asked_for_before_all_have_agreed: "INV-",
    a_member_freezes_alone: "INV-O",
}


def test_no_seed_commits_a_part_of_a_group():
    print(f"seeds {FIRST} to {FIRST + SEEDS - 1}")
    for seed in range(FIRST, FIRST + SEEDS):
        play(seed)


@pytest.mark.slow
def test_no_seed_of_the_long_tier_commits_a_part_of_a_group():
    for seed in range(FIRST + 1_000_000, FIRST + 1_003_000):
        play(seed)


@pytest.mark.parametrize("seed", [0, 1, 2, 202612011000210])
def test_a_seed_is_a_run(seed):
    assert play(seed) == play(seed)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_a_defect_is_caught(defect):
    for seed in range(400):
        try:
            GroupScenario(seed, **defect()).play()
        except Violation as caught:
            print(f"seed {seed}: {caught}")
            assert str(caught).startswith(DEFECTS[defect])
            return
    pytest.fail(f"{defect.__name__} was not caught in 400 seeds")
