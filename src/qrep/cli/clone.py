"""qrep clone: copies within this host, which can become replication when their disks have been carried elsewhere."""

import click

from qrep import units
from qrep.cli import names
from qrep.cli.app import Group
from qrep.cli.everyday import estimate_text, run_text
from qrep.cli.follow import follow_task
from qrep.cli.job import create_text
from qrep.cli.render import table, when
from qrep.cli.volume import given
from qrep.client import part
from qrep.errors import Refused


def listing(clones):
    if not clones:
        return "no clones\n  action: qrep clone create SOURCE TARGET"
    rows = [
        (one["source"], one["target"], units.format_size(one["size"]), one["state"], str(one["counter"] or "-"), when(one["time"])) for one in clones
    ]
    return table(("SOURCE", "TARGET", "SIZE", "STATE", "GENERATION", "TIME"), rows)


def details(clone):
    rows = [("target", f"{clone['target']}  {clone['device'] or ''}".rstrip()), ("size", units.format_size(clone["size"])), ("state", clone["state"])]
    if clone["counter"]:
        fuzzy = "  (fuzzy: read of a live source)" if clone["fuzzy"] else ""
        rows += [("generation", f"{clone['counter']}  {when(clone['time'], precise=True)}{fuzzy}"), ("root", f"{clone['root']}  (b3sum of {clone['device']})")]
    problem = clone["problem"]
    if problem:
        rows += [("problem", problem["text"]), ("action", problem["action"])]
    elif clone["counter"]:
        rows.append(("next", f"qrep clone start {clone['source']} brings what changed; qrep clone convert {clone['source']} makes it a job"))
    else:
        rows.append(("next", f"qrep clone start {clone['source']}"))
    width = max(len(name) for name, _ in rows)
    return f"{clone['source']}\n" + "\n".join(f"  {name.ljust(width)}  {value}" for name, value in rows)


@click.group(cls=Group)
@click.pass_context
def clone(ctx):
    """Copies of volumes within this host, whose disks may then be carried to another one. Alone: list them."""
    if ctx.invoked_subcommand is None:
        clones = ctx.obj.client().get("/clones")
        ctx.obj.data(clones, lambda: listing(clones))


@clone.command()
@click.argument("source", shell_complete=names.volumes)
@click.argument("target", shell_complete=names.volumes)
@click.option("--name", metavar="JOB", help="Name of its job, if it is not to be called as SOURCE.")
@click.option("-n", "--dry-run", is_flag=True, help="Check everything, change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Overwrite what the target carries without asking.")
@click.pass_obj
def create(app, source, target, name, dry_run, yes):
    """Make volume TARGET the clone of volume SOURCE. Its content is replaced by the first start."""
    client, body = app.client(), given(source=source, target=target, name=name, overwrite=yes)
    try:
        answer = client.post("/clones", body | {"dry_run": dry_run}, timeout=60)
    except Refused as refusal:
        if refusal.code != "signature" or dry_run:
            raise
        app.confirm(f"{refusal.message} The first start overwrites it.", yes)
        answer = client.post("/clones", body | {"overwrite": True}, timeout=60)
    text = create_text(answer).replace(f"job {answer['name']} (clone)", "clone").replace(f"qrep start {answer['name']}", f"qrep clone start {source}")
    app.data(answer, text if not dry_run else text.replace("Created", "Would create", 1))


@clone.command()
@click.argument("source", shell_complete=names.volumes)
@click.option("--wait", is_flag=True, help="Follow it to its end.")
@click.option("-n", "--dry-run", is_flag=True, help="Say how much would be copied; change nothing.")
@click.pass_obj
def start(app, source, wait, dry_run):
    """Copy SOURCE to its clone: all of it the first time, then what changed."""
    client = app.client()
    if dry_run:
        name = client.get(f"/clones/{part(source)}")["job"]
        answer = follow_task(app, client, client.get(f"/jobs/{part(name)}/estimate", timeout=120), f"{source}: scanning")
        app.data(answer, estimate_text("", answer).replace("Would send", "Would copy"))
        return
    task = client.post(f"/clones/{part(source)}/start")
    if not wait:
        app.data(task, f"{source}: started")
        return
    result = follow_task(app, client, task, source)
    app.data(result, run_text(source, result))


@clone.command()
@click.argument("source", shell_complete=names.volumes)
@click.pass_obj
def show(app, source):
    """The clone of SOURCE: how far it is, and its root, which is what b3sum says of it."""
    answer = app.client().get(f"/clones/{part(source)}")
    app.data(answer, lambda: details(answer))


@clone.command()
@click.argument("source", shell_complete=names.volumes)
@click.option("-n", "--dry-run", is_flag=True, help="Say what it would be; change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def convert(app, source, dry_run, yes):
    """Turn the finished clone of SOURCE into a job that waits for its disk at another host. This cannot be undone.

    The clone's device is let go, so that its disks can be pulled. What is written to SOURCE from then on is found, and sent, by the first run
    after qrep job rebuild.
    """
    client, address = app.client(), f"/clones/{part(source)}/convert"
    plan = client.post(address, {"dry_run": True}, timeout=60)
    name, disk = plan["job"], plan["device"].removeprefix("/dev/")
    tracking = f"{name} keeps tracking changes from generation {plan['counter']}."
    if dry_run:
        app.data({"would_convert": plan}, f"This could not be undone. {tracking.replace('keeps', 'would keep')}")
        return
    app.confirm(f"This cannot be undone. {tracking}", yes)
    answer = client.post(address, timeout=60)
    app.data(answer, f"Move the disks of {disk} to the target site, then: qrep job rebuild {name} --target PEER:VOLUME")


@clone.command()
@click.argument("source", shell_complete=names.volumes)
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be forgotten; change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def delete(app, source, dry_run, yes):
    """Forget the clone of SOURCE. Its device keeps its bytes, and is let go."""
    client = app.client()
    known = client.get(f"/clones/{part(source)}")
    what = f"The clone {known['target']} of {source} would be forgotten; {known['device']} keeps its bytes and would be let go."
    if dry_run:
        app.data({"would_delete": known}, what)
        return
    app.confirm(what.replace("would be forgotten", "is forgotten").replace("would be let", "is let"), yes)
    answer = client.call("DELETE", f"/clones/{part(source)}", timeout=60)
    app.data(answer, f"{source}: its clone is forgotten")
