"""Events that repeat: a thing that flaps is told some times in a period and counted from then on, so that it fills no disk.

Pure: the clock is given.
"""

from collections import OrderedDict

TOLD_MAX = 30  # of one code about one subject in PERIOD_S
PERIOD_S = 60.0
SUBJECTS_MAX = 4096  # remembered at once; whoever makes up names must not fill the memory either


class Repeats:
    """Says which events are told one by one. A subject is whatever a code is about: a job, a volume, a peer."""

    def __init__(self, told_max=TOLD_MAX, period_s=PERIOD_S):
        self._told_max, self._period_s = told_max, period_s
        self._windows = OrderedDict()  # (code, subject...) -> [begin, told, suppressed], by begin

    def admit(self, key, now):
        """Whether the event of `key` is told now. One that is not is in a later due()."""
        window = self._windows.get(key)
        if window is None or now - window[0] >= self._period_s:
            # One that ended with a count is due() first; until then it goes on, so that nothing is lost.
            if window is not None and window[2]:
                window[2] += 1
                return False
            self._windows.pop(key, None)
            self._windows[key] = [now, 1, 0]
            self._forget()
            return True
        if window[1] >= self._told_max:
            window[2] += 1
            return False
        window[1] += 1
        return True

    def due(self, now, everything=False):
        """[(key, how many were not told)] of the periods that have ended, or of all; they are forgotten with that."""
        ended = [key for key, window in self._windows.items() if everything or now - window[0] >= self._period_s]
        counts = [(key, self._windows.pop(key)[2]) for key in ended]
        return [(key, count) for key, count in counts if count]

    def _forget(self):
        """Those with nothing to tell go first."""
        if len(self._windows) <= SUBJECTS_MAX:
            return
        quiet = next((key for key, window in self._windows.items() if not window[2]), None)
        if quiet is not None:
            del self._windows[quiet]
        else:
            self._windows.popitem(last=False)
