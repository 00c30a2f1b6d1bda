"""qrep connection: the data connections of a path, which carry a run together."""

import click

from qrep import units
from qrep.cli import names
from qrep.cli.app import Group, printable
from qrep.cli.path import address
from qrep.cli.render import table
from qrep.cli.volume import given
from qrep.client import part
from qrep.errors import UsageError


def place_of(text):
    """(job, path, connection) of `db/1/2`. Raises UsageError."""
    path, slash, number = text.rpartition("/")
    if not slash or "/" not in path or not (number.isascii() and number.isdigit()):
        raise UsageError(f"{text!r} names no connection", hint="write JOB/N/M, such as db/1/2; qrep connection lists them")
    return *address(path), int(number)


def name(one):
    return f"{one['job']}/{one['path']}/{one['number'] or '-'}"


def route(one):
    return f"{one['from']} -> {one['to']}" if one["from"] else "on this host" if one["number"] else "removed"


def doing(one):
    """What it does now, or why it does nothing."""
    if one["state"] == "down":
        return f"down: {printable(one['text'])}"
    if one["state"] in ("idle", "connecting"):
        return one["state"]
    return f"{one['state']}  {units.format_rate(one['rate_bytes_per_s'])}, {units.format_size(one['sent'])} sent"


def listing(connections):
    if not connections:
        return "no connections: there is no job\n  action: qrep job create NAME --source VOL --target [PEER:]VOL"
    return table(("CONNECTION", "FROM -> TO", "STATE"), [(name(one), route(one), doing(one)) for one in connections])


@click.group(cls=Group)
@click.pass_context
def connection(ctx):
    """The data connections of a job's path, 1 to 16, which carry a run together. Alone: list them.

    All of them take what is to be sent from one list, so a slow one does not hold the others back. They may be added and removed while a run
    goes on.
    """
    if ctx.invoked_subcommand is None:
        connections = ctx.obj.client().get("/connections")
        ctx.obj.data(connections, lambda: listing(connections))


@connection.command()
@click.argument("path", metavar="JOB/N", shell_complete=names.jobs)
@click.option("--from", "source", metavar="ADDR|auto", help="Its address of this host; auto: the system picks. Without: that of the path.")
@click.option("--to", metavar="ADDR", help="Its address of the peer. Without: that of the path.")
@click.option("-n", "--dry-run", is_flag=True, help="Check it and whether it answers; change nothing.")
@click.pass_obj
def add(app, path, source, to, dry_run):
    """Give path JOB/N one more connection. A run that goes on over it uses it at once."""
    job, number = address(path)
    body = given(to=to, dry_run=dry_run) | ({"from": source} if source else {})
    added = app.client().post(f"/jobs/{part(job)}/paths/{number}/connections", body, timeout=60)
    text = f"{'Would add' if dry_run else 'Added'} {name(added)}: {route(added)}"
    app.data(added, text if not added["reason"] else f"{text}\n  it does not answer now: {printable(added['reason'])}")


@connection.command()
@click.argument("connection", metavar="JOB/N/M")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be removed; change nothing.")
@click.pass_obj
def remove(app, connection, dry_run):
    """Remove connection JOB/N/M: it sends what it has taken and ends. The last one stays; those after it are counted anew."""
    job, number, place = place_of(connection)
    gone = app.client().post(f"/jobs/{part(job)}/paths/{number}/connections/{place}/remove", {"dry_run": dry_run}, timeout=60)
    left = gone["connections"]
    said = f"{'Would remove' if dry_run else 'Removed'} {name(gone)}: {route(gone)}"
    app.data(gone, f"{said}\n  {left} connection{'s' if left > 1 else ''} {'would be ' if dry_run else ''}left")
