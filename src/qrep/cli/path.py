"""qrep path: the ways to a job's peer, of which one is taken."""

import click

from qrep.cli import names
from qrep.cli.app import Group
from qrep.cli.render import table, when
from qrep.cli.status import path_doing
from qrep.cli.volume import given
from qrep.client import part
from qrep.errors import UsageError


def address(text):
    """(job, number) of `db/2`. Raises UsageError."""
    job, slash, number = text.rpartition("/")
    if not slash or not job or "/" in job or not (number.isascii() and number.isdigit()):
        raise UsageError(f"{text!r} names no path", hint="write JOB/N, such as db/2; qrep path lists them")
    return job, int(number)


def route(path):
    """`10.0.1.1 -> 10.0.1.2`, with the address that was picked where that is left to the system."""
    picked = f"auto ({path['source']})" if path["from"] == "auto" and path.get("source") else path["from"]
    return f"{picked} -> {path['to']}"


def listing(paths):
    if not paths:
        return "no paths: no job has a target on another host\n  action: qrep job create NAME --source VOL --target PEER:VOL"
    return table(
        ("PATH", "FROM -> TO", "STATE", ""),
        [
            (f"{path['job']}/{path['number']}{' *' if path['active'] else ''}", route(path), path["state"], path_doing(path))
            for path in paths
        ],
    )  # fmt: skip


def details(path):
    rows = [
        ("from", path["from"] if path["source"] in (None, path["from"]) else f"{path['from']}, which is {path['source']}"),
        ("to", path["to"]),
        ("state", f"{path['state']}{', since ' + when(path['since']) if path['since'] else ''}"),
        ("why", path["reason"]),
        ("now", path_doing(path) if path["state"] != "down" else ""),
        ("active", "yes" if path["active"] else "no"),
        ("preferred", "yes" if path["preferred"] else "no"),
        ("failures", str(path["failures"])),
    ]
    return f"{path['job']}/{path['number']}\n" + "\n".join(f"  {name.ljust(9)}  {value}" for name, value in rows if value)


@click.group(cls=Group)
@click.pass_context
def path(ctx):
    """The ways to a job's peer, of which one is taken (*). Alone: list them.

    When the connection over one is lost the run goes on over the next, and sends nothing again that was applied. The preferred one is returned
    to when it has been well for a while.
    """
    if ctx.invoked_subcommand is None:
        paths = ctx.obj.client().get("/paths")
        ctx.obj.data(paths, lambda: listing(paths))


@path.command()
@click.argument("job", shell_complete=names.jobs)
@click.option("--from", "source", metavar="ADDR|auto", default="auto", show_default=True, help="The address of this host; auto: the system picks.")
@click.option("--to", required=True, metavar="ADDR|auto", help="An address of the peer; auto: all that it was added with.")
@click.option("-n", "--dry-run", is_flag=True, help="Check it and whether it answers; change nothing.")
@click.pass_obj
def add(app, job, source, to, dry_run):
    """Give JOB one more path, after those that it has."""
    body = given(to=to, dry_run=dry_run) | {"from": source}
    added = app.client().post(f"/jobs/{part(job)}/paths", body, timeout=60)

    def text(one):
        head = f"{'Would add' if dry_run else 'Added'} {one['job']}/{one['number']}: {route(one)}"
        return f"{head}, which answers" if not one["reason"] else f"{head}\n  it does not answer now: {one['reason']}"

    app.data(added, lambda: "\n".join(text(one) for one in added))


@path.command()
@click.argument("path", metavar="JOB/N")
@click.pass_obj
def show(app, path):
    """Everything about path JOB/N."""
    job, number = address(path)
    found = app.client().get(f"/jobs/{part(job)}/paths/{number}")
    app.data(found, lambda: details(found))


@path.command()
@click.argument("path", metavar="JOB/N")
@click.option("-n", "--dry-run", is_flag=True, help="Say whether it answers and what would move; change nothing.")
@click.pass_obj
def use(app, path, dry_run):
    """Prefer path JOB/N from now on. A run that goes on moves there at once, and sends nothing again that was applied."""
    job, number = address(path)
    done = app.client().post(f"/jobs/{part(job)}/paths/{number}/use", {"dry_run": dry_run}, timeout=60)
    would = "would prefer" if dry_run else "prefers"
    moves = f"; the run {'would move' if dry_run else 'moves'} there" if done["moves"] else ""
    app.data(done, f"{job} {would} path {number}: {route(done)}{moves}")


@path.command()
@click.argument("path", metavar="JOB/N")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be removed; change nothing.")
@click.pass_obj
def remove(app, path, dry_run):
    """Remove path JOB/N. The last one stays; those after it are counted anew."""
    job, number = address(path)
    client = app.client()
    if dry_run:
        found = client.get(f"/jobs/{part(job)}/paths/{number}")
        app.data({"would_remove": found}, f"Would remove {job}/{number}: {route(found)}")
        return
    gone = client.call("DELETE", f"/jobs/{part(job)}/paths/{number}", timeout=60)
    app.data(gone, f"Removed {job}/{number}: {route(gone)}")
