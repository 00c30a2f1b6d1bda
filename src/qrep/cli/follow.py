"""Following long work: a progress bar on a terminal, a line now and then elsewhere. Ctrl-C detaches and never aborts."""

import sys
import time

from qrep import units
from qrep.errors import Interrupted, QrepError, from_dict

LINE_EVERY_S = 10  # without a terminal


def describe(progress):
    """One line of a run's progress: `63.1%  812 MiB/s  00:03:51 to go  bottleneck: network`."""
    parts = [progress.get("phase") or "working"]
    if progress.get("percent") is not None:
        parts.append(f"{progress['percent']:.1f}%")
    if progress.get("rate_bytes_per_s"):
        parts.append(units.format_rate(progress["rate_bytes_per_s"]))
    if progress.get("seconds_left") is not None:
        parts.append(f"{units.format_clock(progress['seconds_left'])} to go")
    if progress.get("bottleneck"):
        parts.append(f"bottleneck: {progress['bottleneck']}")
    return "  ".join(parts)


class LineFollower:
    """For pipes and logs."""

    def __init__(self, app, title):
        self.app, self.title, self.said = app, title, time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        return None

    def show(self, progress):
        if progress and time.monotonic() - self.said >= LINE_EVERY_S:
            self.said = time.monotonic()
            self.app.say(f"{self.title}: {describe(progress)}")


class BarFollower:
    """For terminals."""

    def __init__(self, title):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self.line = self.bar.add_task(title, total=100, detail="")

    def __enter__(self):
        self.bar.__enter__()
        return self

    def __exit__(self, *exception):
        return self.bar.__exit__(*exception)

    def show(self, progress):
        if progress:
            self.bar.update(self.line, completed=progress.get("percent") or 0, detail=describe(progress))


def follower(app, title):
    if sys.stderr.isatty() and not app.quiet and not app.json:
        return BarFollower(title)
    return LineFollower(app, title)


def follow_task(app, client, task, title):
    """Wait for a task of the agent. Returns its result, or raises its error; Ctrl-C leaves the task running."""
    try:
        with follower(app, title) as show:
            for task in client.task(task):
                show.show(task.get("progress"))
    except KeyboardInterrupt:
        raise Interrupted(
            f"{title} goes on in the agent", hint="qrep status shows it; qrep stop ends it", code="detached"
        ) from None
    if task["state"] == "failed":
        raise from_dict(task["error"]) if task.get("error") else QrepError(f"{title} failed")
    return task.get("result") or {}
