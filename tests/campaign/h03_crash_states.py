"""H3: every state that a power cut may leave of what qrep wrote, by recorded logs, recovered by the shipping code; also with a second cut in the recovery."""

import itertools
import sys
import tempfile
from pathlib import Path

import oracle
import pytest
from campaign import outcome
from crash import canaries, recorder, scenes
from crash.harness import Bench, Counts, Failure
from crash.told import Told

# States of one place: of three leaves that are being written, each whole, lost or torn in any of its ways, there are 28 ** 3, and as many again where
# another file may be in two states at that time; of three batches of undo, if that is how they come to be in flight, up to 60 ** 3. First a little of every life.
FEW, LIMIT, EXHAUSTIVE = 200, 2_500, 220_000
FEW_RECOVERIES, RECOVERIES, DOUBLE_LIMIT = 10, 80, 200
DOUBLES_ONE_IN = 5  # of all distinct states: from then on few of each life
SLOWER = 20  # of what is tried of other lives this part is tried of scenes.SLOW
FAILURES_MAX = 20


def canaries_caught(directory, program, seed, told):
    """Names of the canaries that were not caught: why. Without their defects nothing is noticed in the same states."""
    made = {name: scenes.record(name, directory / f"canary-{name}", program, seed) for name in {each.scene for each in canaries.CANARIES.values()}}
    missed = {}
    for number, wanted in enumerate(dict.fromkeys(each.control for each in canaries.CANARIES.values())):
        try:
            canaries.control(made[wanted[0]], wanted, directory / f"control-{number}", program, seed, told)
        except Exception as err:  # whatever it is, the canaries of these states prove nothing
            missed |= {name: f"without it, too: {err}" for name, each in canaries.CANARIES.items() if each.control == wanted}
    with pytest.MonkeyPatch.context() as patch:
        for number, (name, canary) in enumerate(canaries.CANARIES.items()):
            try:
                canaries.caught(canary, directory / f"canary-{number}", program, made[canary.scene], seed, told, patch)
            except Exception as err:  # a patch or an edit that fits no more, and whatever else it is
                missed.setdefault(name, f"{type(err).__name__}: {err}")
    return missed


def run(seed, count, clock):
    found, counts = outcome.Outcome(), Counts()
    with tempfile.TemporaryDirectory(prefix="qrep-test-", dir="/dev/shm") as scratch, Told() as told:
        directory = Path(scratch)
        program = recorder.build(directory)
        missed = canaries_caught(directory, program, seed, told)
        found.canaries = len(canaries.CANARIES) - len(missed), len(canaries.CANARIES)
        found.failures += [f"seed {seed}, canary: {name}: {why}"[:700] for name, why in missed.items()]
        for turn in itertools.count():
            for name in scenes.LIVES:
                if clock.over() or counts.recovered >= count:
                    break
                here = directory / f"{turn}-{name}"
                bench = Bench(here / "bench", program, scenes.record(name, here / "life", program, seed + turn), seed + turn, told)
                slow = SLOWER if name in scenes.SLOW else 1
                recoveries = RECOVERIES if turn and counts.distinct_doubles * DOUBLES_ONE_IN < count else FEW_RECOVERIES
                whole = name == "runs" and turn == 1
                limit = EXHAUSTIVE if whole else LIMIT if turn else FEW
                try:
                    told.judge()  # what the life has said while it was recorded
                    bench.doubles(counts, max(1, recoveries // slow), DOUBLE_LIMIT, clock.over)
                    places, exhausted = counts.places, counts.exhausted
                    bench.singles(counts, limit // slow, clock.over)
                    if whole and not clock.over():
                        found.also["places exhausted"] = counts.exhausted - exhausted
                        left_out = counts.places - places - found.also["places exhausted"]
                        found.failures += [f"seed {seed + turn}: not all states were tried of {left_out} places of {name}"] * bool(left_out)
                except (Failure, oracle.Forbidden) as failure:
                    found.failures.append(f"seed {seed + turn}, {name}: {failure}"[:700])
            if clock.over() or counts.recovered >= count or len(found.failures) >= FAILURES_MAX:
                break
    found.count = counts.recovered
    found.also = {"of them after two crashes": counts.distinct_doubles, "enumerated": counts.all, "enumerated after two crashes": counts.doubles} | found.also
    found.note = (
        f"{counts.exhausted} of {counts.places} places of {turn + 1} x {len(scenes.LIVES)} recorded logs exhausted, {counts.recoveries} recoveries recorded and crashed, "
        f"{counts.taken_back} open generations taken back, {counts.finished} runs and {counts.rolled_back} rollbacks afterwards" + (f"; not noticed: {list(missed)}" if missed else "")
    )
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=300_000, seconds=900))
