"""An agent without one of its checks is noticed: the tests of this suite can fail. All of them are in campaign/h17_security.py."""

import os

import pytest
from campaign import outcome, pytests
from security.sabotage import SABOTAGE, directory_of


def noticed(name, scratch, seconds=120):
    """What the test found that was to notice, "" if it found nothing: not that an agent did not start, or had no time."""
    path = os.pathsep.join([str(directory_of(name, scratch)), pytests.PLACES])
    account = pytests.run([SABOTAGE[name][1], "-m", "slow or not slow", "-x"], 1, outcome.Clock(seconds), {"PYTHONPATH": path})
    assert not account.skipped, account.skipped
    return "\n".join(account.noticed)


@pytest.mark.root
@pytest.mark.parametrize("name", ["TLS 1.2 is spoken"])
def test_an_agent_without_a_check_is_noticed(name, tmp_path):
    why = noticed(name, tmp_path)
    assert "AssertionError" in why or "DID NOT RAISE" in why or "assert" in why, why or "nobody noticed"


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SABOTAGE))
def test_each_agent_without_a_check_is_noticed(name, tmp_path):
    assert noticed(name, tmp_path)
