"""The table of a campaign: on the terminal, and as docs/RELIABILITY.md between its marks."""

import datetime
import functools
import os
import platform
import re
import subprocess
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "RELIABILITY.md"
BEGIN, END = "<!-- written by python -m campaign -->\n", "<!-- end -->\n"
README = Path(__file__).resolve().parents[2] / "README.md"
README_BEGIN, README_END = "<!-- campaign: written by python -m campaign from docs/RELIABILITY.md -->\n", "<!-- campaign end -->\n"
QUOTED = ("", "harness", "count", "failures", "canaries", "verdict")
HEAD = ("", "harness", "count", "required", "failures", "canaries", "seed", "time", "commit", "verdict")
FAILED_ON = "; failed on "


def passed(harness, outcome):
    return (
        outcome is not None and not outcome.failures and outcome.count >= harness.least and outcome.canaries[0] == outcome.canaries[1] >= harness.canaries
        and all(outcome.also.get(name, 0) >= least for name, least in harness.also)
    )  # fmt: skip


def row(harness, outcome):
    if outcome is None:
        return (harness.name, harness.what, "", f"{harness.least:,} {harness.unit}", "", "", "", "", commit(), "**no answer**")
    counts = [f"{outcome.count:,} {harness.unit}", *(f"{number:,} {name}" for name, number in outcome.also.items())]
    required = [f"{harness.least:,}", *(f"{least:,} {name}" for name, least in harness.also)]
    caught, seeded = outcome.canaries
    return (
        harness.name, harness.what + (f"; {outcome.note}" if outcome.note else ""), ", ".join(counts), ", ".join(required), str(len(outcome.failures)),
        f"{caught} of {seeded}" if seeded else "", str(outcome.seed), f"{outcome.seconds / 60:.1f} min",
        commit(), "pass" if passed(harness, outcome) else "**fail**",
    )  # fmt: skip


def line(harness, outcome, _output):
    used = f", {outcome.processor / 60:.1f} min of processor" if outcome else ""
    return f"{harness.name} ends: {', '.join(cell for cell in row(harness, outcome)[2:] if cell)}{used}"


def table(harnesses, results):
    return lines([row(harness, results[harness.name][0]) for harness in harnesses])


def lines(rows):
    """Rows of cells as a table of Markdown."""
    return "\n".join("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |" for cells in (HEAD, tuple("---" for _ in HEAD), *rows))


@functools.cache
def commit():
    described = ["git", "-C", DOCUMENT.parent, "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(described, capture_output=True, text=True, check=False).stdout.strip() or "no checkout"


def write(harnesses, results, seed, minutes):
    """Put the table where the document has its marks."""
    cpu = next((text.split(":", 1)[1].strip() for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("model name")), platform.machine())
    machine = (
        f"{datetime.date.today().isoformat()}, commit {commit()}, seed {seed}: {minutes:.0f} min on {os.cpu_count()} CPUs ({cpu}),"
        f" kernel {platform.release()}, Python {platform.python_version()}."
    )
    _replace(f"{machine}\n\n{table(harnesses, results)}\n")


def amend(harnesses, results, order):
    """Harnesses that were run alone: their rows take the place of those in the document, or their own in `order`, with the commit that they ran on,
    and those on which they had failed."""
    head, rows = [], {}
    for text in _written().splitlines():
        if text.startswith("|") and text.split("|")[1].strip() in order:
            rows[text.split("|")[1].strip()] = text
        else:
            head.append(text)
    if not rows:
        raise ValueError(f"{DOCUMENT.name} has no campaign that a row could be amended of; run it whole first")
    for harness in harnesses:
        cells = list(row(harness, results[harness.name][0]))
        cells[HEAD.index("commit")] += _failed_before(rows.get(harness.name))
        rows[harness.name] = lines([cells]).splitlines()[2]
    _replace("\n".join([*head, *(rows[name] for name in order if name in rows)]) + "\n")


def _failed_before(text):
    """What the commit of a row is followed by, after the row in the document: "; failed on ..." for each time that it did not pass."""
    if text is None:
        return ""
    cells = _cells(text)
    ran, *failed = cells[HEAD.index("commit")].split(FAILED_ON)
    return "".join(FAILED_ON + each for each in ([] if cells[HEAD.index("verdict")] == "pass" else [ran]) + failed)


def _cells(text):
    return [cell.strip() for cell in text.strip("|").split(" | ")]


def verdicts():
    """{name of a harness: what the document says of it}."""
    return {cells[0]: cells[-1] for cells in map(_cells, (text for text in _written().splitlines() if text.startswith("| ") and "---" not in text)) if cells[0]}


def seed_written():
    """Of the campaign in the document, None where there is none: what is run again has to pass with the seed that it failed with."""
    found = re.search(r", seed (\d+):", _written())
    return int(found[1]) if found else None


def is_dirty():
    return commit().endswith("-dirty")


def quoted():
    """What the README has of the table in the document: fewer columns, no notes, and which rows are of another commit."""
    machine, *rest = _written().splitlines()
    rows = [_cells(text) for text in rest if text.startswith("| ") and "---" not in text]
    if not rows:
        return f"{machine}\n"
    again = [f"{row[0]} on {row[HEAD.index('commit')]}" for row in rows[1:] if row[HEAD.index("commit")] not in machine]
    machine += f" Run again by itself: {', '.join(again)}." if again else ""
    places = [HEAD.index(name) for name in QUOTED]
    shown = [[row[place].split(";")[0] if HEAD[place] == "harness" else row[place] for place in places] for row in rows[1:]]
    return "\n".join([machine, "", *(f"| {' | '.join(cells)} |" for cells in (QUOTED, ["---"] * len(QUOTED), *shown))]) + "\n"


def _written():
    return _between(DOCUMENT.read_text(), BEGIN, END)[1]


def _between(text, begin, end):
    """What is before, between and after two marks."""
    before, rest = text.split(begin, 1)
    between, after = rest.split(end, 1)
    return before, between, after


def _replace(text):
    before, _old, after = _between(DOCUMENT.read_text(), BEGIN, END)
    DOCUMENT.write_text(f"{before}{BEGIN}{text}{END}{after}")
    before, _old, after = _between(README.read_text(), README_BEGIN, README_END)
    README.write_text(f"{before}{README_BEGIN}{quoted()}{README_END}{after}")
