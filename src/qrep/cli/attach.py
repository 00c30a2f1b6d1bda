"""qrep attach and detach: a sync point as a block device or over NBD, while replication goes on."""

import click

from qrep import units
from qrep.cli import names
from qrep.cli.app import Command, printable
from qrep.cli.follow import follow_task
from qrep.cli.render import table, when
from qrep.client import part
from qrep.errors import NotFound, UsageError


def where(each):
    return each["device"] or ", ".join([f"nbd+unix:///?socket={each['socket']}", *(f"nbd://{address}" for address in each["addresses"])])


def listing(found):
    if not found:
        return "nothing is attached"
    rows = []
    for each in found:
        space = each.get("space")
        kind = "read-only" if each["read_only"] or space is None else f"{units.format_size(space['used'])} written of {units.format_size(space['limit'])}"
        rows.append((each["name"], where(each), kind, when(each["since"]) if each["since"] else "-", each["in_use"] or "not in use"))
    text = table(("POINT", "AS", "KIND", "SINCE", ""), rows)
    problems = [f"{each['name']}: {printable(each['error'])}\n  action: {action(each)}" for each in found if each["error"]]
    return text + ("\n\n" + "\n".join(problems) if problems else "")


def action(each):
    return ("umount it, then " if "mounted" in each["in_use"] else "") + f"qrep detach {each['name']}"


def described(each):
    lines = [f"{each['name']}: {where(each)}"]
    if each["device"]:
        lines.append(f"  nbd+unix:///?socket={each['socket']}")
    if each["addresses"]:
        lines.append("  anybody who reaches this address can read it" + ("" if each["read_only"] else " and write to it") + ": NBD is plain")
    if each["space"]:
        lines.append(f"  what is written to it is kept apart, {units.format_size(each['space']['limit'])} at most, and thrown away by qrep detach {each['name']}")
    return "\n".join(lines)


@click.command(cls=Command)
@click.argument("point", metavar="VOL[@POINT]", required=False, shell_complete=names.volumes)
@click.option("--read-only", is_flag=True, help="Let nobody write to it.")
@click.option("--nbd", metavar="[ADDR:PORT]", is_flag=False, flag_value="unix", help="No device: serve NBD on a unix socket, and on ADDR:PORT if given (plain).")
@click.option("--space", metavar="SIZE", help="How much may be written to it (by default half of what is free in the state directory).")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be attached; change nothing.")
@click.pass_obj
def attach(app, point, read_only, nbd, space, dry_run):
    """Show the content of VOL@POINT (without @POINT: of the newest) as a block device. Replication goes on; the target is not touched. Alone it lists."""
    client = app.client()
    if point is None:
        if read_only or nbd or space or dry_run:
            raise UsageError("VOL[@POINT] is missing", hint="qrep snapshot lists sync points")
        found = client.get("/attachments")
        app.data(found, lambda: listing(found))
        return
    volume, _at, name = point.partition("@")
    if dry_run:
        app.data(*would(client, volume, name, read_only))
        return
    body = {"volume": volume, "read_only": read_only}
    body |= {key: value for key, value in (("point", name), ("space", space), ("nbd", "" if nbd == "unix" else nbd)) if value or key == "nbd" and nbd}
    made = follow_task(app, client, client.post("/attachments", body), f"{point}: attaching")
    app.data(made, lambda: described(made))


def would(client, volume, name, read_only):
    """(value, text) of --dry-run."""
    points = client.get(f"/volumes/{part(volume)}/snapshots")
    found = next((each for each in points if name in ("", each["point"], each["id"], each.get("name"))), None)
    if found is None:
        raise NotFound(f"{volume}@{name or 'newest'}: no such sync point", hint=f"qrep snapshot {volume} lists them", code="no-such-point")
    kind = "read-only" if read_only else "writable, apart from the target"
    return {"would_attach": f"{volume}@{found['point']}", "time": found["time"], "read_only": read_only}, (
        f"Would attach {volume}@{found['point']} ({when(found['time'], precise=True)}), {kind}."
    )


def canonical(client, point, attached):
    """VOLUME@NUMBER for a point that was named by its name or its generation, if it is there; else `point`."""
    volume, at, name = point.partition("@")
    if not at or any(point == each["name"] for each in attached) or all(volume != each["volume"] for each in attached):
        return point
    ids = {each["id"]: each["name"] for each in attached if each["volume"] == volume}
    points = client.get(f"/volumes/{part(volume)}/snapshots")
    return next((ids[each["id"]] for each in points if name in (each["id"], each.get("name")) and each["id"] in ids), point)


@click.command(cls=Command)
@click.argument("point", metavar="VOL[@POINT]", shell_complete=names.volumes)
@click.option("-n", "--dry-run", is_flag=True, help="Say what would go; change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def detach(app, point, dry_run, yes):
    """End an attachment. What was written to it is thrown away."""
    client = app.client()
    attached = client.get("/attachments")
    point = canonical(client, point, attached)
    found = [each for each in attached if point in (each["name"], each["volume"])]
    if len(found) > 1:
        raise UsageError(f"of {point} are attached: {', '.join(each['name'] for each in found)}", hint="name one of them")
    if not found:
        raise NotFound(f"{point} is not attached", hint="qrep attach lists what is", code="not-attached")
    written = sum(each["written"] for each in found)
    if dry_run:
        app.data({"would_detach": [each["name"] for each in found], "written": written}, f"{point}: would be detached, {units.format_size(written)} written to it thrown away.")
        return
    if written:
        app.confirm(f"{point}: {units.format_size(written)} were written to it and are thrown away.", yes)
    answer = client.call("DELETE", f"/attachments/{part(point)}", timeout=120)
    app.data(answer, f"{answer['detached']}: detached")
