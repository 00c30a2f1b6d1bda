"""The control connection of a run: one Channel after another, each listened to by a thread; and how long a run tries again."""

import logging
import random
import threading
import time

from qrep.errors import NotFound, ProtocolError, QrepError, Refused, TimedOut
from qrep.protocol import messages as say
from qrep.protocol.transport import Disconnected

log = logging.getLogger("qrep.source")
BEAT_S = 1.0  # both ends say that they are there so often
SILENCE_S = 5.0  # without a byte of the target: whatever it does, its heart beats from a thread that waits for nothing
TICK_S = 0.25
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.2, 5.0
JITTER = 0.2  # of a wait: many runs that lost one peer do not come back in step
NO_BEAT = say.Beat(busy="", received=0, written=0, undo=0)


class Link:
    """dial(): a fresh Channel to the target, raises Unreachable. events: a queue that gets (kind, channel, what) of the present channel:
    ("message", channel, message), ("gone", channel, why), ("nonsense", channel, QrepError). Heartbeats are not among the messages. Its last
    word is one of the other two, whatever the thread that listens died of.
    """

    def __init__(self, dial, events):
        self._dial, self._events = dial, events
        self.channel = None
        self.beat = NO_BEAT  # the last one
        self.was_open = False  # since open() was called the last time

    def open(self):
        """Dial, and listen. Raises what dial() raises."""
        self.was_open = False
        self.channel = self._dial()
        self.beat, self.was_open = NO_BEAT, True
        threading.Thread(target=self._listen, args=(self.channel,), name="source-control", daemon=True).start()

    def send(self, message):
        """Raises Disconnected."""
        self.channel.send(message)

    def hang_up(self):
        channel, self.channel = self.channel, None
        if channel is not None:
            channel.close()

    def _listen(self, channel):
        try:
            self._hear(channel)
        except Disconnected as err:
            channel.close()
            self._events.put(("gone", channel, err.message))
        except QrepError as err:
            self._events.put(("nonsense", channel, err))
        except Exception as err:  # a bug of ours: the run would wait for ever for what nobody hears
            log.exception("the thread that listens to the target died")
            self._events.put(("nonsense", channel, QrepError(f"internal error while listening to the target: {err!r}", code="internal")))

    def _hear(self, channel):
        due = None  # before State nothing but Hello may be said
        while True:
            now = time.monotonic()
            # A target that is busy does not read: what was said to it meanwhile would only pile up.
            if due is not None and now >= due and not self.beat.busy:
                channel.send(say.Ping())
                due = now + BEAT_S
            try:
                message = channel.receive(TICK_S)
            except TimedOut:
                if time.monotonic() - channel.heard > SILENCE_S:
                    raise Disconnected(f"nothing was heard from the target for {SILENCE_S:g} s") from None
                continue
            if isinstance(message, say.Beat):
                self.beat = message
            elif not isinstance(message, say.Pong):
                if isinstance(message, (say.State, say.Offered)):
                    due = time.monotonic() + BEAT_S
                self._events.put(("message", channel, message))


def expect(events, *answers):
    """The next message of Link's `events` that is one of `answers`. Raises Disconnected, and what an Error or a Nak stands for that is none of them."""
    kind, _channel, message = events.get()
    if kind == "gone":
        raise Disconnected(message)
    if kind == "nonsense":
        raise message
    if isinstance(message, answers):
        return message
    if isinstance(message, say.Error):
        error = NotFound if message.code == "no-such-volume" else Refused
        raise error(message.message, hint=message.hint, code=message.code)
    if isinstance(message, say.Nak):
        raise QrepError(f"the target refused: {message.message}", code=message.code)
    raise ProtocolError(f"the target said {type(message).__struct_config__.tag}, which was not asked for")


class Patience:
    """How long, and how often, an interrupted run tries again: for timeout_s without a connection since it last moved on, at growing
    intervals."""

    def __init__(self, timeout_s, spread=random.uniform):
        self.timeout_s, self._spread = timeout_s, spread
        self._reached = (0, -1)
        self._renew()

    def _renew(self):
        self._until, self.backoff_s = time.monotonic() + self.timeout_s, BACKOFF_FIRST_S

    def interrupted(self, attempt, granules_done, connected_s):
        """How many seconds to wait before the next try, None: it is over. The same attempt has moved on: it may take its time again.
        connected_s: how long the connection was there; that is no waiting for it."""
        if attempt == self._reached[0] and granules_done > self._reached[1]:
            self._renew()
        else:
            self._until += connected_s
        self._reached = attempt, granules_done
        wait_s = self.backoff_s * self._spread(1 - JITTER, 1 + JITTER)
        if time.monotonic() + wait_s > self._until:
            return None
        self.backoff_s = min(2 * self.backoff_s, BACKOFF_MAX_S)
        return wait_s
