"""The table of a full session as bench/RESULTS.md: the rows by section, what they cost, and the machine they are of."""

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path

from measure import DEVICE_SIZE, FIO_HUGE, FULL, MIB, QUIET, ROUNDS, ROWS

HERE = Path(__file__).parent
STARTED = datetime.datetime.now(datetime.UTC)
LOAD_AT_START = os.getloadavg()
HEAD = ("id", "case", "ours", "ceiling", "ratio", "min..max", "first", "goal", "verdict", "note")
COSTS = ("case", "who", "CPU s/GiB source", "target", "both", "peak MiB", "wire / changed", "read / changed", "p99 / alone")
# What the design requires; a session without one of them is not whole.
REQUIRED = ("S1", "S2", "S3", "S4", "S7", "H1", "H3", "D1", "C1", "C3", "C5", "C7", "U1", "R1", "R2", "T1", "Z1", "P1", "P2", "P3", "V1")


CEILING_OF_FIO = """What is required of a ratio to fio was set against fio as it comes, with buffers of 4 KiB pages; those rows stay. The engine's buffers are huge pages, which
memory is read into faster, so a row "fio, huge pages" stands beside each of them (`scan`): that is the ceiling that nothing here can pass."""


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


def cost_cells(rows):
    """The lines of a table of what ours and the peers cost, as COSTS names them: ours once for each group of a family."""
    lines, seen = [], set()
    for row in rows:
        group, against = row.bars
        for who, figures in (("qrep", row.figures), (against, row.peer_figures)):
            both = figures.get("cpu", figures["cpu_source"] + figures["cpu_target"] if {"cpu_source", "cpu_target"} <= set(figures) else None)
            line = (group, who, *("" if each is None else number_text(each) for each in (
                figures.get("cpu_source"), figures.get("cpu_target"), both, *(figures.get(name) for name in ("rss", "wire", "read", "p99")))))  # fmt: skip
            if figures and line not in seen:
                seen.add(line)
                lines.append(line)
    return lines


def is_whole(items, rows):
    """Whether every bench was asked to run, so that the table may replace the one that is there. items: what pytest collected."""
    benches = {path.name for path in HERE.glob("bench_*.py")}
    return benches <= {item.path.name for item in items} and not missing(rows)


def missing(rows):
    """What is required and was not measured."""
    return [id for id in REQUIRED if id not in {row.id for row in rows}]


def git(*words):
    return subprocess.run(["git", "-C", HERE.parent, *words], capture_output=True, text=True, check=False).stdout.strip()


def tree():
    """What is measured: git's id of src, with a "+" if something in it is not what was committed."""
    return git("rev-parse", "HEAD:src") + ("+" if git("status", "--porcelain", "--", "src") else "")


def commit():
    """Of this checkout; "+" says that sources or benches are not what was committed."""
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "bench/*.py")
    return (git("rev-parse", "--short", "HEAD") or "not a checkout") + ("+" if changed else "")


def machine():
    """[(what, value)] of this machine and session."""
    cpu = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?")
    memory = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    flags = Path("/proc/cpuinfo").read_text()
    vector = "AVX-512" if " avx512vl" in flags else "AVX2" if " avx2" in flags else platform.machine()
    minutes = (datetime.datetime.now(datetime.UTC) - STARTED).total_seconds() / 60
    start, end = (" ".join(f"{load:.2f}" for load in loads) for loads in (LOAD_AT_START, os.getloadavg()))
    return [
        ("processor", f"{cpu}, {os.cpu_count()} CPUs, {vector}"), ("memory", f"{memory / 2**20:.0f} GiB"),
        ("kernel", platform.release()), ("Python", platform.python_version()),
        ("congestion control by default", Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()),
        ("date", f"{STARTED:%Y-%m-%d %H:%M} UTC, {minutes:.0f} min"), ("commit", commit()), ("load average at the start, and at the end", f"{start}; {end}"),
        ("devices", f"1 to 2 GiB, medians of {ROUNDS} rounds" if FULL else f"{DEVICE_SIZE // MIB} MiB, one round: nothing to judge by"),
        ("fio's buffers", "4 KiB pages (fio as it comes)" + (", and huge pages where a row says so" if any(row.bars[1] == FIO_HUGE for row in ROWS) else "; no huge pages here")),
    ]  # fmt: skip


def table(head, lines):
    rows = [head, tuple("---" for _ in head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def section_text(name, rows, families, pictures):
    parts = [f"## {name}", *([table(HEAD, [cells(row) for row in rows])] if rows else [])]
    if costs := cost_cells(rows):
        parts.append(table(COSTS, costs))
    parts += [f"![{family}](pictures/{picture})" for family, picture in pictures if family in families]
    return "\n\n".join(parts)


def missed(rows, by_hand):
    """The lines about required rows that are not at their goal: what they reached, and whether the section "Profiles" of by_hand's text has their id."""
    profiles = re.search(r"^## Profiles$(.*?)(?=^## |\Z)", by_hand, re.MULTILINE | re.DOTALL)
    told = set(re.findall(r"\w+", profiles[1])) if profiles else set()
    lines = []
    for row in rows:
        if row.goal is not None and row.verdict != "goal":
            why = "[profile](#profiles)" if row.id in told else "not profiled"
            lines.append((row.id, row.case, number_text(row.ratio), f"{'<=' if row.at_most else '>='} {row.goal:g}", why))
    return table(("id", "case", "ratio", "goal", "why"), lines) if lines else "Every goal was reached in this session."


def write(path, session, runs, pictures):
    """Replace RESULTS.md: what the design asks for, the machine, every section's rows, and what was measured by hand.

    session: saved.Session; runs: the text about the last sessions; pictures: [(family, file name)].
    """
    rows, by_hand = session.rows, (HERE / "by_hand.md").read_text()
    required = sorted((row for row in rows if row.id in REQUIRED and row.verdict), key=lambda row: REQUIRED.index(row.id))
    noisy = [f"{row.id or row.section}: {row.case}" for row in rows if row.busy > QUIET]
    homes = {each.family: each.section for each in (*reversed(rows), *reversed(session.charts)) if each.family}  # a picture stands where its family began
    parts = [
        "# What was measured\n\nWritten by `./test.sh bench`; by hand only `by_hand.md`, which ends it. Each ratio is the median of rounds in which"
        " the ceiling or peer ran\nright before ours; M is a loop device over a tmpfs of huge pages, D one over a file on this machine's disk."
        "\nComments in the code name sections of this file.",
        "## Machine\n\n" + table(("what", "value"), session.machine),
        f"## Required\n\n{CEILING_OF_FIO}\n\n" + table(HEAD, [cells(row) for row in required]),
        "Noisy rows (something else took more than a tenth of the CPUs right before their rounds): " + ("; ".join(noisy) or "none") + ".",
        "## Missed\n\n" + missed(required, by_hand),
        "## Three runs\n\n" + runs,
    ]
    for section in sorted({row.section for row in rows} | set(homes.values())):
        families = {family for family, home in homes.items() if home == section}
        parts.append(section_text(section, [row for row in rows if row.section == section], families, pictures))
    spent = sorted(session.seconds.items(), key=lambda item: -item[1])
    parts.append(f"## Time\n\n{sum(session.seconds.values()) / 60:.1f} minutes in all: " + ", ".join(f"{bench} {seconds:.0f} s" for bench, seconds in spent) + ".")
    if session.skipped:
        parts.append("Not measured here: " + "; ".join(f"{bench}: {why}" for bench, why in session.skipped) + ".")
    parts.append(by_hand.strip())
    path.write_text("\n\n".join(parts) + "\n")
