"""The harness of roles with a few of its scenarios, and all of its seeded defects; the whole of it: python -m campaign.h12_roles."""

import pytest
from chaos.crew import Crew
from chaos.rolecanaries import NAMES

pytestmark = pytest.mark.root
SEED = 1
SCENARIOS = ("role:2.0", "role:5.1", "role:8.0")  # both sides primary; agents that are killed in their commands; a leader that comes back in its run


@pytest.fixture(scope="module")
def crew():
    return Crew(SEED, [*NAMES, *SCENARIOS], workers=2).run()


def test_roles_and_contents_are_what_the_commands_so_far_lead_to(crew):
    assert not crew.failures
    for number in SCENARIOS:
        print(crew.results[number]["scenario"], crew.results[number]["findings"])
    assert [crew.results[number]["findings"] for number in SCENARIOS] == [[]] * len(SCENARIOS)


@pytest.mark.parametrize("name", NAMES)
def test_a_seeded_defect_is_reported(crew, name):
    for defect, (caught, said) in crew.results[name].items():
        assert caught, f"{defect}: {said}"
