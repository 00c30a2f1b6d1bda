"""The harnesses of the campaign: which command each is, what it must reach, and how long it may take on two cores."""

import dataclasses
import sys

MINUTE = 60.0


@dataclasses.dataclass(frozen=True)
class Harness:
    """name: as docs/RELIABILITY.md has it. module: of this package, or with its arguments. least: the count it must reach (outcome.Outcome.count), in `unit`;
    also: further counts by name. canaries: how many defects it must have seeded at least. seconds: when it is given up. cores: of the two, how many it needs to itself; a half is enough for one that mostly waits."""

    name: str
    what: str
    module: tuple
    least: int
    unit: str
    seconds: float
    cores: float = 1
    also: tuple = ()
    canaries: int = 1

    def command(self, seed):
        name, *arguments = self.module
        return [sys.executable, "-m", f"campaign.{name}", "--seed", str(seed), "--count", str(self.least), "--seconds", f"{self.seconds:.0f}", *arguments]


HARNESSES = (
    Harness("H1", "unit tests, and properties over examples of other seeds", ("h01_properties",), 30_000, "examples", 8 * MINUTE, also=(("tests", 4_000),)),
    Harness("H2", "simulator over the shipping protocol classes", ("h02_simulator",), 50_000, "seeds", 24 * MINUTE),
    Harness(
        "H3", "crash states of recorded logs, recovered by the shipping code", ("h03_crash_states",), 300_000, "distinct states recovered", 18 * MINUTE,
        also=(("of them after two crashes", 50_000), ("enumerated", 500_000), ("places exhausted", 60)),
    ),
    Harness(
        "H4", "kill -9 at every crash point, and at random times", ("h04_kills",), 300, "random kills", 18 * MINUTE, cores=0.5,
        also=(("cases of the matrix", 300),),
    ),  # fmt: skip
    Harness(
        "H5", "power cuts under target, undo and state, on devices with a volatile cache", ("h05_power",), 200, "power cuts", 12 * MINUTE, cores=0.5,
        also=(("writes of the dead", 10), ("failed flushes", 20), ("sessions superseded", 5), ("cuts of a recovery", 10)),
    ),  # fmt: skip
    Harness(
        "H6", "a stock kernel's dm-log-writes replayed, and its dm-flakey", ("h06_kernel",), 600, "power cuts", 12 * MINUTE,
        also=(("cases of failing devices", 14),),
    ),  # fmt: skip
    Harness(
        "H7", "every call fails at its n-th time, once and for good", ("h07_io_failures",), 8_000, "points", 10 * MINUTE, also=(("points with io_uring", 40),),
    ),  # fmt: skip
    Harness(
        "H8", "networks that cut, stall, reorder, damage and replay, between namespaces", ("h08_network",), 120, "scenarios", 14 * MINUTE, cores=0.5,
        also=(("flips detected", 1000), ("faults that came", 90)),
    ),  # fmt: skip
    Harness(
        "H9", "rot of superblock, undo, maps, records and the agent's state", ("h09_rot",), 20_000, "corruptions", 13 * MINUTE,
        also=(("bits of the superblock", 8192), ("of the agent's state", 6000)),
    ),  # fmt: skip
    Harness("H10", "the C parsers under libFuzzer, ASan and UBSan", ("h10_parsers",), 100_000_000, "executions", 17 * MINUTE),
    Harness("H10b", "the parsers in Python, and sessions with both machines", ("h10_python",), 5_000_000, "executions", 9 * MINUTE, also=(("sessions", 200_000),)),
    Harness("H11", "soak: writers, cuts, kills, rates, connections, at random", ("h11_soak",), 300, "seconds", 8 * MINUTE, cores=0.5),
    Harness("H12", "volumes that change hands: killed, cut, at once, a leader that comes back", ("h12_roles",), 120, "scenarios", 12 * MINUTE, cores=0.5),
    Harness("H13", "other versions: on the wire, message by message, and on disk", ("h13_version_skew",), 400, "cases", 6 * MINUTE),
    Harness("H14", "Spin model of the commit protocol, and its mutants", ("h14_model",), 30, "checks", 8 * MINUTE),
    Harness("H15", "defects seeded in the implementation, noticed by the fast tests", ("h15_mutants",), 190, "mutants", 15 * MINUTE),
    Harness(
        "H16", "sanitizers, valgrind, and Python's development mode", ("h16_sanitizers",), 4_000, "checks", 14 * MINUTE,
        also=(("under ThreadSanitizer", 3), ("under ASan and UBSan", 1600), ("under valgrind", 150), ("in development mode", 2300)),
    ),  # fmt: skip
    Harness("H17", "every attack of the threat model, and agents without one of their checks", ("h17_security",), 580, "checks", 10 * MINUTE, cores=0.5),
    Harness("long tier", "slow tests of no harness: long scenarios, and what a stock kernel has", ("long_tier",), 80, "tests", 20 * MINUTE, canaries=0),
)
