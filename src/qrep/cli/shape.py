"""qrep shape: rates that jobs share, by the hours of the week."""

import click

from qrep import units
from qrep.cli import names
from qrep.cli.app import Group
from qrep.cli.render import table, when
from qrep.cli.volume import given
from qrep.client import part

ALWAYS = "always"


def rate(value):
    return units.format_rate(value)


def listing(shapes, limit):
    top = f"node: {rate(limit)} for all jobs together" if limit else ""
    if not shapes:
        return "\n".join(filter(None, (top, "no shapes\n  action: qrep shape set GROUP --peak RATE")))
    text = table(
        ("SHAPE", "NOW", "PEAK", "HOURS", "OFF-PEAK", "JOBS"),
        [
            (
                shape["name"],
                rate(shape["rate_bytes_per_s"]),
                rate(shape["peak_bytes_per_s"]),
                ", ".join(shape["hours"]) or ALWAYS,
                rate(shape["off_peak_bytes_per_s"]) if shape["hours"] else "-",
                ", ".join(shape["jobs"]) or "-",
            )
            for shape in shapes
        ],
    )
    return text + (f"\n\n{top}" if top else "")


def details(shape):
    rows = [("peak", f"{rate(shape['peak_bytes_per_s'])}  {', '.join(shape['hours']) or ALWAYS}")]
    if shape["hours"]:
        rows.append(("off-peak", rate(shape["off_peak_bytes_per_s"])))
    now = f"{rate(shape['rate_bytes_per_s'])}  {'peak' if shape['is_peak'] else 'off-peak'}"
    rows.append(("now", now + (f", until {when(shape['until'])}" if shape["until"] else "")))
    rows.append(("jobs", ", ".join(shape["jobs"]) or "none"))
    return f"{shape['name']}\n" + "\n".join(f"  {name.ljust(8)}  {value}" for name, value in rows)


@click.group(cls=Group)
@click.pass_context
def shape(ctx):
    """Rates that jobs share, by the hours of the week. Alone: list them.

    The busy jobs of a group get an equal share of its rate each, whatever their number of connections; what one does not use, the others get.
    """
    if ctx.invoked_subcommand is None:
        client = ctx.obj.client()
        shapes, limit = client.get("/shapes"), client.get("/limit")["rate_bytes_per_s"]
        ctx.obj.data({"shapes": shapes, "node": {"rate_bytes_per_s": limit}}, lambda: listing(shapes, limit))


@shape.command("set")
@click.argument("name", metavar="GROUP", shell_complete=names.shapes)
@click.option("--peak", metavar="RATE", help="In the peak hours: 50M, 50MB, 400Mbit or unlimited.")
@click.option(
    "--hours",
    multiple=True,
    metavar="WINDOW",
    help='Peak hours, as often as there are windows: "mon-fri 07:00-19:00", "22:00-06:00", "sat,sun"; always: no windows, always peak.',
)
@click.option("--off-peak", metavar="RATE", help="At all other times (unlimited).")
@click.option("-n", "--dry-run", is_flag=True, help="Check it and say what it would be; change nothing.")
@click.pass_obj
def set_(app, name, hours, dry_run, **rates):
    """Make shaping group GROUP, or change it; what is not given stays.

    It takes effect at once, also for runs that go on. The lowest rate is 64K.
    """
    body = given(**rates) | ({"hours": [] if hours == (ALWAYS,) else list(hours)} if hours else {})
    answer = app.client().call("PATCH", f"/shapes/{part(name)}", body | {"dry_run": dry_run})
    app.data(answer, lambda: ("Would be: " if dry_run else "") + details(answer))


@shape.command()
@click.argument("name", metavar="GROUP", shell_complete=names.shapes)
@click.pass_obj
def show(app, name):
    """Everything about shaping group GROUP."""
    answer = app.client().get(f"/shapes/{part(name)}")
    app.data(answer, lambda: details(answer))


@shape.command()
@click.argument("name", metavar="GROUP", shell_complete=names.shapes)
@click.option("-n", "--dry-run", is_flag=True, help="Say whether it could be deleted; change nothing.")
@click.pass_obj
def delete(app, name, dry_run):
    """Delete shaping group GROUP. Refused while jobs are in it."""
    app.client().call("DELETE", f"/shapes/{part(name)}", **({"dry_run": 1} if dry_run else {}))
    app.data({"would_delete" if dry_run else "deleted": name}, f"{name}: {'would be ' if dry_run else ''}deleted")


@shape.command()
@click.argument("limit", metavar="[RATE]", required=False)
@click.option("-n", "--dry-run", is_flag=True, help="Check it; change nothing.")
@click.pass_obj
def node(app, limit, dry_run):
    """The limit of all jobs of this node together, above the groups: show it, or set it to RATE (or unlimited).

    It takes effect at once and is kept as limits.rate in qrep.toml.
    """
    client = app.client()
    answer = client.call("PATCH", "/limit", {"rate": limit, "dry_run": dry_run}) if limit else client.get("/limit")
    text = f"node: {rate(answer['rate_bytes_per_s'])} for all jobs together"
    app.data(answer, text.replace("node:", "node would have:", 1) if limit and dry_run else text)
