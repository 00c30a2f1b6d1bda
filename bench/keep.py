"""What stays of a session. Of a whole one: its saved results, the pictures, RESULTS.md and the numbers in the README, which all say the same. Of a part, or
at smoke size: the same, but the README, in bench/out, which git does not keep.
"""

from pathlib import Path

import pictures
import readme
import results
import saved
import verdicts

HERE = Path(__file__).parent
RUNS = 3


def keep(rows, charts, seconds, skipped, whole):
    """Write it; the paths."""
    session = saved.Session(results.machine(), results.tree(), results.STARTED.isoformat(), rows, charts, seconds, skipped)
    place = HERE if whole else saved.DIRECTORY
    path = saved.save(session) if whole else saved.save(session, name="part.json")
    drawn = pictures.draw(place / "pictures", rows, charts, session.foot)
    runs = verdicts.section(saved.last_of(session.tree, RUNS) if whole else [session])
    results.write(place / "RESULTS.md", session, runs, drawn)
    if whole:
        readme.update(HERE.parent / "README.md", (HERE / "RESULTS.md").read_text(), HERE / "pictures")
    return [path, place / "pictures", place / "RESULTS.md", *([HERE.parent / "README.md"] if whole else [])]
