"""The frame of the benches: what a row says of its rounds, and what a program is found to cost."""

import subprocess
import sys

import pytest
from comparison import Comparison
from cost import cpu_of, tool
from rows import Against, Row, Sample, figure_row

MIB = 1 << 20


@pytest.fixture
def rows(monkeypatch):
    found = []
    monkeypatch.setattr("rows.ROWS", found)
    return found


def test_rounds_of_ours_its_ceiling_and_its_peers_take_turns_and_each_peer_has_a_row(rows):
    turns, ours = [], iter([10.0, 30.0, 20.0])

    def turn(name, figure):
        turns.append(name)
        return figure

    made = Comparison(None)(
        "C1", "dense / nbdcopy", lambda: turn("ours", Sample(next(ours), wire=1.5)), lambda: turn("nbdcopy", 10.0), rounds=3, first=1.6, goal=2.4,
        setup=lambda: turn("setup", None), family="full copy", peer="nbdcopy",
        also={"rsync": lambda: turn("rsync", Sample(2.0, rss=7)), "fio": Against(lambda: turn("fio", 40.0), bound=True, id="C9", goal=0.25)},
    )  # fmt: skip
    assert turns == ["rsync", "fio", "nbdcopy", "setup", "ours"] * 3  # what ours is judged by comes last
    assert [row.id for row in rows] == ["C1", "", "C9"] and made is rows[0]
    assert made.ratio == 2.0 and made.spread == (1.0, 3.0) and made.ours == 20.0 and made.range_ours == (10.0, 30.0)
    assert made.figures == {"wire": 1.5} and rows[1].peer_figures == {"rss": 7} and rows[1].figures == {"wire": 1.5}
    assert [row.bars for row in rows] == [("dense", "nbdcopy"), ("dense", "rsync"), ("dense", "fio")]
    assert [row.peer for row in rows] == ["nbdcopy", "rsync", ""] and {row.family for row in rows} == {"full copy"}
    assert [row.verdict for row in rows] == ["first", "", "goal"]


@pytest.mark.parametrize(("ratio", "at_most", "first", "goal", "word"), [
    (0.5, False, 0.6, 0.8, "below first"), (0.6, False, 0.6, 0.8, "first"), (0.8, False, 0.6, 0.8, "goal"), (0.8, False, None, None, ""),
    (1.3, True, 1.2, 1.1, "below first"), (1.1, True, 1.2, 1.1, "goal"), (0.7, False, None, 0.8, "below first"), (0.7, False, 0.6, None, "first"),
])  # fmt: skip
def test_the_verdict_of_a_row_is_one_of_four_words(ratio, at_most, first, goal, word):
    assert Row("X", "", 1, 1, ratio, (), first, goal, at_most).verdict == word


def test_a_row_of_figures_is_judged_by_their_median():
    row = figure_row("P3", "milliseconds", [90, 250, 110], first=200, goal=100, unit="ms", family="status")
    assert (row.ratio, row.spread, row.verdict, row.family) == (110, (90, 250), "first", "status")


def test_a_sample_takes_no_figure_that_the_table_does_not_have():
    with pytest.raises(TypeError, match="colour"):
        Sample(1.0, colour=3)


def test_a_program_costs_what_its_children_cost():
    child = f"data = bytearray({48 * MIB}); import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    ran = tool([sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True); print('ended')"], keep_output=True)
    assert ran.cpu >= 0.3 and ran.seconds >= 0.3 and ran.output == b"ended\n"
    assert ran.rss >= 48 * MIB


def test_a_small_program_is_not_charged_with_the_memory_of_the_one_that_starts_it():
    mine = bytearray(256 * MIB)
    assert tool(["sleep", "0.2"]).rss < 64 * MIB < len(mine)


def test_a_program_that_fails_is_an_error():
    with pytest.raises(subprocess.CalledProcessError):
        tool(["false"])
    assert tool(["false"], check=False).seconds > 0


def test_a_call_costs_cpu_of_this_process_and_of_those_it_names():
    program = "import sys, time\nfor line in sys.stdin:\n    end = time.process_time() + 0.3\n    while time.process_time() < end: pass\n    print(flush=True)"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        def call():
            server.stdin.write(b"\n")
            server.stdin.flush()
            return server.stdout.readline()

        answer, cost = cpu_of(call, server.pid)
        server.stdin.close()
    assert answer == b"\n" and cost.of[server.pid] >= 0.25 and cost.own < 0.25 and cost.seconds >= 0.3
