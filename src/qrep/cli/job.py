"""qrep job: which volume is replicated where."""

import click

from qrep import units
from qrep.cli import hints, names, roles
from qrep.cli.app import Group
from qrep.cli.rebuild import rebuild
from qrep.client import part
from qrep.cli.render import table, when, when_there
from qrep.cli.volume import given
from qrep.errors import Refused, UsageError


def listing(jobs):
    if not jobs:
        return "no jobs\n  action: qrep job create NAME --source VOL --target [PEER:]VOL"
    grouped = any(job.get("group") for job in jobs)
    return table(
        ("JOB", "MODE", "SOURCE -> TARGET", *(["GROUP"] if grouped else []), "CONNECTIONS", "SYNC POINTS", "SCHEDULE", "NEXT", "STATE"),
        [
            (
                job["name"],
                job["mode"],
                f"{job['source']} -> {job['target'] or '(moving)'}",
                *([job.get("group") or "-"] if grouped else []),
                job["connections"],
                job["sync_points"],
                shortened(job.get("schedule") or "-"),
                when_there((job.get("next") or [None])[0]),
                job["state"],
            )
            for job in jobs
        ],
    )


def shortened(text, most=30):
    return text if len(text) <= most else f"{text[: most - 3]}..."


def schedule_rows(job):
    """When it runs by itself: the schedule, its next times (in the time zone of the agent), and what else times it."""
    rows = [("schedule", job.get("schedule") or "none; it runs when it is started")]
    if job.get("schedule"):
        rows += [("next" if number == 0 else "", when_there(stamp)) for number, stamp in enumerate(job.get("next") or [])]
        rows[1:2] = [(name, f"{value}  ({job['next'][0][19:]})") for name, value in rows[1:2]]
        rows.append(("missed times", {"run": "one run at start", "skip": "left out"}[job["missed"]]))
    verify = job.get("verify") or {}
    if verify.get("schedule"):
        following = f", next {when_there(verify['next'][0])}" if verify.get("next") else ""
        rows.append(("verify", f"{verify['schedule']}{following}" + (f", at most {verify['rate']} a second" if verify.get("rate") else "")))
    return [*rows, ("rpo", (job.get("rpo") or "none") + (" (passed)" if job.get("rpo_passed") else ""))]


def details(job):
    rows = [
        ("id", job["id"]),
        ("mode", job["mode"]),
        ("source", job["source"]),
        ("target", job["target"] or "its disk is on its way"),
        ("initial", job.get("initial") or "-"),
        ("connections", job["connections"]),
        ("sync points", f"{job['sync_points']}" + (f", and {job['keep']}" if job.get("keep") else "")),
        ("timeout", job.get("timeout") or "-"),
        ("shape", job.get("shape") or "none"),
        ("group", job.get("group") or "none"),
        *schedule_rows(job),
        ("state", job["state"]),
        ("last sync point", when(job.get("last_sync_point"), precise=True)),
    ]
    if job.get("generation"):
        rows.append(("generation", f"{job['counter']}  {job['generation']}"))
    if job.get("root"):
        rows.append(("root", job["root"]))
    if job.get("nice") is not None:
        rows.append(("nice", "yes" if job["nice"] else "no"))
    if job.get("compress") is not None:
        rows.append(("compress", job["compress"]))
    rows += hints.rows(job)
    width = max(len(name) for name, _ in rows)
    return f"{job['name']}\n" + "\n".join(f"  {name.ljust(width)}  {value}" for name, value in rows)


@click.group(cls=Group)
@click.pass_context
def job(ctx):
    """Which volume is replicated where. Alone: list them."""
    if ctx.invoked_subcommand is None:
        jobs = ctx.obj.client().get("/jobs")
        ctx.obj.data(jobs, lambda: listing(jobs))


SETTINGS = (
    click.option(
        "--initial",
        type=click.Choice(["auto", "full", "compare"]),
        help="First run: send all, or compare digests first.",
    ),
    click.option(
        "--sync-points",
        type=click.IntRange(0, 256),
        metavar="N",
        help="How many earlier sync points the target keeps (7).",
    ),
    click.option(
        "--keep", metavar="GRID", help='Sync points kept besides, the newest of so many periods: "24x1h 7x1d 4x1w"; "none" for no grid.'
    ),
    click.option("--timeout", metavar="TIME", help="How long a silent peer is waited for (30s)."),
    click.option("--shape", metavar="GROUP|none", shell_complete=names.shapes, help="The shaping group that the job shares a rate with."),
    click.option("--connections", type=click.IntRange(1, 16), metavar="N", help="Connections of one run, 1 to 16 (2)."),
    click.option(
        "--schedule", metavar="TIMES", help='When it runs by itself: cron entries separated by ";", or "every 15m"; "none" for never.'
    ),
    click.option(
        "--missed",
        type=click.Choice(["run", "skip"]),
        help="Scheduled times that passed while the agent was down: one run at its start, or none (run).",
    ),
    click.option(
        "--verify-schedule", metavar="TIMES", help='When the two sides are compared by themselves, as --schedule, such as "0 3 * * sun"; "none" for never.'
    ),
    click.option("--verify-rate", metavar="RATE", help='How much a verify may read a second at each end; "none" for as much as it can.'),
    click.option(
        "--group", metavar="NAME",
        help='Commit it together with all jobs of this group, of sources frozen at one moment, or none of them; "none" takes it out.',
    ),
    click.option(
        "--nice/--no-nice", default=None, help="Read the source so that others who use it hardly notice; a run takes longer then, while they do (no)."
    ),
    click.option(
        "--compress", type=click.Choice(["auto", "on", "off"]),
        help="Pack data on its way to another host: auto, where that is faster; on, whatever gets smaller (auto).",
    ),
    click.option("--hints", type=click.Choice(["auto", "off"]), help="Read only what the source's filesystem or driver says has changed, where it can (auto)."),
    click.option("--hint-sample", metavar="SHARE", help="How much of the rest is read in every run all the same: auto, or a percentage like 5%."),
    click.option("--rpo", metavar="TIME", help='How old the last sync point may become before qrep warns; "none" for no matter.'),
)


def cleared(options):
    """The options as the agent takes them: what a person writes as `none` is nothing in the file."""
    return {key: "" if key in ("shape", "schedule", "rpo", "keep", "verify_schedule", "verify_rate", "group") and value == "none" else value for key, value in options.items()}


def settings(command):
    for option in reversed(SETTINGS):
        command = option(command)
    return command


def create_text(answer):
    name = answer["name"]
    first = "full copy" if answer.get("full", True) else "compare digests"
    if answer.get("clean"):
        first = f"{answer['source']} was never written; that is proved on both sides and nothing is copied"
    schedule = f"\n  schedule: {answer['schedule']}, next {when_there(answer['next'][0])} ({answer['next'][0][19:]})" if answer.get("schedule") else ""
    path = f" via {answer['via']}" if answer.get("via") else ""
    return (
        f"Created job {name} ({answer['mode']}): {answer['source']} -> {answer['target']}{path}\n"
        f"  first run: {first}{'' if answer.get('clean') else ', ' + units.format_size(answer['size'])}{schedule}\nNext: qrep start {name}"
    )


@job.command()
@click.argument("name")
@click.option("--source", required=True, metavar="VOL", shell_complete=names.volumes, help="A volume of this host.")
@click.option("--target", required=True, metavar="[PEER:]VOL", help="A volume of this host or of a peer.")
@click.option("--mode", type=click.Choice(["async", "copy"]), default="async", show_default=True, help="async: differential runs; copy: once, then the target is given back.")
@click.option("--from", "path_source", metavar="ADDR|auto", help="The address of this host that its path comes from (auto: the system picks).")
@click.option("--to", "path_to", metavar="ADDR|auto", help="The address of the peer that its path leads to (auto: each of them is a path).")
@settings
@click.option("-n", "--dry-run", is_flag=True, help="Check everything, change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Overwrite what the target carries without asking.")
@click.pass_obj
def create(app, name, dry_run, yes, path_source, path_to, **options):
    """Create job NAME. The target's content is replaced by the first run."""
    client = app.client()
    body = given(name=name, overwrite=yes, **cleared(options), **{"from": path_source, "to": path_to})
    try:
        answer = client.post("/jobs", body | {"dry_run": dry_run}, timeout=60)
    except Refused as refusal:
        if refusal.code != "signature" or dry_run:
            raise
        app.confirm(f"{refusal.message} The first run overwrites it.", yes)
        answer = client.post("/jobs", body | {"overwrite": True}, timeout=60)
    app.data(answer, create_text(answer) if not dry_run else create_text(answer).replace("Created", "Would create", 1))


@job.command("set")
@click.argument("name", shell_complete=names.jobs)
@settings
@click.option("-n", "--dry-run", is_flag=True, help="Check it and show what it would be; change nothing.")
@click.pass_obj
def set_(app, name, dry_run, **options):
    """Change settings of job NAME: schedule, rpo, shape and connections count at once, all else from the next run on."""
    body = given(**cleared(options))
    if not body:
        raise UsageError("nothing to change was given", hint=f"qrep job show {name} shows the settings; qrep job set --help lists them")
    answer = app.client().call("PATCH", f"/jobs/{part(name)}", body | ({"dry_run": True} if dry_run else {}))
    app.data(answer, lambda: ("Would be: " if dry_run else "") + details(answer))


@job.command()
@click.argument("name", shell_complete=names.jobs)
@click.pass_obj
def show(app, name):
    """Everything about job NAME."""
    answer = app.client().get(f"/jobs/{part(name)}")
    app.data(answer, lambda: details(answer))


@job.command()
@click.argument("name", shell_complete=names.jobs)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be forgotten; change nothing.")
@click.pass_obj
def delete(app, name, yes, dry_run):
    """Delete job NAME: its map and settings; both volumes keep their bytes, the target its sync points."""
    client = app.client()
    known = client.get(f"/jobs/{part(name)}")
    what = f"{name}: the job and its digest map would be forgotten; both volumes keep their bytes."
    if dry_run:
        app.data({"would_delete": known}, what)
        return
    app.confirm(what.replace("would be", "are"), yes)
    client.call("DELETE", f"/jobs/{part(name)}", timeout=60)
    app.data({"deleted": name}, f"{name}: deleted")


for command in (*roles.COMMANDS, rebuild):
    job.add_command(command)
