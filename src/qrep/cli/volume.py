"""qrep volume: the devices that qrep knows by name."""

import shlex

import click

from qrep import units
from qrep.cli import names
from qrep.cli.app import Group, printable
from qrep.client import part
from qrep.cli.render import table
from qrep.errors import Refused, UsageError


def snapshots_text(volume):
    snapshots = volume["snapshots"]
    return snapshots["backend"] + (" (live: sync points are fuzzy)" if snapshots.get("fuzzy") else "")


def line(volume):
    snapshots = volume["snapshots"]
    space = f" ({snapshots['reason']})" if snapshots["backend"].startswith("lvm") else ""
    return f"{volume['name']}  {volume['device']}  {units.format_size(volume['size'])}  snapshots: {snapshots_text(volume)}{space}"


def listing(volumes):
    if not volumes:
        return "no volumes\n  action: qrep volume add NAME DEVICE"
    text = table(
        ("VOLUME", "DEVICE", "SIZE", "SNAPSHOTS", "ROLE", "JOBS"),
        [
            (
                volume["name"],
                volume["device"],
                units.format_size(volume["size"]) if volume.get("size") else "missing",
                snapshots_text(volume),
                volume.get("role") or "-",
                ", ".join(volume.get("jobs", [])) or "-",
            )
            for volume in volumes
        ],
    )
    problems = [line for volume in volumes for line in problem_lines(volume)]
    return text + ("\n\n" + "\n".join(problems) if problems else "")


def problem_lines(volume):
    """What keeps it out of service and what to do; nothing if all is well."""
    problem = volume.get("problem")
    if not problem:
        return []
    action = problem.get("hint") or f"qrep volume show {volume['name']}"
    return [f"{volume['name']}: {printable(problem['message'])}", f"{' ' * len(volume['name'])}  action: {printable(action)}"]


def size_text(volume):
    if not volume.get("size"):
        return "unknown"
    sectors = f", sectors of {volume['sector_size']}" if volume.get("sector_size") else ", when it was last seen"
    return f"{units.format_size(volume['size'])} ({volume['size']} bytes){sectors}"


def floor_text(volume):
    """What stays whatever a source asks for."""
    parts = [f"the newest {volume['keep_points']}"] if volume.get("keep_points") else []
    parts += [f"all younger than {volume['keep_for']}"] if volume.get("keep_for") else []
    return " and ".join(parts) + " stay, whatever a source asks for" if parts else "none: the source says how many sync points stay"


def details(volume):
    rows = [
        ("id", volume["id"]),
        ("device", volume["device"]),
        ("size", size_text(volume)),
        (
            "snapshots",
            snapshots_text(volume)
            + (f": {volume['snapshots']['reason']}" if volume["snapshots"].get("reason") else ""),
        ),
        ("role", volume.get("role") or "none yet"),
        ("accepts", ", ".join(volume.get("accept", [])) or "no peer"),
        ("jobs", ", ".join(volume.get("jobs", [])) or "none"),
    ]
    undo = volume.get("undo")
    if undo:
        rows.append(("undo space", f"{units.format_size(undo['used'])} used of {units.format_size(undo['limit'])}"))
        rows.append(("sync points", f"{volume.get('sync_points', 0)} kept"))
        if volume.get("out_of_reach"):
            rows.append(("out of reach", printable(volume["out_of_reach"])))
        rows.append(("floor", floor_text(volume)))
        rows.append(("open generation", f"given up after {volume.get('open_generation') or '24h'} without a run"))
    rows += [
        (name.replace("_", " "), value)
        for name, value in (volume.get("identity") or {}).items()
        if value and name != "size"
    ]
    width = max(len(name) for name, _ in rows)
    lines = [volume["name"], *(f"  {name.ljust(width)}  {value}" for name, value in rows)]
    return "\n".join([*lines, *problem_lines(volume)])


@click.group(cls=Group)
@click.pass_context
def volume(ctx):
    """Devices that qrep knows by name. Alone: list them."""
    if ctx.invoked_subcommand is None:
        volumes = ctx.obj.client().get("/volumes")
        ctx.obj.data(volumes, lambda: listing(volumes))


def words(_ctx, _option, text):
    """The argv of a command as it is typed. None if nothing was said, [] for none."""
    try:
        return None if text is None else shlex.split(text)
    except ValueError as err:
        raise UsageError(f"{text!r} is no command: {str(err).lower()}", hint="quote it as for a shell") from err


MADE = {"image": "a sparse image file", "thin": "a thin volume of pool {group}/{pool}", "linear": "a logical volume of {group}"}
SETTINGS = (
    click.option(
        "--snapshots", type=click.Choice(["auto", "lvm", "reflink", "none"]), help="How the volume is frozen for a run."
    ),
    click.option("--snapshot-space", metavar="SIZE|20%", help="What a snapshot may take that needs space of its own (classic LVM; default: 20%)."),
    click.option(
        "--freeze-before", metavar="COMMAND", callback=words,
        help="Run before each snapshot, to bring to rest what writes to the volume. Words as in a shell, but no shell is involved; '' for none.",
    ),
    click.option("--freeze-after", metavar="COMMAND", callback=words, help="Run after it, also if the first one failed."),
    click.option("--freeze-timeout", metavar="TIME", help="How long each of them may take, and a filesystem stay frozen (default: 10s)."),
    click.option(
        "--undo", metavar="DIR", type=click.Path(), help="Where before-images are kept (default: the state directory)."
    ),
    click.option("--undo-space", metavar="SIZE|2x", help="How much they may take, absolute or in volumes."),
    click.option(
        "--open-generation", metavar="TIME",
        help="How long what an unfinished run applied is kept for the next one; then it is rolled back (default: 24h).",
    ),
    click.option(
        "--keep-points", metavar="N", type=click.IntRange(0, 256),
        help="As a target: the newest N earlier sync points stay, whatever a source asks for (0).",
    ),
    click.option("--keep-for", metavar="TIME|none", help="And so do all that are younger than this: 14d; \"none\" for no age."),
    click.option(
        "--accept", metavar="PEER", multiple=True, shell_complete=names.peers, help="A peer that may replicate onto this volume; none by default."
    ),
)


def settings(command):
    for option in reversed(SETTINGS):
        command = option(command)
    return command


def given(**values):
    """Only what was said."""
    if values.get("keep_for") == "none":
        values["keep_for"] = ""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value not in (None, ())
    }


@volume.command()
@click.argument("name")
@click.argument("device", type=click.Path())
@settings
@click.option("--leaf", metavar="SIZE", help="Comparing and sending unit, a power of two, 4K (default) to 1M. A changed block of 4 KiB costs a leaf on the wire; larger leaves make the map smaller.")
@click.option("--granule", metavar="SIZE", help="Scheduling unit, a power of two, 8M by default.")
@click.pass_obj
def add(app, name, device, **options):
    """Give DEVICE (a block device or an image file) a NAME. Writes nothing to it."""
    import os

    answer = app.client().post("/volumes", given(name=name, device=os.path.abspath(device), **options))
    app.data(answer, lambda: line(answer))


@volume.command()
@click.argument("name")
@click.option("--size", metavar="SIZE", required=True, help="Such as 500G.")
@click.option("--in", "place", metavar="DIR|VG", required=True, help="A directory (with a slash, such as ./images) for a sparse image file; or a volume group, or VG/POOL.")
@settings
@click.option("--leaf", metavar="SIZE", help="Comparing and sending unit, a power of two, 4K (default) to 1M. A changed block of 4 KiB costs a leaf on the wire; larger leaves make the map smaller.")
@click.option("--granule", metavar="SIZE", help="Scheduling unit, a power of two, 8M by default.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be made; change nothing.")
@click.pass_obj
def create(app, name, size, place, dry_run, **options):
    """Make storage of SIZE and give it a NAME: a sparse image file NAME.img in a directory, or a logical volume NAME in a volume group, a thin
    one where the group has one thin pool. What was never written needs no first copy."""
    import os

    if place.startswith(".") or place == "/" or ("/" in place and os.path.isdir(place)):
        place = os.path.abspath(place)
    body = given(name=name, size=size, **options) | {"in": place}
    if dry_run:
        plan = app.client().post("/volumes/create", body | {"dry_run": True})
        app.data(plan, lambda: f"Would make {plan['device']}, {MADE[plan['kind']].format(**plan)}, {units.format_size(plan['size'])}, and call it {name}.")
        return
    answer = app.client().call("POST", "/volumes/create", body, timeout=120)
    app.data(answer, lambda: line(answer))


@volume.command("set")
@click.argument("name", shell_complete=names.volumes)
@settings
@click.option("--accept-nobody", is_flag=True, help="No peer may replicate onto this volume any more.")
@click.pass_obj
def set_(app, name, accept_nobody, **options):
    """Change settings of volume NAME. --accept replaces the peers that were accepted."""
    changes = given(**options)
    if accept_nobody:
        if "accept" in changes:
            raise UsageError("--accept and --accept-nobody contradict each other", hint="give one of them")
        changes["accept"] = []
    if not changes:
        raise UsageError("nothing to change was given", hint=f"qrep volume show {name} shows the settings; qrep volume set --help lists them")
    answer = app.client().call("PATCH", f"/volumes/{part(name)}", changes)
    app.data(answer, lambda: line(answer))


@volume.command()
@click.argument("name", shell_complete=names.volumes)
@click.pass_obj
def show(app, name):
    """Everything about volume NAME."""
    answer = app.client().get(f"/volumes/{part(name)}")
    app.data(answer, lambda: details(answer))


@volume.command()
@click.argument("name", shell_complete=names.volumes)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be forgotten; change nothing.")
@click.pass_obj
def remove(app, name, yes, dry_run):
    """Forget volume NAME: its map, undo and sync points; the device keeps its bytes."""
    client = app.client()
    known = client.get(f"/volumes/{part(name)}")
    if known.get("jobs"):
        raise Refused(
            f"volume {name} is used by {', '.join(known['jobs'])}",
            hint=f"qrep job delete {known['jobs'][0]}",
            code="volume-in-use",
        )
    what = f"{name}: {known.get('sync_points', 0)} sync points and the map of {known['device']} would be forgotten; its bytes stay."
    if dry_run:
        app.data({"would_remove": known}, what)
        return
    app.confirm(what.replace("would be", "are"), yes)
    client.call("DELETE", f"/volumes/{part(name)}", timeout=60)
    app.data({"removed": name}, f"{name}: removed")
