"""Run in the guest: generations of a volume whose device, and whose undo store and records, lie each on a dm-log-writes of its own.

    python -m replay.record --seed N --size BYTES --generations N      (tests/guest_machine.py; drives: data, its log, state, its log, what to tell)

Marks "begin N" and "acked N" are in both logs and in the trace; generation N is images(...)[N].
"""

import argparse
import os
import random
import threading
import time
from pathlib import Path

from flow.harness import JOB, LEAF, VOLUME, Site

from qrep._native.bucket import Bucket
from qrep.copy import local_request
from qrep.errors import Interrupted

KIB = 1 << 10
FRAME = 32 * KIB
POINTS = 2
DATA, DATA_LOG, STATE, STATE_LOG, TOLD = (f"/dev/vd{letter}" for letter in "abcde")
TRACE = Path("/sys/kernel/tracing")
TRACE_KIB = 32 << 10


def granule_of(size):
    """16 granules, whatever the size."""
    return size // 16


def options(size):
    """Of the target volume, in the guest and wherever it is recovered."""
    return {"leaf_size": LEAF, "granule_size": granule_of(size), "sync_points": POINTS}


def leaf(chance):
    """Of two kinds: no packer makes the one smaller, and what is recorded for good is mostly of the other."""
    return (b"%016x %d\n" % (chance.getrandbits(64), chance.getrandbits(30)) * LEAF)[:LEAF]


def changed(image, chance, share):
    """The image with a share of its leaves rewritten, one granule zeroed and one filled."""
    data, leaves, granule = bytearray(image), len(image) // LEAF, granule_of(len(image))
    for number in chance.sample(range(leaves), max(1, int(leaves * share))):
        data[number * LEAF : (number + 1) * LEAF] = leaf(chance)
    zeroed, filled = chance.sample(range(len(image) // granule), 2)
    data[zeroed * granule : (zeroed + 1) * granule] = bytes(granule)
    data[filled * granule : (filled + 1) * granule] = b"".join(leaf(chance) for _ in range(granule // LEAF))
    return bytes(data)


class Plan:
    """What happens, by seed: steps [(what, generation that is begun)], and the image of each generation. The same in the guest and here.

    what: run; cut, a run that ends in its middle and is taken back when the volume is opened again; resumed, one that is stopped and goes on;
    back, a rollback to the sync point before the last.
    """

    SMALL = 7  # generations in which each of these happens

    def __init__(self, seed, size, generations):
        chance = random.Random(seed)
        self.size, self.images, self.steps = size, {0: bytes(size)}, []
        first = bytearray(size)
        for number in range(0, size // LEAF * 3 // 8):
            first[number * LEAF : (number + 1) * LEAF] = leaf(chance)
        self.images[1] = bytes(first)
        self.steps.append(("run", 1))
        wanted = ["run", "cut", "resumed", "run", "back", "run"]
        while len(self.images) <= generations:
            what, new = wanted[(len(self.steps) - 1) % len(wanted)], len(self.images)
            if what == "back":
                self.images[new] = self.images[new - 2]
                self.steps.append((what, new))
                continue
            self.images[new] = changed(self.images[new - 1], chance, chance.uniform(0.02, 0.12))
            if what == "cut":
                self.steps.append(("cut", new))  # and then it is done
                what = "run"
            self.steps.append((what, new))


def run(*command):
    if os.spawnvp(os.P_WAIT, command[0], command):
        raise SystemExit(f"{' '.join(command)} failed")


def put(path, text):
    Path(path).write_text(text)


class Recorder:
    """The two log-writes devices and the trace of both. note(text): a mark in all three."""

    def __init__(self):
        os.environ["DM_DISABLE_UDEV"] = "1"
        for name, below, log in (("data", DATA, DATA_LOG), ("state", STATE, STATE_LOG)):
            sectors = Path(f"/sys/block/{os.path.basename(below)}/size").read_text().strip()
            run("dmsetup", "create", name, "--table", f"0 {sectors} log-writes {below} {log}")
        numbers = [os.stat(f"/dev/mapper/{name}").st_rdev for name in ("data", "state")]
        self.devices = {f"{os.major(number)},{os.minor(number)}": name for number, name in zip(numbers, ("data", "state"), strict=True)}
        run("mount", "-t", "tracefs", "tracefs", str(TRACE))
        put(TRACE / "buffer_size_kb", str(TRACE_KIB))
        wanted = " || ".join(f"dev == {os.major(number) << 20 | os.minor(number)}" for number in numbers)
        for event in ("block_bio_queue", "block_bio_complete"):
            put(TRACE / "events" / "block" / event / "filter", wanted)
            put(TRACE / "events" / "block" / event / "enable", "1")
        self._marker = open(TRACE / "trace_marker", "w")

    def note(self, text):
        self._marker.write(text)
        self._marker.flush()
        for name in ("data", "state"):
            run("dmsetup", "message", name, "0", "mark", text.replace(" ", "-"))

    def close(self):
        """Take the devices down, so that their logs are whole; the trace as text, behind a line that names the devices."""
        put(TRACE / "tracing_on", "0")
        for name in ("data", "state"):
            run("dmsetup", "remove", name)
        names = " ".join(f"{name}={number}" for number, name in self.devices.items())
        return f"devices {names}\n" + (TRACE / "trace").read_text()


class Ends(Site):
    """A site whose source keeps its state elsewhere: only the target's is on the device that is recorded."""

    def make_run_request(self, **options):
        shape = {name: self.volume_options[name] for name in ("leaf_size", "granule_size")}
        return local_request(self.source, "/dev/shm", job_id=JOB, volume_id=VOLUME, **{**shape, "frame_limit": FRAME, **options})

    def stopped(self, rate):
        """A run that is stopped when the target has written something; at this rate it would go on for seconds."""
        self.local._bucket = Bucket(rate)
        attempt = self.make_run(connections=1)

        def stop():
            while not ((self.volume.status()["session"] or {}).get("written")):
                time.sleep(0.005)
            attempt.stop()

        threading.Thread(target=stop, daemon=True).start()
        try:
            attempt.run()
            raise SystemExit("a run that was to be stopped came to its end")
        except Interrupted:
            self.local._bucket = None


def main():
    parser = argparse.ArgumentParser()
    for name in ("seed", "size", "generations"):
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    plan = Plan(arguments.seed, arguments.size, arguments.generations)
    source, state = Path("/dev/shm/source"), Path("/dev/shm/state")
    state.mkdir()
    recorder = Recorder()
    run("mount", "-t", "ext4", "/dev/mapper/state", str(state))
    site = Ends(state, source, "/dev/mapper/data", **options(arguments.size))
    began = time.monotonic()
    for what, new in plan.steps:
        print(f"{time.monotonic() - began:.1f} s: {what} {new}", flush=True)
        source.write_bytes(plan.images[new])
        recorder.note(f"begin {new}")
        with site:
            if what == "back":
                site.volume.rollback(site.volume.sync_points()[1].id)
            elif what == "run":
                site.run()
            else:
                site.stopped(arguments.size // 128)
                if what == "resumed":
                    assert site.run().resumed
                else:
                    continue
        recorder.note(f"acked {new}")
    run("umount", str(state))
    told = recorder.close().encode()
    with open(TOLD, "r+b") as out:
        out.write(len(told).to_bytes(8, "little") + told)
        out.flush()
        os.fsync(out.fileno())


if __name__ == "__main__":
    main()
