"""H16: the C parts under AddressSanitizer, UndefinedBehaviorSanitizer, ThreadSanitizer and valgrind; Python in its development mode. Their canaries first.

A copy of the tree is built with sanitizers, and the native tests, whole runs and kills go over it. Leaks are looked for in C programs: what CPython leaves
behind when it ends is not ours. Each program, corpus file or test that passed is one of the count.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from campaign import outcome, pytests
from sanitize import programs, tree

CANARY_TEST = "import gc\n\ndef test_a_file_that_is_never_closed():\n    open('/dev/null')\n    gc.collect()\n"
# Those that take their time by the clock, and those that build programs with sanitizers themselves, are run elsewhere.
NATIVE = ["tests/native", "-m", "not slow", "--ignore=tests/native/test_ring_native.py", "--ignore=tests/native/test_bucket_shares.py", "--ignore=tests/native/test_rehearsal.py"]
RUNS = ["tests/flow/test_runs.py", "tests/fault/test_superblock_rot.py"]
KILLS = ["tests/fault/test_kill_matrix.py::test_the_target_is_killed", "tests/fault/test_kill_matrix.py::test_the_source_is_killed", "-m", "not slow"]
DEVELOPMENT = ["tests/unit", "tests/flow/test_runs.py", "-m", "not slow"]
DEVELOPMENT_MODE = {"PYTHONDEVMODE": "1", "PYTHONASYNCIODEBUG": "1", "PYTHONWARNINGS": "error::ResourceWarning"}


def count(found, what, number):
    found.count += number
    found.also[what] = found.also.get(what, 0) + number


def tried(found, what, number, program, how, *arguments, seconds=300):
    """One run of a program, worth `number`."""
    wrong, said = programs.run(program, how, *arguments, seconds=seconds)
    if wrong:
        found.failures.append(f"{program.name} {' '.join(map(str, arguments))[:80]}: {said[-1500:]}")
    else:
        count(found, what, number)


def tested(found, what, arguments, seed, clock, environment):
    account = pytests.run(arguments, seed, clock, environment)
    found.failures += [f"{what}: {text}" for text in account.failed]
    count(found, what, account.passed)
    return account.skipped


def canaries(found, scratch, sanitized):
    built, lost = programs.canary_programs(scratch), []
    lost += [name for name in programs.CANARIES if not programs.caught(built, name)]
    if not sanitized.notices(scratch):
        lost.append("a heap overflow in a library inside Python")
    test = scratch / "test_canary.py"
    test.write_text(CANARY_TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(programs.TESTS.parent / "pyproject.toml"), str(test)]
    result = subprocess.run(command, env={**os.environ, **DEVELOPMENT_MODE}, cwd=scratch, capture_output=True, text=True, check=False)
    if result.returncode == 0 or "unclosed file" not in result.stdout:
        lost.append("a file that is not closed")
    seeded = len(programs.CANARIES) + 2
    found.failures += [f"canary {name} was not reported" for name in lost]
    found.canaries = seeded - len(lost), seeded


def run(seed, count, clock):
    found = outcome.Outcome()
    with tempfile.TemporaryDirectory(prefix="qrep-test-", dir="/dev/shm") as directory:
        scratch = Path(directory)
        try:
            sanitized = tree.Sanitized(scratch / "tree")
            canaries(found, scratch, sanitized)
            for name in programs.THREADS:
                tried(found, "under ThreadSanitizer", 1, programs.threads_program(scratch), "thread", name)
            tried(found, "under ThreadSanitizer", 1, programs.ring_program(scratch, "thread"), "thread", "data_moves_on_threads")
            ring = programs.ring_program(scratch, "address,undefined")
            for check in programs.ring_checks():
                tried(found, "under ASan and UBSan", 1, ring, "address,undefined", check)
            for name in programs.PARSERS:
                inputs = programs.corpus(name)
                tried(found, "under valgrind", len(inputs), programs.parser_program(scratch, name), "valgrind", *inputs)
        except (programs.Unavailable, AssertionError, subprocess.SubprocessError) as err:
            found.failures.append(f"{type(err).__name__}: {err}"[:4000])
            return found
        skipped = []
        for arguments in (NATIVE, RUNS, KILLS):  # -s: what a sanitizer says as it ends pytest is not to end with it
            skipped += tested(found, "under ASan and UBSan", [*arguments, "-s"], seed, clock, sanitized.environment)
        found.failures += sanitized.reports()
        skipped += tested(found, "in development mode", DEVELOPMENT, seed, clock, DEVELOPMENT_MODE)
        found.note = pytests.why_skipped(skipped)
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=1000, seconds=300))
