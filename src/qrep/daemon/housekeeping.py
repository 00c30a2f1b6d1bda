"""What the agent does every now and then, one thing after another in one thread. None of it may wait for a peer or a device."""

import logging
import threading
import time

from qrep.errors import QrepError

log = logging.getLogger("qrep.agent")
TICK_S = 0.5
END_S = 1.0  # seconds that what is being done gets at the end


class Housekeeping:
    def __init__(self):
        self._chores = []  # [period_s, action, when it is due]
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)
        self.ticked = time.monotonic()  # when it last went round: what a watchdog looks at

    def every(self, period_s, action):
        """Call action() about every period_s seconds, first at once. Before start()."""
        self._chores.append([period_s, action, 0.0])

    def start(self):
        self._thread.start()

    def stop(self):
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(END_S)

    def _run(self):
        while not self._ending.wait(TICK_S):
            self.ticked = time.monotonic()
            for chore in self._chores:
                period_s, action, due = chore
                if self.ticked < due or self._ending.is_set():
                    continue
                chore[2] = self.ticked + period_s
                try:
                    action()
                except (QrepError, OSError) as err:  # a disk that is full now may have room the next time
                    log.warning("housekeeping: %s", err)
                except Exception:  # a bug of ours, in one of them: the others go on
                    log.exception("housekeeping: internal error")
