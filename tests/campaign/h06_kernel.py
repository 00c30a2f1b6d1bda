"""H6: power cuts replayed from what dm-log-writes recorded in the guest of a stock Debian kernel, and runs on devices of dm-flakey's there.

One boot records generations of a 16 MiB volume: its device, and the ext4 with its undo store and records, each on a dm-log-writes of its own. The logs are
brought out, and each moment is replayed here: devices as they may be then, the kernel mounts the ext4, and the recovery of this tree's TargetVolume runs.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from campaign import outcome
from guest_machine import Guest, Unavailable
from replay import guest
from replay.canaries import CANARIES, caught
from replay.replayer import Replayer, points

MIB = 1 << 20
SIZE, GENERATIONS = 16 * MIB, 9
GUEST_S = 420  # for a boot and what runs in it, on a busy machine
FLAKY = "tests/guest/flaky_cases.py"
FLAKY_MODULES = "loop", "dm_mod", "dm_flakey", "ext4", "crc32c_generic"


def fail(found, seed):
    """Runs on failing devices, in a guest of their own; a device that lies is the canary: the oracle must see it."""
    os.environ["QREP_SEED"] = str(seed)  # for the tests in there
    result = Guest(guest.cache()).pytest_result(FLAKY, "-v", "--tb=short", "--color=no", path=guest.PATH, modules=FLAKY_MODULES, cpus=1, memory="3G", seconds=GUEST_S)
    summary = re.search(r"=+ (?:(\d+) failed, )?(?:(\d+) passed)?.* in [^=]*=+\s*$", result.output, re.MULTILINE)
    passed = int(summary[2] or 0) if summary else 0
    found.also["cases of failing devices"] = passed
    if result.code != 0:
        found.failures.append(f"seed {seed}, {FLAKY} in the guest: exit {result.code}: {result.output[-3000:]}")
    found.canaries = found.canaries[0] + (result.code == 0), found.canaries[1] + 1


def replay(found, recording, scratch, seed, count, clock):
    with Replayer(recording, scratch, seed) as replayer:
        missed = [seed_it.__name__ for seed_it in CANARIES if not caught(replayer, seed_it)]
        found.failures += [f"canary {name} was not reported" for name in missed]
        found.canaries = found.canaries[0] + len(CANARIES) - len(missed), found.canaries[1] + len(CANARIES)
        boundaries = len(recording.boundaries())
        for point in points(recording, seed, count):
            if clock.over():
                break
            try:
                replayer.check(point)
            except Exception as err:  # whatever it is, it is this point's
                found.failures.append(f"seed {seed}, {point}, of a recording that python -m replay.guest makes anew: {type(err).__name__}: {err}"[:500])
            found.count += 1
        found.note = (
            f"{boundaries} flush and FUA boundaries, {replayer.rolled_back} attempts taken back, "
            f"{replayer.checked} with their sync points read, {replayer.finished} with another run"
        )


def run(seed, count, clock):
    """count: points that are replayed at least, if the clock allows: just before and after every boundary, and as many moments at random as are left."""
    found = outcome.Outcome()
    with tempfile.TemporaryDirectory(prefix="qrep-test-", dir="/dev/shm") as directory:
        scratch = Path(directory)
        try:
            recording = guest.record(scratch, seed, SIZE, GENERATIONS, seconds=GUEST_S)
        except (Unavailable, AssertionError, ValueError, OSError, subprocess.SubprocessError) as err:
            found.failures.append(f"nothing was recorded in the guest: {type(err).__name__}: {err}"[:4000])
            return found
        fail(found, seed)
        replay(found, recording, scratch / "replay", seed, count, clock)
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=600, seconds=460))
