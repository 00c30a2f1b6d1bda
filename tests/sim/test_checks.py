"""Verify and repair in the simulator: under runs, kills, power cuts and rot no false alarm is told, and a repair only ever heals."""

import os
import random

import pytest

from qrep.protocol import actions as do
from qrep.protocol import messages as say
from qrep.protocol.target_machine import TargetMachine
from sim.checks import CheckedTarget, CheckScenario
from sim.world import Violation

FIRST = int(os.environ.get("QREP_SEED", "1")) * 10_000_000
SEEDS = 250  # of a defect


def play(seed, **classes):
    scenario = CheckScenario(seed, **classes)
    try:
        scenario.play()
    except Exception as error:
        error.add_note(f"replay: CheckScenario({seed}).play()")
        raise
    return scenario.oracle.alarms, scenario.oracle.healed_leaves


def play_all(first, count):
    print(f"seeds {first} to {first + count - 1}")
    results = [play(seed) for seed in range(first, first + count)]
    alarms, healed = map(sum, zip(*results, strict=True))
    print(f"{alarms} granules were told of, {healed} leaves healed")
    return alarms, healed


def test_rot_is_told_and_healed_under_everything_else_and_nothing_else_is():
    alarms, healed = play_all(FIRST, 40)
    assert alarms and healed, "this mix meets rot and heals some of it"


@pytest.mark.slow
def test_rot_is_told_and_healed_in_the_long_tier():
    play_all(FIRST + 1_000_000, 2000)


def machine_with(**methods):
    return type("DefectTarget", (CheckedTarget,), {"machine_class": type("DefectMachine", (TargetMachine,), methods)})


def pieces_that_were_read_while_something_was_open_are_told():
    """The mark is not compared."""
    return machine_with(checked=lambda self, handle, mark, message: [do.Reply(handle, message)] if handle == self.session else [])


def a_repair_is_taken_while_a_generation_is_open():
    def may_compare(self, generation):
        return say.Nak(0, "base", "") if generation != self.record.committed_id else None

    return machine_with(_may_compare=may_compare)


def a_repair_is_not_compared_with_the_own_map():
    return type("DefectTarget", (CheckedTarget,), {"may_heal": lambda self, leaf, data: True})


def a_repair_is_told_before_it_is_durable():
    def flush_repair(self):
        yield 0

    return type("DefectTarget", (CheckedTarget,), {"flush_repair": flush_repair})


def a_rollback_that_fails_under_a_check(seed, **classes):
    """Its session goes on, and what was read meanwhile is of neither generation. Too rare for the mix, so it is told step by step."""
    scenario = CheckScenario(seed, **classes)
    world, target, source = scenario.world, scenario.target, scenario.controllers[0]
    world.calm = True
    target.sync_points, target.undo_limit = 3, 1 << 30
    target.start()
    for number in range(2):
        scenario.volume.write(0, bytes([number + 1]) * scenario.geometry.size)
        while len(scenario.oracle.chain) <= number:
            if not source.alive:
                scenario.start_run(source, frozen=True)
            world.run(world.now + 5.0)
    world.run(world.now + 5.0)
    scenario.verifier.start()
    assert world.run(world.now + 20.0, lambda: target.readers)
    target.device.latency, target.pause = 0.5, 0.5
    target.device.faults.arm("write", 3, False)
    scenario.rollback()
    world.run(world.now + 60.0)
    assert target.machine.phase == "idle" and len(scenario.oracle.chain) == 2
    return scenario.verifier


def test_a_rollback_that_fails_ends_a_check_without_an_alarm():
    for seed in range(8):
        assert not a_rollback_that_fails_under_a_check(seed).alive


def test_pieces_that_were_read_while_something_was_open_and_are_told_are_caught():
    defect = pieces_that_were_read_while_something_was_open_are_told()
    with pytest.raises(Violation, match="false alarm"):
        for seed in range(8):
            a_rollback_that_fails_under_a_check(seed, target_class=defect)


def a_repair_under_an_open_generation(seed, **classes):
    """A run has written a leaf anew and was cut; a verifier brings the committed content of it; the run is resumed, and does not send it again."""
    scenario = CheckScenario(seed, **classes)
    world, target, source = scenario.world, scenario.target, scenario.controllers[0]
    world.calm = True
    target.sync_points, target.undo_limit = 3, 1 << 30
    source.hold = True
    target.start()
    scenario.volume.write(0, bytes([1]) * scenario.geometry.size)

    def committed(count):
        while len(scenario.oracle.chain) < count:
            if not source.alive:
                scenario.start_run(source, frozen=True)
            world.run(world.now + 2.0)

    committed(1)
    world.run(world.now + 2.0)
    scenario.volume.write(0, bytes([2]) * 4096)
    scenario.start_run(source, frozen=True)
    assert world.run(world.now + 20.0, lambda: bytes(target.device.cache[:4096]) == bytes([2]) * 4096)
    world.run(world.now + 0.05)
    source.kill("told to")
    scenario.verifier.insists_on = 0
    scenario.verifier.start()
    world.run(world.now + 3.0)
    committed(2)
    world.run(world.now + 2.0)
    scenario.oracle.device(target.device, "INV-E")


def test_a_repair_under_an_open_generation_changes_nothing():
    for seed in range(8):
        a_repair_under_an_open_generation(seed)


def test_a_repair_that_is_taken_while_a_generation_is_open_is_caught():
    defect = a_repair_is_taken_while_a_generation_is_open()
    with pytest.raises(Violation, match="INV-E"):
        for seed in range(8):
            a_repair_under_an_open_generation(seed, target_class=defect)


DEFECTS = [a_repair_is_not_compared_with_the_own_map, a_repair_is_told_before_it_is_durable]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_a_defect_is_caught(defect):
    target_class = defect()
    for seed in range(SEEDS):
        try:
            play(seed, target_class=target_class)
        except Violation as violation:
            print(f"seed {seed}: {violation}")
            return
    pytest.fail(f"{SEEDS} seeds did not notice")


def test_a_seed_is_a_run():
    seed = random.Random(3).randrange(1000)
    assert CheckScenario(seed).play() == CheckScenario(seed).play()
