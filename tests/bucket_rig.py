"""Trees of buckets in virtual time: lanes that ask, wake late and send at a speed of their own; and what max-min fairness would give them."""

import heapq
from dataclasses import dataclass, field

from qrep._native.bucket import Bucket

S, MB = 10**9, 10**6
POLL_NS = 50_000_000  # what a lane sleeps at most (source_send.c)


@dataclass
class Lane:
    """speed: bytes/s that its connection takes. size: bytes asked for at once; None: as the bucket says. on: seconds from..to in which it has work."""

    speed: float
    size: int | None = None
    on: tuple = (0.0, float("inf"))


@dataclass
class Level:
    """A bucket and what is below it: Levels or Lanes. rate: bytes/s, 0: unlimited."""

    rate: int
    below: list = field(default_factory=list)


# ---- the reference: water is poured, nobody asks ----


def demand(level, at):
    if isinstance(level, Lane):
        return level.speed if level.on[0] <= at < level.on[1] else 0.0
    wanted = sum(demand(each, at) for each in level.below)
    return min(wanted, level.rate) if level.rate else wanted


def fair_shares(level, at, given=float("inf")):
    """{id(Lane): bytes/s} of max-min fairness on every level at a time."""
    if isinstance(level, Lane):
        return {id(level): min(given, demand(level, at))}
    left, shares = min(given, demand(level, at)), {}
    waiting = sorted(level.below, key=lambda each: demand(each, at))
    for index, each in enumerate(waiting):
        part = min(demand(each, at), left / (len(waiting) - index))
        shares |= fair_shares(each, at, part)
        left -= part
    return shares


# ---- the real buckets, in virtual time ----


class Rig:
    def __init__(self, tree, late_ns=lambda: 0):
        self.now, self.late_ns, self.taken, self._order = 0, late_ns, {}, 0
        self.buckets, self._heap, self.history = {}, [], []
        self._build(tree, None)

    def _build(self, level, parent):
        if isinstance(level, Lane):
            self.taken[id(level)] = 0
            self._at(int(level.on[0] * S), level, Bucket(0, parent=parent, now_ns=0))
            return
        bucket = self.buckets[id(level)] = Bucket(level.rate, parent=parent, now_ns=0)
        for each in level.below:
            self._build(each, bucket)

    def _at(self, when, lane, bucket):
        self._order += 1
        heapq.heappush(self._heap, (when, self._order, lane, bucket))

    def run(self, seconds):
        """Until the time is `seconds`."""
        while self._heap and self._heap[0][0] < seconds * S:
            self.now, _order, lane, bucket = heapq.heappop(self._heap)
            if self.now >= lane.on[1] * S:
                bucket.leave()
                continue
            size = lane.size or bucket.piece
            wait_ns = bucket.take(size, now_ns=self.now)
            if wait_ns == 0:
                self.taken[id(lane)] += size
                self.history.append((self.now, lane, size))
                bucket.ask(size, now_ns=self.now)
                self._at(self.now + int(size / lane.speed * S), lane, bucket)
            else:
                self._at(self.now + min(wait_ns, POLL_NS) + self.late_ns(), lane, bucket)
        self.now = int(seconds * S)


def sum_of(taken, level):
    return taken[id(level)] if isinstance(level, Lane) else sum(sum_of(taken, each) for each in level.below)


def most_in(history, window_s):
    """The most bytes within any `window_s` of a history of (ns, lane, bytes)."""
    first = total = most = 0
    for now, _lane, size in history:
        total += size
        while history[first][0] <= now - window_s * S:
            total -= history[first][2]
            first += 1
        most = max(most, total)
    return most
