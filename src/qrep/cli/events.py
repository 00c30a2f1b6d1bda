"""qrep events: what happened, newest last."""

import sys
import time
from datetime import UTC, datetime, timedelta

import click

from qrep import units
from qrep.cli import names
from qrep.cli.app import Command
from qrep.cli.render import when
from qrep.errors import NotFound, Unreachable, UsageError

SILENCE_S = 45.0  # an agent that says nothing for so long while it is followed hangs: it sends an empty line every 20 s
ANSWER_S = 5.0
AGAIN_S = 0.2


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


class Follower:
    """Events of the agent, one after another; with follow also across its restarts: none is lost, none told twice."""

    def __init__(self, app, client, query):
        self.app, self.client, self.query = app, client, query
        self.shown = 0

    def read(self, follow):
        """Yields events. Raises Unreachable where there is no agent to begin with."""
        yield from self._once({"follow": 1} if follow else {})
        while follow:
            time.sleep(AGAIN_S)
            self._wait_for_agent()
            yield from self._once({"follow": 1})

    def _once(self, more):
        try:
            for event in self.client.lines("/events", timeout=SILENCE_S if more else None, **self.query, **more):
                self.shown += 1
                if "id" in event:
                    self.query["after"] = event["id"]
                yield event
        except Unreachable:
            if not more or not self.shown and not self._answers():
                raise

    def _answers(self):
        try:
            self.client.get("/node", timeout=ANSWER_S)
        except Unreachable:
            return False
        return True

    def _wait_for_agent(self):
        if not self._answers():
            self.app.say(f"the agent at {self.app.socket} is gone; this goes on when it is back (Ctrl-C ends it)")
            while not self._answers():
                time.sleep(AGAIN_S)
            self.app.say("the agent is back")


@click.command(cls=Command)
@click.argument("job", required=False, shell_complete=names.jobs)
@click.option("-f", "--follow", is_flag=True, help="Go on with new ones until Ctrl-C, also when the agent is restarted.")
@click.option("--since", metavar="TIME|AGE", help="From 2026-11-21T03:00, or the last 3h.")
@click.option("--level", type=click.Choice(["info", "warning", "error"]), help="Only those of this level, or worse.")
@click.option("--code", "codes", multiple=True, metavar="CODE", help="Only those of this code; any number of times.")
@click.pass_obj
def events(app, job, follow, since, level, codes):
    """What happened, to all jobs or to JOB. With --json one object a line."""
    client = app.client()
    query = {"job": job, "since": since_stamp(since), "level": level, "code": list(codes) or None}
    follower = Follower(app, client, query)
    try:
        for event in follower.read(follow):
            app.data(event, line(event))
            if follow:
                sys.stdout.flush()
    except KeyboardInterrupt:
        return 130 if not follow else 0
    if job and not follower.shown and job not in [known["name"] for known in client.get("/status")["jobs"]]:
        raise NotFound(f"no job called {job}, and no events of one", hint="qrep status lists the jobs", code="no-such-job")
    return 0
