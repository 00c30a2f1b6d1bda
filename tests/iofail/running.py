"""The process that sweeps: started with interpose.c loaded and the ring of one thread, told what to do by its arguments, prints JSON.

    with Sweeper(seed) as sweeper:                 # compiles, and makes its directory on tmpfs
        sweeper.run("--all", seconds=240)          # what summary() says
    cd tests && python -m iofail.running --seed 7 "second device.write 3 torn"     # one point again
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
FAILURES_MAX = 20
BEYOND = 3  # calls more than were counted that are tried: what two threads do may differ by one


def start(arguments, *, timeout, powered=False):
    """Run this module as a process of its own with the library loaded. Returns (what it printed as JSON, exit code, stderr). powered: without the library,
    on block devices of tests/power."""
    from iofail.injector import build

    with tempfile.TemporaryDirectory(prefix="qrep-test-", dir="/dev/shm") as scratch:
        place = Path(scratch, "replica")
        place.mkdir()
        environment = {
            **os.environ, "QREP_RING": "uring", "QREP_CRASH": "", "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "IOFAIL_DIRECTORY": str(place),
            "IOFAIL_POWERED": scratch,
        }  # fmt: skip
        if not powered:
            library = str(build(scratch))
            environment |= {"LD_PRELOAD": library, "QREP_RING": "threads1", "IOFAIL_LIBRARY": library, "IOFAIL_POWERED": ""}
        result = subprocess.run(
            [sys.executable, "-m", "iofail.running", *arguments], env=environment, cwd=TESTS, capture_output=True, text=True, timeout=timeout, check=False
        )
    lines = result.stdout.rstrip().splitlines()
    return (json.loads(lines[-1]) if lines else None), result.returncode, result.stderr


def all_points(sweep, acts):
    """Every way of every call of every act, act by act; more calls than there were without a failure are found out by trying."""
    from iofail.injector import OF_OP, Point

    for act in acts:
        for (kind, op), calls in sorted(sweep.calls(act).items()):
            for way in OF_OP[op]:
                for nth in range(1, calls + BEYOND + 1):
                    point = Point(act, kind, op, nth, way)
                    if (yield point) is False:
                        break


def canaries(sweep):
    """Each defect in the fork, at its point: reported with it, and nothing without it."""
    from iofail.canaries import CANARIES
    from iofail.injector import Point

    missed, told = [], {}
    for name, (defect, text) in CANARIES.items():
        sweep.defect = defect
        attempt = sweep.attempt(Point.of(text))
        sweep.defect = None
        clean = sweep.attempt(Point.of(text)) if defect is not None else None
        if not attempt.problem or not attempt.hit or (clean is not None and clean.problem):
            missed.append(f"{name} ({text}): {attempt.ended} {attempt.told}; without it {clean and clean.problem}")
        told[name] = attempt.problem
    return {"caught": len(CANARIES) - len(missed), "seeded": len(CANARIES), "missed": missed, "told": told}


def play(sweep, points, tally, until, one_in):
    """Whether all were tried before `until`, and not too many failed."""
    answer = None
    while True:
        try:
            point = points.send(answer)
        except StopIteration:
            return True
        answer = None
        if zlib.crc32(str(point).encode()) % one_in:
            continue
        attempt = sweep.attempt(point)
        tally.take(attempt)
        answer = attempt.hit
        if time.monotonic() > until or len(tally.failures) >= FAILURES_MAX:
            return False


class Tally:
    def __init__(self):
        self.points = self.voids = 0
        self.longest = 0.0
        self.kinds, self.ways, self.ends, self.failures = {}, {}, {}, []

    def take(self, attempt):
        if not attempt.hit:
            return
        if attempt.void:
            self.voids += 1
            return
        self.points += 1
        point = attempt.point
        for table, key in ((self.kinds, f"{point.kind}.{point.op}"), (self.ways, point.way), (self.ends, attempt.ended or "wrong")):
            table[key] = table.get(key, 0) + 1
        self.longest = max(self.longest, attempt.seconds)
        if attempt.problem:
            self.failures.append(f"{point}: {attempt.problem}"[:1500])


def main():
    from iofail.injector import Injector, Point
    from iofail.replica import TREE_OF, Replica
    from iofail.sweep import Sweep

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--acts", default=",".join(TREE_OF))
    parser.add_argument("--one-in", type=int, default=1)
    parser.add_argument("--canaries", action="store_true")
    parser.add_argument("--counts", action="store_true")
    parser.add_argument("points", nargs="*")
    arguments = parser.parse_args()
    began = time.monotonic()
    directory, scratch = os.environ["IOFAIL_DIRECTORY"], os.environ["IOFAIL_POWERED"]
    acts, tally = arguments.acts.split(","), Tally()
    with contextlib.ExitStack() as stack:
        if scratch:
            from iofail.powered import Powered
            from power.device import Unavailable

            try:
                sweep = stack.enter_context(Powered(directory, scratch, arguments.seed))
            except Unavailable as err:
                print(json.dumps({"unavailable": str(err)}))
                return 0
            points = sweep.points()
        else:
            sweep = Sweep(Replica(directory, arguments.seed), Injector(os.environ["IOFAIL_LIBRARY"], directory))
            points = all_points(sweep, acts)
        if arguments.counts:
            print(json.dumps({act: {".".join(key): count for key, count in sweep.calls(act).items()} for act in acts}))
            return 0
        if arguments.canaries:
            print(json.dumps(canaries(sweep)))
            return 0
        for text in arguments.points:
            attempt = sweep.attempt(Point.of(text))
            tally.take(attempt)
            reached = "hit" if attempt.hit else "not reached"
            print(text, reached, attempt.ended, attempt.told, attempt.problem, f"{attempt.seconds:.3f} s", file=sys.stderr)
        chosen = not arguments.points or arguments.one_in > 1
        complete = not chosen or play(sweep, points, tally, began + arguments.seconds, arguments.one_in)
    usage = os.times()
    print(json.dumps({
        "points": tally.points, "voids": tally.voids, "longest": round(tally.longest, 1), "acts": acts, "states": sweep.states, "complete": complete, "failures": tally.failures,
        "kinds": tally.kinds, "ways": tally.ways, "ends": tally.ends, "seconds": round(time.monotonic() - began, 1),
        "cpu": round(usage.user + usage.system + usage.children_user + usage.children_system, 1),
    }))  # fmt: skip
    return 1 if tally.failures else 0


if __name__ == "__main__":
    if "IOFAIL_DIRECTORY" in os.environ:
        sys.exit(main())
    powered = "--powered" in sys.argv
    found, code, errors = start([each for each in sys.argv[1:] if each != "--powered"], timeout=1200, powered=powered)
    print(errors, file=sys.stderr, end="")
    print(json.dumps(found, indent=1))
    sys.exit(code)
