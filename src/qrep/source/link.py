"""The control connection of a run: one Channel after another, each listened to by a thread; and how long a run tries again."""

import threading
import time

from qrep.errors import ProtocolError, TimedOut
from qrep.protocol import messages as say
from qrep.protocol.transport import Disconnected

PING_S = 10.0
SILENCE_S = 600.0  # a target that puts much back or reads everything afresh says nothing for a while
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.2, 5.0


class Link:
    """dial(): a fresh Channel to the target, raises Unreachable. events: a queue that gets (kind, channel, what) of the present channel:
    ("message", channel, message), ("gone", channel, None), ("nonsense", channel, ProtocolError).
    """

    def __init__(self, dial, events):
        self._dial, self._events = dial, events
        self.channel = None

    def open(self):
        """Dial, and listen. Raises what dial() raises."""
        self.channel = self._dial()
        threading.Thread(target=self._listen, args=(self.channel,), name="source-control", daemon=True).start()

    def send(self, message):
        """Raises Disconnected."""
        self.channel.send(message)

    def hang_up(self):
        channel, self.channel = self.channel, None
        if channel is not None:
            channel.close()

    def _listen(self, channel):
        heard = pinged = time.monotonic()
        while True:
            try:
                message = channel.receive(1.0)
            except TimedOut:
                now = time.monotonic()
                try:
                    if now - heard > SILENCE_S:
                        raise Disconnected("the target said nothing for too long")
                    if now - pinged > PING_S:
                        channel.send(say.Ping())
                        pinged = now
                except Disconnected:
                    channel.close()
                    self._events.put(("gone", channel, None))
                    return
                continue
            except Disconnected:
                self._events.put(("gone", channel, None))
                return
            except ProtocolError as err:
                self._events.put(("nonsense", channel, err))
                return
            heard = time.monotonic()
            self._events.put(("message", channel, message))


class Patience:
    """How long, and how often, an interrupted run tries again: for timeout_s since it last moved on, at growing intervals."""

    def __init__(self, timeout_s):
        self.timeout_s = timeout_s
        self._reached = (0, -1)
        self._renew()

    def _renew(self):
        self._until, self.backoff_s = time.monotonic() + self.timeout_s, BACKOFF_FIRST_S

    def interrupted(self, attempt, granules_done):
        """How many seconds to wait before the next try, None: it is over. The same attempt has moved on: it may take its time again."""
        if attempt == self._reached[0] and granules_done > self._reached[1]:
            self._renew()
        self._reached = attempt, granules_done
        wait_s = self.backoff_s
        if time.monotonic() + wait_s > self._until:
            return None
        self.backoff_s = min(2 * wait_s, BACKOFF_MAX_S)
        return wait_s
