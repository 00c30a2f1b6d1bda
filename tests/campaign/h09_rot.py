"""H9: records on disk are corrupted, one place at a time: what is opened then tells the truth, or says that it cannot. Its canaries first."""

import sys
import tempfile
from pathlib import Path

from campaign import outcome
from fault import test_rot, test_state_rot
from fault.rot import SCENES, Rot
from fault.staterot import StateRot

SUPERBLOCK_BYTES = 2 * 512
STATE_SHARE = 0.55  # of the trials at random: they are the cheaper ones


def run(seed, count, clock):
    """Every bit of the superblock's two slots in one of the scenes, then places at random of a volume's records and of the agent's state, `count` in all."""
    found = outcome.Outcome()

    def attempt(what, trial, *arguments):
        try:
            trial(*arguments)
        except Exception as err:  # whatever it is, it is this trial's
            found.failures.append(f"seed {seed}, {what}: {type(err).__name__}: {err}"[:2000])
        found.count += 1

    with tempfile.TemporaryDirectory(prefix="qrep-test-", dir="/dev/shm") as made:
        scratch = Path(made)
        (scratch / "volume").mkdir()
        (scratch / "state").mkdir()
        rot, state = Rot(scratch / "volume", seed), StateRot(scratch / "state", seed)
        canaries = [test_rot.caught(rot, *canary) for canary in test_rot.CANARIES.values()]
        canaries += [test_state_rot.caught(state, *canary) for canary in test_state_rot.CANARIES.values()]
        found.canaries = sum(canaries), len(canaries)
        state.refused = state.rebuilt = state.healed = state.untouched = 0
        rot.refused = rot.healed = rot.finished = rot.rolled_back = rot.copied = rot.shown = rot.undecidable = 0
        scenes = sorted(SCENES)
        for bit in range(SUPERBLOCK_BYTES * 8):
            if clock.over():
                break
            attempt(f"bit {bit} of the superblock", rot.superblock_bit, scenes[bit % len(scenes)], bit // 8, bit % 8)
        found.also["bits of the superblock"] = found.count
        rest, of_state, in_order = count - found.count, 0, -rot.healed
        for number in range(rest):
            if clock.over():
                break
            if number % 100 < STATE_SHARE * 100:
                attempt(f"trial {number} of the state", state.trial, number)
                of_state += 1
            else:
                attempt(f"trial {number}", rot.trial, number)
        found.also["of the agent's state"], in_order = of_state, in_order + rot.healed
        of_volumes = found.count - found.also["bits of the superblock"] - of_state
        if in_order < of_volumes / 2 or state.rebuilt + state.healed + state.untouched < of_state / 2:
            found.failures.append(f"seed {seed}: most of what was damaged was refused, and nobody looked at what it holds")
        found.note = (
            f"volumes: {rot.refused} taken out of service, {rot.healed} healed or without effect, {rot.undecidable} like a batch that was never flushed, "
            f"{rot.finished} runs, {rot.rolled_back} rollbacks, {rot.copied} copies of sync points and {rot.shown} views after it; state: {state.rebuilt} rebuilt, "
            f"{state.healed} pairs healed, {state.refused} standings refused, {state.untouched} without effect"
        )
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=20_000, seconds=480))
