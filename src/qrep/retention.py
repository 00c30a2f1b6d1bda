"""Which sync points of a target volume are kept: by count, by an age grid, and by a floor that only the target's administrator sets.

Pure. Ages are counted from the newest sync point and not from now, so that a replica that gets no runs loses nothing. They are differences of a time
that a wrong clock does not move (target/ages.py). Where the time of day of a commit is in doubt a grid has no say: the sync point takes none of its
periods, and stays for as long as the grid reaches back at all.
"""

import itertools
import re
from dataclasses import dataclass
from typing import NamedTuple

from qrep import units
from qrep.errors import UsageError

POINTS_MAX = 256  # earlier sync points of one volume
GRID_RULES_MAX = 8
RULE = re.compile(r"([0-9]{1,3})x([0-9A-Za-z]{1,40})", re.ASCII)
PERIOD_MIN_S = 60
WEEK_S = 7 * 86400
MONDAY_S = 3 * 86400  # the epoch was a Thursday


class Rule(NamedTuple):
    """Keep the newest sync point of each of the `periods` newest periods of `seconds` that have one."""

    periods: int
    seconds: float


class Point(NamedTuple):
    """id: of a generation. time_ns: the time of day of its commit at the target. kept_ns: the volume's own time then. sure: whether time_ns is."""

    id: bytes
    time_ns: int
    kept_ns: int
    sure: bool = True


@dataclass(frozen=True)
class Policy:
    """count, grid: what the source of the pair asks for. floor_points, floor_seconds: what the target keeps whatever a source says."""

    count: int = 7
    grid: tuple = ()
    floor_points: int = 0
    floor_seconds: float = 0.0


class Plan(NamedTuple):
    """keep: ids, newest first. cut: ids older than all of those, newest first. merge: ids between them, newest first."""

    keep: tuple
    cut: tuple
    merge: tuple


def parse_grid(text):
    """Rules of `24x1h 7x1d 4x1w`; "" has none. Raises UsageError."""
    rules = []
    for word in text.split():
        match = RULE.fullmatch(word)
        if match is None:
            raise UsageError(f"{word!r} is no rule of a grid", hint='write it like "24x1h 7x1d 4x1w": so many of the newest hours, days, weeks')
        seconds = _seconds(match[2])
        if not 1 <= int(match[1]) <= POINTS_MAX or seconds < PERIOD_MIN_S:
            raise UsageError(f"{word!r}: from 1 to {POINTS_MAX} periods of a minute or more", hint='write it like "24x1h 7x1d 4x1w"')
        rules.append(Rule(int(match[1]), seconds))
    if len(rules) > GRID_RULES_MAX:
        raise UsageError(f"a grid of {len(rules)} rules", hint=f"at most {GRID_RULES_MAX}")
    return tuple(rules)


def _seconds(text):
    weeks = re.fullmatch(r"([0-9]{1,4})w", text, re.ASCII)
    return int(weeks[1]) * WEEK_S if weeks else units.parse_duration(text)


def never_rising(values):
    """Of times, newest first: one that lies after that of a newer point counts as the newer one's."""
    return list(itertools.accumulate(values, min))


def plan(points, policy, pinned=frozenset()):
    """What becomes of points: Points, newest first, the first being what the device holds, which always stays. pinned: ids in use."""
    if not points:
        return Plan((), (), ())
    stamps, kept = never_rising(point.time_ns for point in points), never_rising(point.kept_ns for point in points)
    ages = [kept[0] - then for then in kept]
    unsure = {i for i, point in enumerate(points) if not point.sure}
    floor = {i for i in range(1, len(points)) if i <= policy.floor_points or ages[i] < policy.floor_seconds * 1e9}
    fixed = {0} | {i for i, point in enumerate(points) if point.id in pinned}
    wanted = fixed | floor | set(range(1, min(policy.count, len(points) - 1) + 1))
    for rule in policy.grid:
        wanted |= _newest_of_periods(stamps, unsure, rule)
        wanted |= {i for i in unsure if ages[i] < rule.periods * rule.seconds * 1e9}
    wanted = _thinned(wanted, fixed, floor, unsure, policy.floor_points, stamps)
    last = max(wanted)
    return Plan(
        tuple(points[i].id for i in sorted(wanted)),
        tuple(point.id for point in points[last + 1 :]),
        tuple(points[i].id for i in range(1, last) if i not in wanted),
    )


def _newest_of_periods(stamps, unsure, rule):
    found, seen = set(), set()
    length = int(rule.seconds * 1e9)
    shift = 0 if rule.seconds % WEEK_S else MONDAY_S * 10**9  # weeks begin on Monday; periods are those of UTC
    for i, stamp in enumerate(stamps):
        if i in unsure:
            continue
        period = (stamp + shift) // length
        if period not in seen:
            if len(seen) == rule.periods:
                break
            seen.add(period)
            found.add(i)
    return found


def _thinned(wanted, fixed, floor, unsure, floor_points, stamps):
    """At most POINTS_MAX besides the present one. Those that lie closest together in time go first, and of those that the floor protects only the
    ones whose neighbours are closest: many sync points made in a short time never push an old one out. Half of them may be such of which nobody
    knows how close they lie: others go before those."""
    kept = sorted(wanted)
    newest = {i for i in floor if i <= floor_points}
    while len(kept) > POINTS_MAX + 1:
        spared = unsure if sum(i in unsure for i in kept) <= POINTS_MAX // 2 else set()
        for stay, oldest_too in ((floor | spared, True), (floor, True), (newest | spared, False), (newest, False), (set(), True)):
            # The last: more are pinned or counted than may be, and the oldest of them goes that is not in use.
            free = [n for n in range(1, len(kept) - (not oldest_too)) if kept[n] not in fixed and kept[n] not in stay]
            if free:
                break
        else:
            break
        del kept[min(free, key=lambda n: (_gap(kept, n, stamps), -n))]
    return set(kept)


def _gap(kept, n, stamps):
    """Time between the neighbours of a point; the oldest has only one."""
    older = kept[n + 1] if n + 1 < len(kept) else kept[n]
    return stamps[kept[n - 1]] - stamps[older]
