"""A session's rows, charts and machine in a file, and back: bench/out/results-*.json, which git does not keep."""

import dataclasses
import datetime
import json
from pathlib import Path

from rows import Chart, Row

DIRECTORY = Path(__file__).with_name("out")
VERSION = 1


@dataclasses.dataclass
class Session:
    """What one full run of the suite has found. tree: what was measured (git's id of src, "+" if it was changed since); seconds: by bench."""

    machine: list  # of (what, value)
    tree: str
    started: str
    rows: list
    charts: list
    seconds: dict
    skipped: list  # of (bench, why)

    @property
    def foot(self):
        said = dict(self.machine)
        return " · ".join((said["processor"], f"kernel {said['kernel']}", f"commit {said['commit']}", said["date"].split(",")[0], said["devices"]))


def save(session, directory=DIRECTORY, name=""):
    """Write it; the path. name: another than that of a whole session, which says when it began."""
    directory.mkdir(parents=True, exist_ok=True)
    stamp = datetime.datetime.fromisoformat(session.started).strftime("%Y%m%dT%H%M%S")
    path = directory / (name or f"results-{stamp}.json")
    path.write_text(json.dumps({"version": VERSION, **dataclasses.asdict(session)}, indent=1) + "\n")
    return path


def load(path):
    """Raises ValueError if it is not of this version."""
    found = json.loads(Path(path).read_text())
    if found.pop("version", None) != VERSION:
        raise ValueError(f"{path} was written by another version of the suite")
    rows = [Row(**{name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}) for row in found.pop("rows")]
    charts = [Chart(**{**chart, "lines": {name: [tuple(point) for point in line] for name, line in chart["lines"].items()}}) for chart in found.pop("charts")]
    lists = {name: [tuple(pair) for pair in found.pop(name)] for name in ("machine", "skipped")}
    return Session(rows=rows, charts=charts, **lists, **found)


def last_of(tree, count, directory=DIRECTORY):
    """The newest `count` sessions of the same tree, oldest first; of other versions, none."""
    sessions = []
    for path in sorted(directory.glob("results-*.json"), reverse=True):
        try:
            session = load(path)
        except ValueError:
            continue
        if session.tree == tree:
            sessions.append(session)
    return sessions[:count][::-1]
