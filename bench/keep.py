"""What stays of a whole session: its saved results, the pictures, RESULTS.md and the numbers in the README, which all say the same."""

from pathlib import Path

import pictures
import readme
import results
import saved
import verdicts

HERE = Path(__file__).parent
RUNS = 3


def keep(rows, charts, seconds, skipped):
    """Write all of it; the paths."""
    session = saved.Session(results.machine(), results.tree(), results.STARTED.isoformat(), rows, charts, seconds, skipped)
    path = saved.save(session)
    drawn = pictures.draw(HERE / "pictures", rows, charts, session.foot)
    results.write(HERE / "RESULTS.md", session, verdicts.section(saved.last_of(session.tree, RUNS)), drawn)
    readme.update(HERE.parent / "README.md", (HERE / "RESULTS.md").read_text(), HERE / "pictures")
    return [path, HERE / "pictures", HERE / "RESULTS.md", HERE.parent / "README.md"]
