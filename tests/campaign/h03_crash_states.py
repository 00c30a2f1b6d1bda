"""H3: every state that a power cut may leave of what qrep wrote, by recorded logs, recovered by the shipping code; also with a second cut in the recovery."""

import itertools
import logging
import sys
import tempfile
from pathlib import Path

import pytest
from campaign import outcome
from crash import canaries, recorder, scenes
from crash.harness import Bench, Counts, Failure

# States of one place: of three leaves that are being written, each whole, lost or torn in any of its ways, there are 28 ** 3, and as many again where
# another file may be in two states at that time; of three batches of undo, if that is how they come to be in flight, up to 60 ** 3. First a little of every life.
FEW, LIMIT, EXHAUSTIVE = 200, 2_000, 220_000
FEW_RECOVERIES, RECOVERIES, DOUBLE_LIMIT = 10, 80, 200
FAILURES_MAX = 20


def canaries_caught(directory, program, seed):
    made = {name: scenes.record(name, directory / f"canary-{name}", program, seed) for name in {each.scene for each in canaries.CANARIES.values()}}
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for number, (name, canary) in enumerate(canaries.CANARIES.items()):
            if canaries.caught(name, directory / f"canary-{number}", program, made[canary.scene], seed, patch) is None:
                found.append(name)
    return found


def run(seed, count, clock):
    found, counts = outcome.Outcome(), Counts()
    logging.disable(logging.CRITICAL)  # each recovery is told
    with tempfile.TemporaryDirectory(prefix="qrep-test-", dir="/dev/shm") as scratch:
        directory = Path(scratch)
        program = recorder.build(directory)
        missed = canaries_caught(directory, program, seed)
        found.canaries = len(canaries.CANARIES) - len(missed), len(canaries.CANARIES)
        for turn in itertools.count():
            for name in scenes.LIVES:
                if clock.over() or counts.all >= count:
                    break
                here = directory / f"{turn}-{name}"
                bench = Bench(here / "bench", program, scenes.record(name, here / "life", program, seed + turn), seed + turn)
                slow = 10 if name in scenes.SLOW else 1
                whole = name == "runs" and turn == 1
                limit = EXHAUSTIVE if whole else LIMIT if turn else FEW
                try:
                    bench.doubles(counts, (RECOVERIES if turn else FEW_RECOVERIES) // slow, DOUBLE_LIMIT, clock.over)
                    places, exhausted = counts.places, counts.exhausted
                    bench.singles(counts, limit // slow, clock.over)
                    if whole and not clock.over():
                        found.also["places exhausted"] = counts.exhausted - exhausted
                        left_out = counts.places - places - found.also["places exhausted"]
                        found.failures += [f"seed {seed + turn}: not all states were tried of {left_out} places of {name}"] * bool(left_out)
                except Failure as failure:
                    found.failures.append(f"seed {seed + turn}, {failure}"[:700])
            if clock.over() or counts.all >= count or len(found.failures) >= FAILURES_MAX:
                break
    logging.disable(logging.NOTSET)
    found.count = counts.all
    found.also |= {"double crashes": counts.doubles, "distinct": counts.distinct + counts.distinct_doubles, "distinct double crashes": counts.distinct_doubles}
    found.note = (
        f"{counts.exhausted} of {counts.places} places of {turn + 1} x {len(scenes.LIVES)} recorded logs exhausted, {counts.recoveries} recoveries recorded and crashed, "
        f"{counts.taken_back} open generations taken back, {counts.finished} runs and {counts.rolled_back} rollbacks afterwards" + (f"; not noticed: {missed}" if missed else "")
    )
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=500_000, seconds=480))
