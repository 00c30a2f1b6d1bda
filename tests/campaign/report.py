"""The table of a campaign: on the terminal, and as docs/RELIABILITY.md between its marks."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "RELIABILITY.md"
BEGIN, END = "<!-- written by python -m campaign -->\n", "<!-- end -->\n"
HEAD = ("", "harness", "count", "required", "failures", "canaries", "seed", "time", "verdict")


def passed(harness, outcome):
    return (
        outcome is not None and not outcome.failures and outcome.count >= harness.least and outcome.canaries[0] == outcome.canaries[1]
        and all(outcome.also.get(name, 0) >= least for name, least in harness.also)
    )  # fmt: skip


def row(harness, outcome):
    if outcome is None:
        return (harness.name, harness.what, "", f"{harness.least:,} {harness.unit}", "", "", "", "", "**no answer**")
    counts = [f"{outcome.count:,} {harness.unit}", *(f"{number:,} {name}" for name, number in outcome.also.items())]
    required = [f"{harness.least:,}", *(f"{least:,} {name}" for name, least in harness.also)]
    caught, seeded = outcome.canaries
    return (
        harness.name, harness.what + (f"; {outcome.note}" if outcome.note else ""), ", ".join(counts), ", ".join(required), str(len(outcome.failures)),
        f"{caught} of {seeded}" if seeded else "", str(outcome.seed), f"{outcome.seconds / 60:.1f} min",
        "pass" if passed(harness, outcome) else "**fail**",
    )  # fmt: skip


def line(harness, outcome, _output):
    return f"{harness.name} ends: {', '.join(cell for cell in row(harness, outcome)[2:] if cell)}"


def table(harnesses, results):
    rows = [HEAD, tuple("---" for _ in HEAD), *(row(harness, results[harness.name][0]) for harness in harnesses)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in rows)


def write(harnesses, results, seed, minutes):
    """Put the table where the document has its marks."""
    commit = subprocess.run(["git", "-C", DOCUMENT.parent, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False).stdout.strip()
    cpu = next((text.split(":", 1)[1].strip() for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("model name")), platform.machine())
    machine = (
        f"{datetime.date.today().isoformat()}, commit {commit or 'not a checkout'}, seed {seed}: {minutes:.0f} min on {os.cpu_count()} CPUs ({cpu}),"
        f" kernel {platform.release()}, Python {platform.python_version()}."
    )
    text = DOCUMENT.read_text()
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    DOCUMENT.write_text(f"{before}{BEGIN}{machine}\n\n{table(harnesses, results)}\n{END}{after}")
