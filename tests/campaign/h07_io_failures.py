"""H7: every call of every kind fails once, at its n-th time, or for good: a whole small replica, act by act (tests/iofail). Its canaries first.

A point is repeated with the line that names it: cd tests && python -m iofail.running --seed N "second device.write 3 torn"
"""

import sys

from campaign import outcome
from iofail.running import start

GRACE_S = 120.0


def run(seed, count, clock):
    found = outcome.Outcome()
    told, _code, errors = start(["--seed", str(seed), "--canaries"], timeout=clock.seconds + GRACE_S)
    if told is None:
        found.failures.append(f"the canaries had no outcome: {errors[-1500:]}")
        return found
    found.canaries = told["caught"], told["seeded"]
    found.failures += [f"not noticed: {name}" for name in told["missed"]]
    told, _code, errors = start(["--seed", str(seed), "--seconds", f"{max(1.0, clock.left()):.0f}"], timeout=clock.seconds + GRACE_S)
    if told is None:
        found.failures.append(f"no outcome: {errors[-1500:]}")
        return found
    found.count, found.also = told["points"], {"acts": len(told["acts"])}
    found.failures += [f"seed {seed}: {failure}" for failure in told["failures"]]
    if not told["complete"]:
        found.failures.append(f"not all calls were tried in {told['seconds']} s")
    _powered(found, seed, clock)
    kinds = ", ".join(f"{kind} {number}" for kind, number in sorted(told["kinds"].items()))
    found.note = f"{told['states'][0]} states left, {told['states'][1]} gone on from; longest {told['longest']} s; {kinds}"
    return found


def _powered(found, seed, clock):
    """The same with io_uring, on block devices that fail requests."""
    told, _code, errors = start(["--seed", str(seed), "--seconds", f"{max(1.0, clock.left()):.0f}"], timeout=clock.seconds + GRACE_S, powered=True)
    if told is None or "unavailable" in told:
        found.failures.append(f"no outcome with io_uring: {told or errors[-1500:]}")
        return
    found.also["points with io_uring"] = told["points"]
    found.count += told["points"]
    found.failures += [f"seed {seed}, with io_uring (--powered): {failure}" for failure in told["failures"]]
    if not told["complete"]:
        found.failures.append("not all points with io_uring were tried")


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=8_000, seconds=420))
