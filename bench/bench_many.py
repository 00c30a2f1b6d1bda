"""Many small volumes, a job each, started by one command between two agents over TLS: against one volume, and beside nbdcopy, one after the other."""

import contextlib
import os
import time

import pytest
from agents import Agents
from content import same_content
from measure import FULL, GIB, MIB, add_row, figure_row, make_room, tool
from replica import Replica

from peers.nbd import NBDCOPY, NBDINFO, NBDKIT, nbdkit

COUNT, EACH, ONE = (64, 64 * MIB, GIB) if FULL else (3, 16 * MIB, 32 * MIB)
SIZE = COUNT * EACH
PART = 4 if FULL else 1  # nbdcopy copies a quarter of them: time and memory
ROUNDS = 3 if FULL else 1  # of 64 jobs, made and removed each time; nothing is judged by them


@pytest.fixture
def small_devices(memory_device):
    make_room()
    return [(memory_device(EACH), memory_device(EACH, "zero")) for _ in range(COUNT)]


@contextlib.contextmanager
def nbdcopies(pairs, directory):
    """run(): nbdcopy of each pair in turn, to one nbdkit that serves all targets."""
    exports = directory / "exports"
    exports.mkdir()
    for number, (_, target) in enumerate(pairs):
        os.symlink(target, exports / f"db{number}")
    with nbdkit(f"dir={exports}") as (_pid, address):
        line = "; ".join(f"nbdcopy --flush {source} {address}/db{number}" for number, (source, _) in enumerate(pairs))
        yield lambda: tool(["sh", "-ec", line]).sample(len(pairs) * EACH)


def test_many_small_volumes(compare, small_devices, memory_device, tmp_path):
    with contextlib.ExitStack() as stack:
        directories = [tmp_path / name for name in ("many", "one")]
        for directory in directories:
            directory.mkdir()
        many = Replica(stack.enter_context(Agents(directories[0])), small_devices, SIZE)
        one = Replica(stack.enter_context(Agents(directories[1])), [(memory_device(ONE), memory_device(ONE, "zero"))], ONE)
        beyond, unchanged = [], []

        def one_volume():
            one.renew()
            single.append(one.run())
            return single[-1]

        def many_volumes():
            full = many.run()
            beyond.append(1000 * (SIZE / full - SIZE / single[-1]) / COUNT)
            started = time.perf_counter()
            again = many.run()
            assert all(report["changed"] == 0 for report in many.reports.values()) and again > 0
            unchanged.append(1000 * (time.perf_counter() - started) / COUNT)
            return full

        single, also = [], {}
        if not any(program.missing() for program in (NBDCOPY, NBDINFO, NBDKIT)):
            # To targets of its own: the agents would find theirs changed behind their back, and open by somebody else.
            others = [(source, memory_device(EACH, "zero")) for source, _ in small_devices[: COUNT // PART]]
            also["nbdcopy to nbdkit, one by one"] = stack.enter_context(nbdcopies(others, tmp_path))
        words = f"{COUNT} volumes of {EACH // MIB} MiB"
        compare("", f"{words}, first runs / one volume", many_volumes, one_volume, setup=many.renew, family="many volumes", also=also, rounds=ROUNDS,
                note=f"{ROUNDS} rounds")  # fmt: skip
        add_row(figure_row("", f"{words}, first runs: for each, beyond one volume's rate", beyond, unit="ms"))
        add_row(figure_row("", f"{words}, nothing changed: for each", unchanged, unit="ms"))
        for source, target in small_devices[:: max(1, COUNT // 4)]:
            assert same_content(source, target)
