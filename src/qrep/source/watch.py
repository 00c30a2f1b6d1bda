"""Watches the data connections of a run: tells a dead one, and a run in which nothing moves any more, from one that is slow.

What is seen is TCP's own account of each connection where it has one, and the counters of both ends. docs/FAILURES.md has the table.
"""

DEAD_S = 5.0  # data is on its way, and TCP has had no acknowledgement of anything for so long
STALLED_S = 30.0  # nothing was read, hashed, sent, received, written or logged by either end, and the target is not busy
PROBES = 2  # of a closed window, unanswered: it was asked twice
_MOVES = ("read", "hashed", "granules_done", "sent")


class Watch:
    """Of one session's lanes. clock values are seconds of a monotonic clock."""

    def __init__(self, now):
        self._waiting = {}  # connection index -> since when something of it was on its way at every look
        self._moved, self._moved_at = None, now

    def look(self, now, connections, counters, beat):
        """What is wrong, in words, or None. connections: [(index, transport.TcpView or None)]. counters: of the source's lanes.
        beat: the target's last messages.Beat."""
        for index, view in connections:
            if view is not None and self._is_dead(index, view, now):
                return f"data connection {index} is dead: no acknowledgement for {DEAD_S:g} s"
        for index in set(self._waiting) - {index for index, _view in connections}:
            del self._waiting[index]
        moved = (*(counters.get(name, 0) for name in _MOVES), beat.received, beat.written, beat.undo)
        if moved != self._moved or beat.busy:
            self._moved, self._moved_at = moved, now
        if now - self._moved_at >= STALLED_S:
            return f"nothing moved on the data connections for {STALLED_S:g} s, though the target answers"
        return None

    def _is_dead(self, index, view, now):
        if view.unacked == 0 and view.probes < PROBES:
            self._waiting.pop(index, None)
            return False
        return min(view.silent_s, now - self._waiting.setdefault(index, now)) >= DEAD_S
