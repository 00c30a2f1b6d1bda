"""Change hints under everything that happens to a source and its target: kills, cuts, rollbacks, other images; and what keeps them right is needed."""

import pytest

from sim.hinted import HintedController, Memory
from sim.scenario import Scenario
from sim.world import Violation

SEEDS = 150
ROLLED_BACK = {"weights": {"rollback": 3}, "frozen": 1.0, "pace": 1, "controllers": 1}
# Runs that die and go on with another image, of few contents, so that what was changed is changed back.
ANOTHER_IMAGE = {
    "weights": {"kill_source": 2, "release": 2, "stop": 1}, "frozen": 1.0, "pace": 60, "hot": 1.0, "contents": 1, "controllers": 1, "busy": 1.0, "latency": 0.001,
}  # fmt: skip
ABORTED = {"weights": {"disk_write": 3, "kill_target": 2, "cut": 1, "kill_source": 1}, "frozen": 1.0, "pace": 1, "controllers": 1}
CALM = {"weights": {"resize": 0}, "pace": 1, "frozen": 1.0, "latency": 0.01, "lies": 0, "controllers": 1}


def controller(**methods):
    made = type("DefectController", (HintedController,), methods)
    made.performers = HintedController.performers
    return made


def play(seeds, **classes):
    for seed in seeds:
        Scenario(seed, **{"controller_class": HintedController, **classes}).play()


@pytest.mark.parametrize("focus", [None, ROLLED_BACK, ANOTHER_IMAGE, ABORTED], ids=["anything", "rolled back", "another image", "aborted"])
def test_no_seed_breaks_an_invariant(focus):
    before = HintedController.skipped
    play(range(25), focus=focus)
    assert HintedController.skipped > before, "the hints spared nothing: nothing was tried"


@pytest.mark.slow
def test_no_seed_of_the_long_tier_breaks_an_invariant():
    play(range(1000, 2000))


def a_hint_used_over_the_map_of_another_generation():
    return {"controller_class": controller(entry=lambda self: self.memory.kept), "focus": ROLLED_BACK}


def a_hint_used_where_a_resumed_attempt_has_written():
    return {"controller_class": controller(marks=lambda self, action: bytearray(self.geometry.granules)), "focus": ANOTHER_IMAGE}


DEFECTS = [a_hint_used_over_the_map_of_another_generation, a_hint_used_where_a_resumed_attempt_has_written]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_a_defect_is_caught(defect):
    classes = defect()
    for seed in range(SEEDS):
        try:
            Scenario(seed, **classes).play()
        except Violation as violation:
            print(f"seed {seed}: {violation}")
            return
    raise AssertionError(f"{SEEDS} seeds did not notice")


def not_committed(seed, kill_source, **classes):
    """A second generation is about to be committed, its snapshot noted, when the target dies, and with it perhaps the source."""
    scenario = Scenario(seed, focus=CALM, **{"controller_class": HintedController, **classes})
    world, target, source = scenario.world, scenario.target, scenario.controllers[0]
    scenario.network.cut_chance = 0
    target.undo_limit = 1 << 30
    target.start()

    def run_until(condition):
        for _ in range(50):
            if not source.alive:
                scenario.start_run(source)
            if world.run(world.now + 1.0, condition):
                return
        raise RuntimeError("it did not come about")

    scenario.volume.write(0, bytes([1]) * 4096)
    run_until(lambda: source.finished == 1 and not source.alive)
    scenario.volume.write(0, bytes([2]) * 4096)
    run_until(lambda: source.store.files.get("pending"))
    assert len(scenario.oracle.chain) == 1, "it was committed already"
    if kill_source:
        source.kill("told to")
    target.kill("told to")
    scenario.heal()


class Hasty(Memory):
    """The snapshot of what is about to be committed is the kept one at once."""

    def remember(self, tag, token, *rest):
        Memory.remember(self, tag, token, *rest)
        if self.kept is not None:
            self._save(self.next._replace(tag=self.kept.tag), None)


class Careless(Memory):
    """Whatever was noted is taken for the image of the map."""

    def begin(self, wanted, map_tag, pending_tag, in_use):
        if self.next is not None:
            self._save(self.next._replace(tag=map_tag), None)


@pytest.mark.parametrize("kill_source", [False, True])
def test_a_commit_that_did_not_happen_leaves_the_snapshot_of_the_generation_before(kill_source):
    for seed in range(5):
        not_committed(seed, kill_source)


@pytest.mark.parametrize("memory, kill_source", [(Hasty, False), (Careless, True)], ids=["before the commit", "whatever was committed"])
def test_a_snapshot_kept_without_asking_the_map_is_caught(memory, kill_source):
    with pytest.raises(Violation, match="INV-"):
        for seed in range(5):
            not_committed(seed, kill_source, controller_class=controller(memory_class=memory))
