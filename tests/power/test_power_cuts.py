"""A few of the campaign's power cuts (H5), by a fixed seed, in the process that the campaign starts: its mounts are its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from campaign import running
from machine import need_tool
from power.canaries import CANARIES
from power.device import Unavailable, program

pytestmark = pytest.mark.root
TESTS = Path(__file__).resolve().parents[1]
CUTS = 10


@pytest.fixture(scope="module")
def outcome():
    need_tool("mkfs.ext4")
    need_tool("mkfs.xfs")
    try:
        program()
    except Unavailable as why:
        pytest.skip(str(why))
    command = [sys.executable, "-m", "campaign.h05_power", "--seed", os.environ.get("QREP_SEED", "1"), "--count", str(CUTS), "--seconds", "600"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    done = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, check=False, timeout=1200)
    found = running.understood(done.stdout)
    assert found is not None, done.stdout + done.stderr
    return found


def test_no_power_cut_tears_a_target_loses_a_commit_or_makes_a_map_lie(outcome):
    assert outcome.failures == []
    assert outcome.count >= CUTS


def test_recovery_waits_for_a_write_of_the_dead_and_a_session_for_those_of_the_one_before_it(outcome):
    assert outcome.also["writes of the dead"] >= 1 and outcome.also["sessions superseded"] >= 1


def test_nothing_comes_after_a_flush_that_failed(outcome):
    assert outcome.also["failed flushes"] >= 3


def test_the_judges_notice_every_defect_that_is_seeded(outcome):
    assert outcome.canaries == [len(CANARIES)] * 2
