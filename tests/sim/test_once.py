"""Mode copy in the simulator: whatever dies, one generation is committed, and a run that finds it so ends well."""

import functools

import pytest

from qrep.protocol.source_machine import SourceMachine
from sim.scenario import Scenario
from sim.source import Controller
from sim.world import Violation

SEEDS = 60
FOCUS = {"controllers": 1, "weights": {"kill_source": 3, "power_source": 1, "kill_target": 2, "power_target": 1, "cut": 2}, "frozen": 1.0, "busy": 0.3}


def once_with(machine_class):
    return type("OnceController", (Controller,), {"machine_class": staticmethod(functools.partial(machine_class, once=True))})


class Once(Scenario):
    """No rollback, nobody writes to what was given back."""

    def heal(self):
        world, controller = self.world, self.controllers[0]
        world.calm = True
        self.network.down = False
        for _ in range(4):
            world.run(world.now + 300.0, lambda: not controller.alive)
            before = controller.finished
            self.start_run(controller, frozen=True)
            world.run(world.now + 300.0, lambda: not controller.alive)
        if len(self.oracle.chain) != 1:
            raise Violation(f"{len(self.oracle.chain)} generations of a job that is made once")
        if controller.finished == before:
            raise Violation("a run that found its generation committed did not end well")
        self.oracle.device(self.target.device, "at the end")


def play(seed, machine_class=SourceMachine):
    scenario = Once(seed, controller_class=once_with(machine_class), focus=FOCUS)
    scenario.initial = "auto"
    scenario.play()


def test_a_copy_is_committed_once_and_a_later_run_finds_it():
    for seed in range(SEEDS):
        try:
            play(seed)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise


class OnceForThisRunOnly(SourceMachine):
    """What another process committed is taken for the base of a generation of one's own."""

    def _on_state(self, state):
        self._once = False
        return super()._on_state(state)


def test_a_run_that_does_not_see_that_it_is_over_is_caught():
    with pytest.raises(Violation):
        for seed in range(SEEDS):
            play(seed, OnceForThisRunOnly)
