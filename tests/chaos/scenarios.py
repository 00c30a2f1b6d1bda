"""Scenarios of bad networks, each a function of (seed, number): what is replicated, what is done to the network, when, and for how long."""

import dataclasses
import random

from chaos.network import EDITS, Fault

MIB = 1 << 20
SIZE = 6 * MIB
# How often each kind comes, in this order; 120 scenarios are all of them at least five times.
KINDS = (
    "cut", "rst", "refuse", "half-close", "stall", "hold", "duplicate", "flip", "truncate", "drop", "swap", "crumble", "slow", "delay", "storm", "replay",
    "link-down", "blackhole", "bucket", "flips",
)  # fmt: skip
CABLE = ("link-down", "blackhole", "bucket")  # what is done to the cable itself, not by the relay
LASTING = ("cut", "rst", "refuse", "stall", "hold", "link-down", "blackhole")  # a path that has one of them carries nothing until it is healed
HARMLESS = ("crumble", "slow", "delay", "bucket")  # nothing may be interrupted by them
# At which message (of the source's or the target's) it begins; "data": once so much of the volume is on its way.
MOMENTS = ("Hello", "State", "Begin", "Began", "data", "data", "data", "Prepare", "Prepared", "Commit", "Committed")
SAID_BY_TARGET = ("State", "Began", "Prepared", "Committed")


@dataclasses.dataclass(frozen=True)
class Scenario:
    """paths: 1 or 2. both: the fault is on all of them. moment: of MOMENTS; part: of the volume, with "data". seconds: until it is healed, if no path
    is left; else it lasts until the run goes over another one. patient: one run that waits; else short runs, one after another by schedule."""

    seed: int
    number: int
    kind: str
    paths: int
    both: bool
    plain: bool
    connections: int
    first: bool
    compress: bool
    moment: str
    part: float
    what: str
    direction: str
    seconds: float
    amount: float
    patient: bool
    rate: int

    def __str__(self):
        when = f"{self.part:.0%} of the data" if self.moment == "data" else f"the {self.moment}"
        where = "every path" if self.both or self.paths == 1 else "path 1 of 2"
        return (
            f"{self.number}: {self.kind} ({self.what}, {self.direction}, {self.amount:g}) on {where} from {when} on, for {self.seconds:.1f} s; {'first run' if self.first else 'changes'},"
            f" {'plain' if self.plain else 'TLS'}, {self.connections} connections{', packed' if self.compress else ''}, {self.rate / MIB:g} MiB/s"
            f"{'' if self.patient else ', short runs by schedule'} (seed {self.seed})"
        )

    @property
    def is_cable(self):
        return self.kind in CABLE

    @property
    def fault_paths(self):
        return tuple(range(1, self.paths + 1)) if self.both else (1,)

    def fault(self):
        """As the relay takes it; None: it is done to the cable."""
        if self.is_cable:
            return None
        kind = "flip" if self.kind == "flips" else self.kind
        times = 1000 if self.kind == "flips" else 1 + self.number % 4
        return Fault(kind, self.fault_paths, self.what, self.direction, self.amount, times)

    @property
    def moment_bytes(self):
        """How much of the data has gone at the moment "data": what travels is about 0.85 of a volume, 0.7 of that packed, and half of it if it changed."""
        return int(self.part * 0.8 * SIZE * (0.7 if self.compress else 1.0) * (1.0 if self.first else 0.4))

    @property
    def must_fail_over(self):
        """Whether the other path must be taken, in which time: seconds, None: it need not. 10 s from when nothing is heard any more of what is listened to;
        a relay that acknowledges what it swallows, in one direction only, is noticed by the target after 10 s of silence, by the source where only
        data is swallowed after agentmain.STALLED_S."""
        if self.kind not in LASTING or self.paths < 2 or self.both or self.moment in ("Committed",):
            return None
        if self.kind in ("stall", "hold") and (self.what != "all" or self.direction == "up"):
            return 40.0 if self.what == "data" else 20.0
        if self.kind in ("cut", "rst") and self.what != "all":
            return None  # new connections of that kind are ended, the path itself answers
        return 10.0


def draw(seed, number):
    rng = random.Random(f"{seed}-{number}")
    kind = KINDS[number % len(KINDS)]
    paths = rng.choice((1, 2, 2))
    what = rng.choice(("all", "all", "control", "data")) if kind in ("cut", "rst", "half-close", "stall", "hold", "delay", "slow") else "all"
    if kind in EDITS or kind in ("flips", "crumble"):
        what = rng.choice(("data", "data", "control", "all"))
    if kind == "replay":
        what = "data"
    direction = rng.choice(("both", "both", "up", "down")) if kind in (*EDITS, "flips", "half-close", "stall", "hold", "delay") else "both"
    if kind in EDITS and what == "data":
        direction = "up" if rng.random() < 0.8 else direction
    moment = rng.choice(MOMENTS)
    if kind in ("replay", *EDITS, "flips"):
        moment = "data" if kind == "replay" or rng.random() < 0.6 else rng.choice(("Hello", "Begin", "Began"))
    first = rng.random() < 0.5
    return Scenario(
        seed=seed, number=number, kind=kind, paths=paths, both=paths == 1 or rng.random() < 0.25, plain=rng.random() < 0.5, connections=rng.randint(1, 4),
        first=first, compress=rng.random() < 0.5, moment=moment, part=rng.uniform(0.05, 0.5 if kind in ("replay", *EDITS, "flips") else 0.9), what=what,
        direction=direction, seconds=rng.choice((rng.uniform(0.2, 1.5), rng.uniform(1, 3), rng.uniform(5.5, 8))),
        amount={"crumble": 3000, "slow": rng.choice((256 << 10, MIB)), "bucket": rng.choice((512 << 10, 2 * MIB)), "delay": rng.uniform(0.01, 0.15), "storm": rng.uniform(0.15, 0.6)}.get(
            kind, {"flips": 40_000}.get(kind, 200_000 if kind in EDITS else 0)
        ),
        patient=rng.random() < 0.75, rate=rng.choice((4, 6, 8)) * MIB,
    )  # fmt: skip
