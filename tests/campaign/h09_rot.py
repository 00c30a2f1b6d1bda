"""H9: records on disk are corrupted, one place at a time; a volume that is opened then tells the truth or says that it cannot. Its canaries first."""

import contextlib
import sys
import tempfile
from pathlib import Path

import pytest
from campaign import outcome
from fault.rot import SCENES, Lie, Rot
from fault.test_rot import CANARIES, CANARY_TRIALS

SUPERBLOCK_BYTES = 2 * 512


def caught(rot, seed_it):
    with pytest.MonkeyPatch.context() as patch:
        seed_it(patch)
        for number in range(CANARY_TRIALS):
            try:
                rot.trial(number)
            except Lie:
                return True
    return False


def run(seed, count, clock):
    """Every bit of the superblock's two slots in one of the scenes, then places at random, `count` in all."""
    found = outcome.Outcome()
    with tempfile.TemporaryDirectory(prefix="qrep-test-", dir="/dev/shm") as scratch, contextlib.closing(Rot(Path(scratch), seed)) as rot:
        found.canaries = sum(caught(rot, seed_it) for seed_it in CANARIES.values()), len(CANARIES)

        def attempt(what, trial, *arguments):
            try:
                trial(*arguments)
            except Exception as err:  # whatever it is, it is this trial's
                found.failures.append(f"seed {seed}, {what}: {type(err).__name__}: {err}"[:500])
            found.count += 1

        scenes = sorted(SCENES)
        for bit in range(SUPERBLOCK_BYTES * 8):
            attempt(f"bit {bit} of the superblock", rot.superblock_bit, scenes[bit % len(scenes)], bit // 8, bit % 8)
        found.also["bits of the superblock"] = found.count
        for number in range(count - found.count):
            if clock.over():
                break
            attempt(f"trial {number}", rot.trial, number)
        found.note = (
            f"{rot.refused} taken out of service, {rot.healed} healed or without effect, {rot.undecidable} like a batch that was never flushed, "
            f"{rot.finished} runs and {rot.rolled_back} rollbacks after it"
        )
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=20_000, seconds=480))
