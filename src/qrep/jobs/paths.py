"""Which of a job's paths is taken: fail-over, and the way back. Pure: events and times come in, decisions go out; no sockets, no clock.

A path is known by its index. One is preferred (a person chose it, at first the first); below it the lower index ranks higher. Times are
seconds of any monotonic clock. docs/FAILURES.md has the table of what is concluded from what is seen, and these numbers.
"""

from dataclasses import dataclass

UNKNOWN, UP, DOWN = "unknown", "up", "down"
HOLD_FIRST_S = 20.0  # a better path that is back must have been well for so long before it is taken again,
HOLD_MAX_S = 1280.0  # twice as long with each failure, and at most so long;
FORGIVEN_S = 3600.0  # once it has been well for so long its failures are forgotten


@dataclass
class Path:
    """What is known of one path. since: of the present state, None: nothing was ever heard. reason: why it is down."""

    state: str = UNKNOWN
    since: float | None = None
    reason: str = ""
    failures: int = 0

    def hold_s(self, first_s):
        """How long it must be well before it is returned to. Nothing to hold against a path that never failed."""
        return min(first_s * 2 ** min(self.failures - 1, 20), HOLD_MAX_S) if self.failures else 0.0


class Paths:
    """count: of paths, at least 1. preferred: an index. hold_first_s: as HOLD_FIRST_S.

    Each event returns what is to be told, a list of (code, index, text): path-down, path-up, path-switched (then index is the new one).
    """

    def __init__(self, count, preferred=0, hold_first_s=HOLD_FIRST_S):
        self.paths = [Path() for _ in range(count)]
        self.preferred = preferred if preferred < count else 0
        self.active = self.preferred  # the one that was taken last
        self.hold_first_s = hold_first_s
        self._lost = False  # what went over the active one was lost: that it answers a probe again is not enough
        self._why = ""  # the active one was left

    # ---- events ----

    def succeeded(self, index, now):
        """It was reached: by a probe, or because a run was connected over it."""
        path = self.paths[index]
        if path.state == UP:
            if now - path.since >= FORGIVEN_S:
                path.failures = 0
            return []
        told = [("path-up", index, "it answers again")] if path.state == DOWN else []
        path.state, path.since, path.reason = UP, now, ""
        return told

    def failed(self, index, now, reason):
        """It could not be reached, or what went over it was lost."""
        path = self.paths[index]
        self._lost = self._lost or index == self.active
        if path.state == DOWN:
            path.reason = reason
            return []
        if path.state == UP and now - path.since >= FORGIVEN_S:
            path.failures = 0
        path.state, path.since, path.reason = DOWN, now, reason
        path.failures += 1
        if index == self.active:
            self._why = reason
        return [("path-down", index, reason)]

    def use(self, index):
        """A person prefers this one from now on; what it did before is forgiven."""
        self.preferred = index
        self._lost = self._lost and index != self.active
        self.paths[index].failures = 0
        if index != self.active:
            self._why = "as it was asked for"

    def taken(self, index, now):
        """A run is connected over this path."""
        told = self.succeeded(index, now)
        if index != self.active:
            why = self._why if self._why else f"path {index + 1} ranks higher and has been well for a while"
            told.append(("path-switched", index, f"from path {self.active + 1} to path {index + 1}: {why}"))
        self.active, self._lost, self._why = index, False, ""
        return told

    # ---- decisions ----

    def order(self, now):
        """All indexes, in the order in which they are to be tried."""
        first = self.better(now)
        if first is None and not self._lost and self.paths[self.active].state != DOWN:
            first = self.active

        def key(index):
            return index != first, self.paths[index].state == DOWN, self._is_held(index, now), self._rank(index)

        return sorted(range(len(self.paths)), key=key)

    def better(self, now):
        """The path that is to be returned to from the active one, or None: it ranks higher and has been well for long enough."""
        for index in sorted(range(len(self.paths)), key=self._rank):
            if index == self.active:
                return None
            if self.paths[index].state == UP and not self._is_held(index, now):
                return index
        return None

    def _is_held(self, index, now):
        """Whether it has not been well for long enough."""
        path = self.paths[index]
        return path.state == UP and now - path.since < path.hold_s(self.hold_first_s)

    def current(self, now):
        """The path that is in use, or that a run would try first."""
        return self.order(now)[0]

    def hold_left_s(self, index, now):
        """How much longer a path must be well before it is returned to; None where it is not on its way back."""
        path = self.paths[index]
        if path.state != UP or index == self.active or self._rank(index) > self._rank(self.active):
            return None
        return max(0.0, path.since + path.hold_s(self.hold_first_s) - now)

    def _rank(self, index):
        return (index != self.preferred, index)
