"""How much a run may read while others use the same device: a controller without clock or I/O, told 20 times a second what was seen.

It listens before it reads: for a moment nothing of ours is under way, and whatever completes at the device is somebody else's. While nobody is
there a run reads as fast as it goes, and listens again every ALONE_S, or as soon as the device does much more than our reads explain. Else it shares: small reads, one after the other, so many that one of them is in flight for a
certain share of the time. The share is what adapts; the rate follows from it and from how long a read takes now, so that a device that gets slower is read
less at once:

    rate = share * piece / latency        never below FLOOR: a run comes to its end

The share grows slowly, and is cut when the others complete less while we read than while we listen, or when our own reads take much longer than
they did (bench/RESULTS.md, nice; docs/ARCHITECTURE.md).
"""

from dataclasses import dataclass

ALONE_S, ALONE_LISTEN_S = 0.3, 0.004  # reading, and listening in between: under 3 % in all
SHARED_S, SHARED_LISTEN_S = 0.4, 0.1  # the same while somebody is there: long enough to count by
FIRST_LISTEN_S = 0.008
LOOK_S, LISTEN_LOOK_S = 0.05, 0.002  # between two looks
DRAIN_S = 2.0  # a device that takes longer for what is in flight is listened to all the same
SUSPICIOUS, SKEW_IOS, SPLIT_READS = 1.25, 64, 16  # so many times what our reads explain, and what may just be under way; reads to learn that from
QUIET_CYCLES, QUIET_IOS = 2, 3  # so many rounds with no more than so many requests of others: they have gone

SHARE_FIRST, SHARE_MIN, SHARE_MAX = 0.05, 0.02, 0.15
SHARE_MAX_LIGHT, LIGHT = 0.4, 0.05  # the most where others have less than LIGHT requests in flight on average
SHARE_STEP, SHARE_CUT = 0.01, 0.7
LOSS_MOST, LOSS_WELL = 0.06, 0.03  # of what the others complete
SLOWER_MOST, SLOWER_WELL = 2.0, 1.5  # a read of ours, against the least of late
LEAST_OF = 40  # rounds that the least is taken of
SMOOTH = 0.3  # of a round in the average

PIECE, PIECE_SLOW = 64 << 10, 256 << 10  # of a device that takes SLOW_S for a piece it is the seek that counts, not the bytes
SLOW_S, FAST_S = 0.004, 0.002
FLOOR = 1 << 20  # bytes per second
RATE_FIRST = 8 << 20  # until it is known how long a read takes


@dataclass(frozen=True)
class Sample:
    """What was counted so far, all but now and in_flight since some beginning.

    now: seconds. ios: requests that the source's device has completed; own_ios: those of ours among them. busy_s: how long all of these took, added up.
    below: requests that are not ours, as far as can be told while nothing of ours is under way, on what the device lies on. in_flight: our
    reads. timed, timed_s: our reads that were timed, and how long they took.
    """

    now: float
    ios: int
    own_ios: int
    busy_s: float
    below: int
    in_flight: int
    timed: int
    timed_s: float


@dataclass(frozen=True)
class Order:
    """rate: bytes per second, 0: no limit. piece: bytes of a read, 0: as large as it goes. paused: no read at all. wait_s: look again after so long."""

    rate: int
    piece: int
    paused: bool
    wait_s: float


class Nice:
    """look(sample) -> Order, for ever. sharing, share, others_ios_per_s, latency_s: for people; the last two may be None."""

    def __init__(self):
        self.sharing = False
        self.share = SHARE_FIRST
        self.latency_s = self.others_ios_per_s = None
        self._piece = PIECE
        self._phase, self._began, self._length = "drain", None, FIRST_LISTEN_S
        self._mark = self._last = self._looked = None
        self._split = None  # requests that the kernel makes of a read, while we are alone
        self._went = 0.0  # requests of others a second while we read, in the last round
        self._went_ios = None
        self._loss, self._in_flight = 0.0, None
        self._latencies = []
        self._quiet = 0

    def look(self, sample):
        if self._began is None:
            self._begin("drain", sample)
        self._time_reads(sample)
        elapsed = sample.now - self._began
        if self._phase == "drain" and (sample.in_flight == 0 or elapsed >= DRAIN_S):
            self._begin("listen", sample)
        elif self._phase == "listen" and elapsed >= self._length:
            self._heard(sample, elapsed)
            self._begin("read", sample)
        elif self._phase == "read" and (elapsed >= (SHARED_S if self.sharing else ALONE_S) or self._is_suspicious(sample)):
            self._read(sample, elapsed)
            self._length = SHARED_LISTEN_S if self.sharing else ALONE_LISTEN_S
            self._begin("drain", sample)
        return self._order(sample)

    def _begin(self, phase, sample):
        self._phase, self._began, self._mark, self._looked = phase, sample.now, sample, sample

    def _order(self, sample):
        if self._phase != "read":
            left = self._length - (sample.now - self._began) if self._phase == "listen" else 0
            return Order(self.rate, self._piece if self.sharing else 0, True, max(LISTEN_LOOK_S / 2, left))
        left = (SHARED_S if self.sharing else ALONE_S) - (sample.now - self._began)
        return Order(self.rate, self._piece if self.sharing else 0, False, max(LISTEN_LOOK_S, min(LOOK_S, left)))

    @property
    def rate(self):
        """Bytes per second that may be read, 0: no limit."""
        if not self.sharing:
            return 0
        if self.latency_s is None:
            return RATE_FIRST
        return max(FLOOR, int(self.share * self._piece / self.latency_s))

    # ---- how long our reads take ----

    def _time_reads(self, sample):
        before, self._last = self._last, sample
        if not self.sharing or before is None or sample.timed == before.timed:
            return
        latency = (sample.timed_s - before.timed_s) / (sample.timed - before.timed)
        self.latency_s = latency if self.latency_s is None else self.latency_s + SMOOTH * (latency - self.latency_s)

    def _resize(self):
        """The piece that suits the device."""
        piece = PIECE_SLOW if self.latency_s > SLOW_S else PIECE if self.latency_s < FAST_S else self._piece
        if piece != self._piece:
            self._piece, self._latencies = piece, []

    # ---- the others ----

    def _is_suspicious(self, sample):
        """While we are alone: whether more completed since the last look than what the kernel makes of our reads, which it splits."""
        before, self._looked = self._looked, sample
        if self.sharing or self._split is None or before is None:
            return False
        return sample.ios - before.ios > SUSPICIOUS * self._split * (sample.own_ios - before.own_ios) + SKEW_IOS

    def _read(self, sample, elapsed):
        """A stretch of reading has ended."""
        ios, own = sample.ios - self._mark.ios, sample.own_ios - self._mark.own_ios
        if not self.sharing:
            if own >= SPLIT_READS:
                self._split = min(ios / own, self._split or ios / own)
            return
        self._went_ios, self._went = max(0, ios - own), max(0, ios - own) / elapsed

    def _heard(self, sample, elapsed):
        """We have listened: what completed meanwhile is not ours."""
        ios = sample.ios - self._mark.ios
        others = max(ios, sample.below - self._mark.below)
        if not self.sharing:
            if others:
                self._share()
                self._note(sample, others, elapsed)
            return
        if others + min(self._went_ios or 0, QUIET_IOS + 1) <= QUIET_IOS:
            self._quiet += 1
            if self._quiet >= QUIET_CYCLES:
                self.sharing, self.others_ios_per_s = False, None
            return
        self._quiet = 0
        self._note(sample, others, elapsed)
        if self._went_ios is not None and ios:
            loss = 1 - self._went / (ios / elapsed)
            self._loss += SMOOTH * (max(-0.5, min(0.5, loss)) - self._loss)
        self._adapt()

    def _share(self):
        self.sharing, self.share, self._quiet = True, SHARE_FIRST, 0
        self.latency_s, self._latencies, self._piece = None, [], PIECE
        self._loss, self._in_flight, self._went_ios, self._last = 0.0, None, None, None

    def _note(self, sample, others, elapsed):
        self.others_ios_per_s = others / elapsed
        in_flight = (sample.busy_s - self._mark.busy_s) / elapsed
        self._in_flight = in_flight if self._in_flight is None else self._in_flight + SMOOTH * (in_flight - self._in_flight)

    def _adapt(self):
        if self.latency_s is None:
            return
        self._latencies = [*self._latencies[-LEAST_OF:], self.latency_s]
        slower = self.latency_s / min(self._latencies)
        if self._loss > LOSS_MOST or slower > SLOWER_MOST:
            self.share *= SHARE_CUT
        elif self._loss < LOSS_WELL and slower < SLOWER_WELL:
            self.share += SHARE_STEP
        most = SHARE_MAX_LIGHT if self._in_flight is not None and self._in_flight < LIGHT else SHARE_MAX
        self.share = min(most, max(SHARE_MIN, self.share))
        self._resize()
