"""qrep snapshot: the sync points of a target volume."""

import os

import click

from qrep import units
from qrep.cli import names
from qrep.cli.app import Command, Group
from qrep.client import part
from qrep.cli.everyday import follow_all, run_text
from qrep.cli.follow import follow_task
from qrep.cli.render import table, when
from qrep.errors import NotFound, Refused, UsageError


class SnapshotGroup(Group):
    """`qrep snapshot VOL` lists the sync points of VOL, `qrep snapshot VERB ...` does something."""

    def resolve_command(self, ctx, args):
        if args and args[0] not in self.commands:
            return "list", self.commands["list"], args
        return super().resolve_command(ctx, args)


def split_point(address):
    volume, at, point = address.rpartition("@")
    if not at or not volume or not point:
        raise UsageError(
            f"{address!r} does not name a sync point", hint="write VOLUME@POINT; qrep snapshot VOLUME lists them"
        )
    return volume, point


def kind(point):
    if point.get("fuzzy"):
        return "fuzzy"
    if point.get("fuzzy", False) is None:
        return "not known"
    return "frozen" + (f", {point['consistency']}-consistent" if point.get("consistency") else "")


def listing(volume, points):
    if not points:
        return f"{volume}: no sync point yet"
    named = any(point.get("name") for point in points)
    return table(
        ("POINT", *(("NAME",) if named else ()), "TIME", "KIND", "UNDO", ""),
        [
            (
                f"{volume}@{point['point']}",
                *((point.get("name", ""),) if named else ()),
                when(point["time"], precise=True),
                kind(point),
                units.format_size(point.get("undo_bytes") or 0),
                "current" if point.get("current") else "",
            )
            for point in points
        ],
    )


@click.group(cls=SnapshotGroup)
@click.pass_context
def snapshot(ctx):
    """Sync points of a target volume. `qrep snapshot VOL` lists them."""
    if ctx.invoked_subcommand is None:
        client = ctx.obj.client()
        points = {
            volume["name"]: client.get(f"/volumes/{part(volume['name'])}/snapshots")
            for volume in client.get("/volumes")
            if volume.get("role") == "replica"
        }
        ctx.obj.data(
            points,
            lambda: (
                "\n\n".join(listing(name, found) for name, found in points.items()) or "no target volumes on this host"
            ),
        )


@snapshot.command("list", hidden=True)
@click.argument("volume", shell_complete=names.volumes)
@click.pass_obj
def list_(app, volume):
    """The sync points of VOLUME."""
    points = app.client().get(f"/volumes/{part(volume)}/snapshots")
    app.data(points, lambda: listing(volume, points))


@snapshot.command()
@click.argument("point", metavar="VOL@POINT")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be put back; change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def rollback(app, point, dry_run, yes):
    """Bring the target volume back to VOL@POINT. What it holds now stays as a sync point."""
    volume, name = split_point(point)
    client = app.client()
    path = f"/volumes/{part(volume)}/rollback"
    plan = follow_task(app, client, client.post(path, {"point": name, "dry_run": True}), f"{point}: looking")
    what = f"{volume} goes back to {when(plan['time'], precise=True)}: {units.format_size(plan['bytes'])} are put back."
    if dry_run:
        app.data(plan, what.replace(" goes ", " would go ").replace(" are put", " would be put"))
        return
    app.confirm(what, yes)
    result = follow_task(app, client, client.post(path, {"point": name}), f"{point}: rolling back")
    app.data(
        result,
        f"{volume} is at {when(plan['time'], precise=True)} again (generation {result['counter']})"
        + (f"\n  root as recorded {result['root']}" if result.get("root") else ""),
    )


def would_copy(client, volume, name, target):
    if not any(name in (point["point"], point.get("id"), point.get("name")) for point in client.get(f"/volumes/{part(volume)}/snapshots")):
        raise NotFound(f"{volume}@{name}: no such sync point", hint=f"qrep snapshot {volume} lists them", code="no-such-point")
    return {"point": name, "target": os.path.abspath(target), "size": client.get(f"/volumes/{part(volume)}")["size"]}


@snapshot.command()
@click.argument("point", metavar="VOL@POINT")
@click.argument("target", type=click.Path())
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be written; change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Overwrite what TARGET carries without asking.")
@click.pass_obj
def copy(app, point, target, dry_run, yes):
    """Write the content of VOL@POINT to TARGET, a device or a file (made if missing). What a larger device has behind it stays."""
    volume, name = split_point(point)
    client = app.client()
    if dry_run:
        would = would_copy(client, volume, name, target)
        if not yes and os.path.isfile(target):
            raise Refused(f"{target} exists", hint="name a new file, or give -y to overwrite it", code="exists")
        app.data(would, f"Would write {units.format_size(would['size'])} of {point} to {target}.")
        return
    body = {"point": name, "target": os.path.abspath(target), "overwrite": yes}
    path = f"/volumes/{part(volume)}/copy"
    try:
        result = follow_task(app, client, client.post(path, body), f"{point}: copying")
    except Refused as refusal:
        if refusal.code != "signature":
            raise
        app.confirm(f"{refusal.message} It is overwritten.", yes)
        result = follow_task(app, client, client.post(path, body | {"overwrite": True}), f"{point}: copying")
    said = "" if result["checked"] else "\n  its root was not recorded: nothing here vouches for this content"
    app.data(result, f"{target}: {units.format_size(result['size'])} of {point}\n  root {result['root']}{said}")


@snapshot.command(cls=Command)
@click.argument("point", metavar="VOL@POINT")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would go; change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def delete(app, point, dry_run, yes):
    """Give up VOL@POINT, any but the present one, and the undo that only it needs. The others stay."""
    volume, name = split_point(point)
    client, path = app.client(), f"/volumes/{part(volume)}/delete-point"
    plan = follow_task(app, client, client.post(path, {"point": name, "dry_run": True}), f"{point}: looking")
    work = f"; the undo files around it are merged, {units.format_size(plan['bytes'])}" if plan.get("merged") else ""
    what = f"{point}: this sync point goes{work}."
    if dry_run:
        app.data(plan | {"would_delete": point}, what.replace(" goes", " would go").replace(" are merged", " would be merged"))
        return
    app.confirm(what, yes)
    result = follow_task(app, client, client.post(path, {"point": name}), f"{point}: merging")
    app.data(result, f"{point}: deleted")


@snapshot.command(cls=Command)
@click.argument("volume", shell_complete=names.volumes)
@click.option("-n", "--dry-run", is_flag=True, help="Say which sync points would go; change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def thin(app, volume, dry_run, yes):
    """Give up the sync points of VOLUME that neither its job nor its floor asks for: what happens by itself after each run."""
    client, path = app.client(), f"/volumes/{part(volume)}/thin"
    plan = follow_task(app, client, client.post(path, {"dry_run": True}), f"{volume}: looking")
    gone = ", ".join(f"{volume}@{point}" for point in plan["gone"])
    if dry_run or not plan["gone"]:
        app.data(plan, f"{len(plan['gone'])} of {len(plan['gone']) + len(plan['keep'])} sync points would go: {gone}" if gone else f"{volume}: none would go")
        return
    app.confirm(f"{volume}: these sync points go: {gone}.", yes)
    result = follow_task(app, client, client.post(path, {}), f"{volume}: merging")
    app.data(result, f"{volume}: {len(result['gone'])} sync points are gone, {len(result['keep'])} are kept")


@snapshot.command(cls=Command)
@click.argument("volume", metavar="VOL[@NAME]", shell_complete=names.volumes)
@click.option("-n", "--dry-run", is_flag=True, help="Say which jobs would run; change nothing.")
@click.pass_obj
def create(app, volume, dry_run):
    """Make a sync point of source volume VOL now, at the target of each of its jobs; it bears NAME there."""
    volume, at, name = volume.partition("@")
    if at and not name:
        raise UsageError(f"{volume}@ names no sync point", hint="write VOLUME, or VOLUME@NAME")
    client, path = app.client(), f"/volumes/{part(volume)}/snapshots"
    body = {"name": name} if name else {}
    if dry_run:
        plan = client.post(path, body | {"dry_run": True})
        app.data(plan, f"Would run {', '.join(plan['jobs'])}.")
        return
    results = follow_all(app, client, client.post(path, body), "")
    app.data(results, "\n".join(run_text(job, result) for job, result in results.items()))
