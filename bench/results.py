"""The table of a full session as bench/RESULTS.md: the rows by section, and the machine they are of."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

from measure import DEVICE_SIZE, FULL, MIB, QUIET, ROUNDS

HERE = Path(__file__).parent
STARTED = datetime.datetime.now(datetime.UTC)
LOAD_AT_START = os.getloadavg()
HEAD = ("id", "case", "ours", "ceiling", "ratio", "min..max", "first", "goal", "verdict", "note")
# What the design requires; a session without one of them is not whole.
REQUIRED = ("S1", "S2", "S4", "H1", "D1", "C1", "C5", "U1", "P1", "P2", "P3", "V1")


def figure_text(value, unit):
    if value is None:
        return ""
    return f"{value / 1e9:.2f} GB/s" if unit == "GB/s" else f"{value:.4g} {unit}".rstrip()


def number_text(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 10 else f"{value:.3f}"


def cells(row):
    """The texts of a row's cells, as HEAD names them."""
    wanted = ["" if each is None else f"{'<=' if row.at_most else '>='} {each:g}" for each in (row.first, row.goal)]
    notes = [row.note] if row.note else []
    if row.busy > QUIET:
        notes.append(f"noisy: others took {row.busy:.0%} of the CPUs")
    spread = "..".join(number_text(value) for value in row.spread)
    return (
        row.id, row.case, figure_text(row.ours, row.unit), figure_text(row.ceiling, row.unit), number_text(row.ratio), spread, *wanted,
        row.verdict if FULL else "", "; ".join(notes),
    )  # fmt: skip


def is_whole(items, rows):
    """Whether every bench was asked to run, so that the table may replace the one that is there. items: what pytest collected."""
    benches = {path.name for path in HERE.glob("bench_*.py")}
    return benches <= {item.path.name for item in items} and set(REQUIRED) <= {row.id for row in rows}


def machine():
    """[(what, value)] of this machine and session."""
    cpu = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?")
    memory = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    flags = Path("/proc/cpuinfo").read_text()
    vector = "AVX-512" if " avx512vl" in flags else "AVX2" if " avx2" in flags else platform.machine()
    commit = subprocess.run(["git", "-C", HERE, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False).stdout.strip()
    minutes = (datetime.datetime.now(datetime.UTC) - STARTED).total_seconds() / 60
    loads = " ".join(f"{load:.2f}" for load in LOAD_AT_START)
    return [
        ("processor", f"{cpu}, {os.cpu_count()} CPUs, {vector}"), ("memory", f"{memory / 2**20:.0f} GiB"),
        ("kernel", platform.release()), ("Python", platform.python_version()),
        ("congestion control by default", Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()),
        ("date", f"{STARTED:%Y-%m-%d %H:%M} UTC, {minutes:.0f} min"), ("commit", commit or "not a checkout"),
        ("load average at the start, and at the end", f"{loads}; " + " ".join(f"{load:.2f}" for load in os.getloadavg())), ("devices", f"{DEVICE_SIZE // MIB} MiB, {ROUNDS} rounds"),
    ]  # fmt: skip


def table(head, lines):
    rows = [head, tuple("---" for _ in head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def write(path, rows):
    """Replace RESULTS.md: what the design asks for, the machine, every section's rows, and what was measured by hand."""
    required = [row for row in rows if row.id in REQUIRED and row.first is not None]
    noisy = [f"{row.id or row.section}: {row.case}" for row in rows if row.busy > QUIET]
    parts = [
        "# What was measured\n\nWritten by `./test.sh bench`; by hand only `by_hand.md`, which ends it. Each ratio is the median of rounds in which"
        " the ceiling ran\nright before ours; M is a loop device over a tmpfs of huge pages, D one over a file on this machine's disk.\n"
        "Comments in the code name sections of this file.",
        "## Machine\n\n" + table(("what", "value"), machine()),
        "## Required\n\nRatios to fio are to fio with buffers of 4 KiB pages, which is too low a ceiling: see \"The ceiling of fio\" below.\n\n" + table(HEAD, [cells(row) for row in required]),
        "Noisy rows (something else took more than a tenth of the CPUs right before their rounds): " + ("; ".join(noisy) or "none") + ".",
    ]
    for section in sorted({row.section for row in rows}):
        parts.append(f"## {section}\n\n" + table(HEAD, [cells(row) for row in rows if row.section == section]))
    parts.append((HERE / "by_hand.md").read_text().strip())
    path.write_text("\n\n".join(parts) + "\n")
