"""qrep demo: the whole of it on one machine, proved."""

import signal
import time

import click

from qrep.cli.app import Command
from qrep.cli.render import colour, table
from qrep.errors import Interrupted, QrepError


def result_table(results):
    """(step, expected, measured, passed) as text."""
    rows = [(*row[:3], colour("passed", 32) if row[3] else colour("FAILED", 31)) for row in results]
    return table(("STEP", "EXPECTED", "MEASURED", ""), rows)


def _ended(_number, _frame):
    raise Interrupted("ended by a signal; nothing was left behind")


@click.command(cls=Command)
@click.option("--keep", is_flag=True, help="Leave the agents' directories, devices and mounts, and say where.")
@click.option("--all", "everything", is_flag=True, help="Also verify and heal, copies, clones, groups, and a change of roles and back; some minutes more.")
@click.pass_obj
def demo(app, keep, everything):
    """Replicate a real volume with real files between two agents on this machine, through kills, a rollback and a pulled cable, and prove each step."""
    from qrep.demo.place import TOOLS, TOOLS_OF_ALL, Place, check_machine
    from qrep.demo.story import Story

    check_machine(TOOLS_OF_ALL if everything else TOOLS)
    started = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ended)
    error = None
    with Place(app.say, keep) as place:
        story = Story(place, app.say)
        try:
            story.tell(everything)
        except (Interrupted, KeyboardInterrupt):
            raise
        except (OSError, QrepError) as caught:
            error = caught
        left = story.kept() if keep else ""
    seconds = time.monotonic() - started
    passed = error is None and all(row[3] for row in story.results)
    rows = [{"step": step, "expected": expected, "measured": measured, "passed": ok} for step, expected, measured, ok in story.results]
    summary = f"{sum(row[3] for row in story.results)} of {len(story.results)} steps passed in {seconds:.0f} s"
    app.data(
        {"passed": passed, "seconds": round(seconds, 1), "steps": rows},
        f"\n{result_table(story.results)}\n\n{summary}" + (f"\n{left}" if left else "; nothing was left behind"),
    )
    if error is not None:
        app.say(f"qrep: {error}")
    return 0 if passed else 1
