"""qrep events: what happened, newest last."""

from datetime import UTC, datetime, timedelta

import click

from qrep import units
from qrep.cli import names
from qrep.cli.app import Command
from qrep.cli.render import when
from qrep.errors import NotFound, Unreachable, UsageError


def since_stamp(text):
    """An ISO time, or an age such as 3h."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC).isoformat()
    except ValueError:
        pass
    try:
        return (datetime.now(UTC) - timedelta(seconds=units.parse_duration(text))).isoformat()
    except UsageError:
        raise UsageError(
            f"--since {text!r} is neither a time nor an age", hint="write 2026-11-21T03:00, or 3h"
        ) from None


def line(event):
    subject = event.get("job") or event.get("volume") or "-"
    return f"{when(event['time'], precise=True)}  {event['level']:<7}  {event['code']:<20}  {subject}  {event['text']}"


@click.command(cls=Command)
@click.argument("job", required=False, shell_complete=names.jobs)
@click.option("-f", "--follow", is_flag=True, help="Go on with new ones until Ctrl-C.")
@click.option("--since", metavar="TIME|AGE", help="From 2026-11-21T03:00, or the last 3h.")
@click.pass_obj
def events(app, job, follow, since):
    """What happened, to all jobs or to JOB. With --json one object a line."""
    client, shown = app.client(), 0
    try:
        for event in client.lines("/events", job=job, since=since_stamp(since), follow=1 if follow else None):
            app.data(event, line(event))
            shown += 1
    except KeyboardInterrupt:
        return 130 if not follow else 0
    if follow:
        raise Unreachable(f"the agent at {app.socket} broke off", hint="see what the agent last wrote to its stderr")
    if job and not shown and job not in [known["name"] for known in client.get("/status")["jobs"]]:
        raise NotFound(f"no job called {job}, and no events of one", hint="qrep status lists the jobs", code="no-such-job")
    return 0
