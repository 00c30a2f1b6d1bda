"""The same machines and disks, driven rule by rule by hypothesis instead of by a drawn schedule: it shrinks what it finds."""

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from sim.scenario import LEAF, Scenario
from sim.test_seeded_defects import device_not_flushed_before_the_commit
from sim.world import Violation

SLOTS = st.integers(0, 7)


class Replication(RuleBasedStateMachine):
    """Rules are what the world does; time passes only in `step`. The oracle of the simulator looks at every commit and recovery."""

    classes = {}  # what a defect replaces

    @initialize(seed=st.integers(0, 1 << 16), two=st.booleans(), undo_limit=st.sampled_from([1 << 30, 60_000]))
    def set_up(self, seed, two, undo_limit):
        self.scenario = scenario = Scenario(seed, focus={"weights": {"cut": 1}, "pace": 20, "latency": 0.005}, **self.classes)
        self.world, self.target, self.volume = scenario.world, scenario.target, scenario.volume
        self.network, self.controllers = scenario.network, scenario.controllers if two else scenario.controllers[:1]
        scenario.controllers = self.controllers
        self.network.cut_chance = 0
        self.target.undo_limit = undo_limit
        self.target.start()
        self.world.run(self.world.now + 1.0)

    def controller(self, slot):
        return self.controllers[slot % len(self.controllers)]

    @rule(events=st.sampled_from([1, 3, 10, 30, 100]))
    def step(self, events):
        """Deliver, complete and execute whatever is due next: `events` of them."""
        goal = self.world.events + events
        self.world.run(self.world.now + 30.0, lambda: self.world.events >= goal)

    @rule(leaf=st.integers(0, 17), content=st.integers(0, 3))
    def host_write(self, leaf, content):
        leaves = -(-self.volume_size() // LEAF)
        offset = leaf % leaves * LEAF
        data = bytes(LEAF) if not content else random.Random(content).randbytes(LEAF)
        self.volume.write(offset, data[: self.volume_size() - offset])

    def volume_size(self):
        return self.scenario.geometry.size

    @rule(slot=SLOTS, frozen=st.booleans(), initial=st.sampled_from(["auto", "compare", "full"]), connections=st.integers(1, 4))
    def run(self, slot, frozen, initial, connections):
        """hello, begin or resume, send, prepare, commit follow in steps; on the second controller: takeover."""
        self.controller(slot).run(frozen=frozen, initial=initial, connections=connections)

    @rule(slot=SLOTS)
    def kill_source(self, slot):
        self.controller(slot).kill("rule")

    @rule()
    def kill_target(self):
        self.target.kill("rule")

    @rule()
    def power_cut(self):
        """Any subset of the sectors that were not flushed survives."""
        if self.target.alive:
            self.target.power_cut()

    @rule(which=SLOTS)
    @precondition(lambda self: self.network.connections)
    def cut(self, which):
        self.network.connections[which % len(self.network.connections)].cut()

    @rule(kind=st.sampled_from(["read", "write", "flush"]), count=st.integers(1, 4))
    def device_fails(self, kind, count):
        self.target.device.faults.arm(kind, count, False)

    @rule(leaf=st.integers(0, 17))
    def a_block_of_the_source_goes_bad(self, leaf):
        self.volume.unreadable.add(leaf % (self.volume_size() // LEAF) * LEAF)

    @rule(leaf=st.integers(0, 17))
    def a_block_of_the_target_goes_bad(self, leaf):
        self.target.device.unwritable.add(leaf % (self.volume_size() // LEAF) * LEAF)

    @rule()
    def blocks_heal(self):
        self.volume.unreadable.clear()
        self.target.device.unwritable.clear()

    @rule(kind=st.sampled_from(["write", "flush"]))
    def undo_fails(self, kind):
        for file in self.target.undo.values():
            file.faults.arm(kind, 1, False)

    @rule(slot=SLOTS)
    def state_directory_is_full_once(self, slot):
        random.Random(slot).choice([self.controller(slot).store, self.target.store]).faults.arm("write", 1, False)

    @rule()
    def a_frame_is_late_or_twice_or_flipped(self):
        self.target.lies = 0.2

    @rule(slot=SLOTS)
    def stop_run(self, slot):
        controller = self.controller(slot)
        if controller.alive and controller.machine is not None:
            controller.post(lambda: controller.machine.stop() if controller.machine.phase not in ("done", "failed", "degraded") else [])

    @rule(slot=SLOTS, count=st.integers(1, 16))
    def connections_come_and_go(self, slot, count):
        controller = self.controller(slot)
        if controller.alive and controller.machine is not None:
            controller.resize(count)

    @rule()
    def rollback(self):
        self.scenario.rollback()

    @rule()
    def abandon(self):
        if self.target.ready:
            self.target.post(lambda: self.target.machine.abandon() if self.target.machine.phase in ("idle", "open", "prepared") else [])

    @rule()
    def snapshots_are_released(self):
        self.volume.snapshots = {token: image for token, image in self.volume.snapshots.items() if self.scenario._in_use(token)}

    def teardown(self):
        if hasattr(self, "scenario"):
            self.scenario.heal()


Replication.TestCase.settings = settings(
    max_examples=300, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
)
TestReplication = Replication.TestCase


def test_the_rules_would_notice_a_missing_flush():
    class Defective(Replication):
        classes = device_not_flushed_before_the_commit()

    with pytest.raises(Violation, match="INV-E"):
        run_state_machine_as_test(Defective, settings=settings(max_examples=200, stateful_step_count=20, deadline=None, report_multiple_bugs=False))
