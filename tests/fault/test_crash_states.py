"""States that a power cut may leave of what qrep wrote, enumerated from recorded logs and recovered by the shipping code, with one crash and with two."""

import logging
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from crash import canaries, recorder, scenes
from crash.harness import Bench, Counts

SEED = 1
LIMIT, RECOVERIES, DOUBLE_LIMIT = 25, 5, 20

pytestmark = pytest.mark.root


class Lives:
    """The recorded scenes, each made when it is asked for."""

    def __init__(self, directory):
        self.directory, self.program, self._made = directory, recorder.build(directory), {}

    def __getitem__(self, name):
        if name not in self._made:
            self._made[name] = scenes.record(name, self.directory / name.replace(" ", "-"), self.program, SEED)
        return self._made[name]


@pytest.fixture(scope="module")
def lives():
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("there is no /dev/fuse")
    directory = Path(tempfile.mkdtemp(prefix="qrep-test-", dir="/dev/shm"))
    logging.disable(logging.CRITICAL)  # each recovery is told
    yield Lives(directory)
    logging.disable(logging.NOTSET)
    shutil.rmtree(directory)


@pytest.mark.parametrize("name", scenes.LIVES)
def test_after_a_crash_and_after_one_in_its_recovery_a_volume_is_what_it_was(lives, name):
    bench, counts = Bench(lives.directory / f"bench-{name}", lives.program, lives[name], SEED), Counts()
    slow = 5 if name in scenes.SLOW else 1
    bench.singles(counts, LIMIT // slow)
    bench.doubles(counts, RECOVERIES // slow, DOUBLE_LIMIT)
    print(f"seed {SEED}: {vars(counts)}")
    assert counts.distinct and counts.distinct_doubles and counts.taken_back or name == "merged"


@pytest.mark.parametrize("name", canaries.CANARIES)
def test_a_defect_is_noticed(lives, name, monkeypatch):
    said = canaries.caught(name, lives.directory / f"canary-{list(canaries.CANARIES).index(name)}", lives.program, lives[canaries.CANARIES[name].scene], SEED, monkeypatch)
    assert said, "nobody noticed"
    print(said)
