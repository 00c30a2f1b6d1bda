"""What a session of the benches leaves behind: RESULTS.md, saved results, pictures."""

import dataclasses
import xml.etree.ElementTree as ElementTree

import pictures
import pytest
import results
import saved
import verdicts
from rows import Chart, Row

GIB = 1 << 30
MACHINE = [("processor", "A CPU, 2 CPUs, AVX2"), ("kernel", "6.1"), ("commit", "abc"), ("date", "2026-11-22 10:00 UTC, 14 min"), ("devices", "2048 MiB, 5 rounds")]


def a_row(id="C1", case="dense / nbdcopy", ratio=2.0, **fields):
    named = {"first": 1.6, "goal": 2.4, "section": "copy", "family": "full copy", "peer": "nbdcopy", "range_ours": (1.3e9, 1.6e9), "range_ceiling": (6e8, 8e8)}
    return Row(id, case, 1.4e9, 1.4e9 / ratio, ratio, (ratio * 0.9, ratio * 1.1), **{**named, **fields})


def a_session(rows, started="2026-11-22T10:00:00+00:00", tree="t1", charts=()):
    return saved.Session(MACHINE, tree, started, list(rows), list(charts), {"copy": 61.0, "scan": 30.0}, [("peers", "needs bdsync")])


def a_chart(family="size"):
    lines = {name: [(GIB * 4**step, start + slope * 4**step) for step in range(8)] for name, start, slope in (("commit", 0.003, 1e-6), ("unchanged run", 0.05, 2e-4))}
    return Chart(family, "What size costs", "size of the volume", "time", lines, bounds={"goal": 1.0}, section="size")


def test_a_saved_session_is_the_session(tmp_path):
    session = a_session([a_row(figures={"cpu": 0.8}), a_row("D1", "1 % / own scan", 0.9)], charts=[a_chart()])
    again = saved.load(saved.save(session, tmp_path))
    assert again == dataclasses.replace(session, machine=[tuple(pair) for pair in MACHINE])
    assert again.rows[0].verdict == "first" and again.foot == session.foot


def test_sessions_of_another_tree_or_version_are_not_counted(tmp_path):
    for hour, tree in enumerate(("t1", "t2", "t1", "t1", "t1")):
        saved.save(a_session([a_row()], f"2026-11-22T{hour:02}:00:00+00:00", tree), tmp_path)
    (tmp_path / "results-20261122T090000.json").write_text('{"version": 0}')
    assert [session.started[11:13] for session in saved.last_of("t1", 3, tmp_path)] == ["02", "03", "04"]
    assert saved.last_of("t3", 3, tmp_path) == []


def test_a_goal_is_said_to_hold_in_as_many_sessions_as_it_did():
    sessions = [a_session([a_row(ratio=ratio), a_row("H1", "hash / packaged", 1.2, first=0.9, goal=1.1)]) for ratio in (2.5, 1.5, 2.45)]
    lines = {line[0]: line for line in verdicts.held(sessions)}
    assert lines["C1"][4:] == ("2 of 3", "2 of 3", "2.500, 1.500, 2.450")
    assert lines["H1"][4:] == ("3 of 3", "3 of 3", "1.200, 1.200, 1.200")
    assert "Of 2 goals 1 held in every one." in verdicts.section(sessions)


def test_the_results_hold_each_row_what_it_cost_and_the_pictures_where_they_belong(tmp_path):
    rows = [a_row(id, ratio=3, figures={"cpu_source": 0.4, "cpu_target": 0.6}, peer_figures={"cpu": 1.5, "rss": 40}) for id in results.REQUIRED]
    session = a_session(rows, charts=[a_chart()])
    drawn = pictures.draw(tmp_path / "pictures", rows, session.charts, session.foot)
    results.write(tmp_path / "RESULTS.md", session, verdicts.section([session]), drawn)
    text = (tmp_path / "RESULTS.md").read_text()
    copy, size = text[text.index("## copy") : text.index("## size")], text[text.index("## size") : text.index("## Time")]
    assert "| dense | qrep | 0.400 | 0.600 | 1.000 |" in copy and "| dense | nbdcopy |  |  | 1.500 | 40 |" in copy
    assert "![full copy](pictures/full-copy.svg)" in copy and "![size](pictures/size.svg)" in size
    assert "1.5 minutes in all: copy 61 s, scan 30 s." in text and "peers: needs bdsync" in text


def test_what_misses_its_goal_is_named_with_its_profile():
    by_hand = "# Measured by hand\n\n## Profiles\n\nA full copy (C1) hashes.\n\n## Of other things\n\nNothing of D1.\n"
    rows = [a_row(ratio=2.0), a_row("D1", "1 % / own scan", 0.9, first=0.85, goal=0.95), a_row("H1", "hash / packaged", 1.2, first=0.9, goal=1.1)]
    text = results.missed(rows, by_hand)
    assert "| C1 | dense / nbdcopy | 2.000 | >= 2.4 | [profile](#profiles) |" in text and "| >= 0.95 | not profiled |" in text and "H1" not in text
    assert results.missed(rows[2:], "") == "Every goal was reached in this session."


def test_a_session_without_a_required_row_is_not_whole():
    rows = [a_row(id) for id in results.REQUIRED]
    assert results.missing(rows) == [] and results.missing(rows[1:]) == [results.REQUIRED[0]]
    assert not results.is_whole([], rows)


def test_pictures_are_well_formed_and_those_of_families_that_are_gone_are_taken_away(tmp_path):
    (tmp_path / "gone.svg").write_text("<svg/>")
    rows = [a_row(), a_row("", "dense / fio <8M> & more", 0.8, peer="", figures={"wire": 1.0}), a_row("", "sparse / nbdcopy", 3.0, peer_figures={"wire": 1.3})]
    drawn = pictures.draw(tmp_path, rows, [a_chart()], "A CPU & more")
    assert drawn == [("full copy", "full-copy.svg"), ("size", "size.svg")] and not (tmp_path / "gone.svg").exists()
    texts = [each.text for each in ElementTree.parse(tmp_path / "full-copy.svg").iter("{http://www.w3.org/2000/svg}text")]
    for words in ("Full copy", "dense", "sparse", "qrep", "nbdcopy", "fio <8M> & more", "1.40 GB/s", "qrep: 2.00×", "qrep reaches 80%", "A CPU & more"):
        assert words in texts, words
    axis = [each.text for each in ElementTree.parse(tmp_path / "size.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert {"1 GiB", "16 TiB", "100 ms", "1 ms", "commit", "unchanged run", "goal"} <= set(axis)


def test_a_bar_is_as_long_as_its_figure():
    drawn = pictures.bars("full copy", [a_row(ratio=2.0, range_ours=(), range_ceiling=())], "")
    widths = [float(each.get("width")) for each in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}rect") if each.get("x") == f"{pictures.LEFT:.1f}"]
    assert widths == [pictures.SPAN, pictures.SPAN / 2]


def test_rows_of_one_picture_have_one_unit():
    with pytest.raises(ValueError, match="one unit"):
        pictures.bars("full copy", [a_row(), a_row(unit="ms")], "")


def test_labels_of_lines_that_end_together_do_not_cover_each_other():
    assert pictures.spread_out([100, 102, 50, 101], 16) == [100, 132, 50, 116]
