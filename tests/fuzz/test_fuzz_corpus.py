"""The C decoders under a sanitizer: the corpus is replayed, a few seconds are fuzzed, and each harness proves that it can fail.

For a long run: QREP_FUZZ_SECONDS=600, and QREP_SEED=n for other paths. What is found goes to QREP_FUZZ_DIR if that is set.
"""

import os
import subprocess
from pathlib import Path

import pytest
from fuzz.programs import CANARIES, HARNESSES, Unavailable, build, fuzz, reported, statistics

HERE = Path(__file__).parent
SECONDS = int(os.environ.get("QREP_FUZZ_SECONDS", "3"))


@pytest.fixture(scope="session")
def harness(tmp_path_factory):
    """{(name, canary): program}; skips where clang or its sanitizers are missing."""
    try:
        return build(tmp_path_factory.mktemp("fuzz"))
    except Unavailable as err:
        pytest.skip(str(err))


@pytest.mark.parametrize("name", HARNESSES)
def test_the_corpus_raises_nothing(harness, name):
    inputs = sorted((HERE / f"corpus_{name}").iterdir())
    assert len(inputs) > 10
    result = subprocess.run([str(harness[name, None]), *map(str, inputs)], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("Executed") == len(inputs)


@pytest.mark.parametrize("name", HARNESSES)
def test_a_few_seconds_of_fuzzing_raise_nothing(harness, name, tmp_path, seed):
    result = fuzz(harness[name, None], tmp_path, seed, SECONDS, HERE / f"corpus_{name}")
    stats = statistics(result)
    print(f"fuzz {name}: {stats}")
    assert result.returncode == 0, result.stderr[-8000:]
    assert int(stats["number_of_executed_units"]) > 1000 * SECONDS


@pytest.mark.parametrize("canary", CANARIES)
@pytest.mark.parametrize("name", HARNESSES)
def test_a_harness_without_one_of_its_checks_fails_within_seconds(harness, name, canary, tmp_path, seed):
    result = fuzz(harness[name, canary], tmp_path, seed, 20, HERE / f"corpus_{name}")
    assert reported(result), f"canary {canary} of {name} outlived the fuzzer, seed {seed}: {result.stderr[-2000:]}"
