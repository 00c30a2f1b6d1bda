"""What stays of a session. Of a whole one: its saved results, the pictures, RESULTS.md and the numbers in the README, which all say the same. Of a part, or
at smoke size: the same, but the README, in bench/out, which git does not keep.

    python bench/keep.py bench/out/results-....json        writes RESULTS.md, pictures and README of a whole session once more
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ["QREP_BENCH"] = "full"  # what it writes of is a whole session

import pictures  # noqa: E402
import readme  # noqa: E402
import results  # noqa: E402
import saved  # noqa: E402
import verdicts  # noqa: E402

HERE = Path(__file__).parent
RUNS = 3


def keep(rows, charts, seconds, skipped, whole):
    """Save a session and write what it says; the paths."""
    session = saved.Session(results.machine(), results.tree(), results.STARTED.isoformat(), rows, charts, seconds, skipped)
    path = saved.save(session) if whole else saved.save(session, name="part.json")
    return [path, *publish(session, whole)]


def publish(session, whole):
    place = HERE if whole else saved.DIRECTORY
    drawn = pictures.draw(place / "pictures", session.rows, session.charts, session.foot)
    runs = verdicts.section(saved.last_of(session.tree, RUNS) if whole else [session])
    results.write(place / "RESULTS.md", session, runs, drawn)
    if whole:
        readme.update(HERE.parent / "README.md", (HERE / "RESULTS.md").read_text(), HERE / "pictures")
    return [place / "pictures", place / "RESULTS.md", *([HERE.parent / "README.md"] if whole else [])]


if __name__ == "__main__":
    for written in publish(saved.load(sys.argv[1]), True):
        print(written)
