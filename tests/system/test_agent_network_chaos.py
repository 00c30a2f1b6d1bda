"""The harness of bad networks with a few of its scenarios, and all of its seeded defects; the whole of it: python -m campaign.h08_network."""

import pytest
from chaos.canaries import COUNT, NAMES
from chaos.crew import Crew
from chaos.flips import Flips

pytestmark = pytest.mark.root
SEED = 1
# Of `SEED`: a refused path with a fail-over, a cut at Prepared, half a close with short runs, what was held, flips over TLS and plain, frames of an older session, a
# cable without link.
SCENARIOS = (101, 141, 3, 85, 79, 19, 175, 176)
FLIPS = 60


@pytest.fixture(scope="module")
def crew():
    """All of them were played, several at once: most of it is waiting."""
    return Crew(SEED, [*NAMES, *SCENARIOS], workers=4).run()


def test_after_whatever_the_network_did_a_generation_is_committed_whole(crew):
    assert not crew.failures
    found = {crew.results[number]["scenario"]: crew.results[number]["findings"] for number in SCENARIOS}
    for scenario, findings in found.items():
        print(scenario, findings)
    assert not any(found.values())
    assert [rest["found"] for rest in crew.rests if rest["found"]] == []
    assert sum(crew.results[number]["flips"] for number in SCENARIOS) > 0


def test_seeded_defects_are_reported(crew):
    told = {defect: verdict for name in NAMES for defect, verdict in crew.results[name].items()}
    assert len(told) == COUNT
    assert [(defect, said) for defect, (caught, said) in told.items() if not caught] == []


def test_a_flipped_bit_is_found_by_the_lane_that_hears_it(memory_dir, seed):
    flips = Flips(memory_dir, seed)
    assert [wrong for wrong in map(flips.trial, range(FLIPS)) if wrong] == []


def test_a_lane_that_would_not_look_is_reported(memory_dir, seed):
    flips = Flips(memory_dir, seed, forged=True)
    assert all(flips.trial(number) for number in range(5))
