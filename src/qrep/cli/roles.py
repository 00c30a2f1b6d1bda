"""qrep job promote, demote, failback, split, resync, restore: who may write (docs/ROLES.md)."""

from datetime import datetime

import click

from qrep import units
from qrep.cli import names
from qrep.cli.app import Command
from qrep.cli.follow import follow_task
from qrep.client import part
from qrep.errors import UsageError

DRY_RUN = click.option("-n", "--dry-run", is_flag=True, help="Say what it would do and what it would cost; change nothing.")
YES = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
NAME = click.argument("name", shell_complete=names.jobs)


def _do(app, name, verb, body, doing):
    client = app.client()
    return follow_task(app, client, client.post(f"/jobs/{part(name)}/{verb}", body, timeout=60), f"{name}: {doing}")


def moment(stamp):
    """2026-11-22T03:00, in the time zone of who reads it."""
    return datetime.fromisoformat(stamp).astimezone().strftime("%Y-%m-%dT%H:%M") if stamp else "of an unknown time"


def how_long(seconds):
    if seconds is None:
        return "an unknown time"
    minutes, hours = seconds // 60, seconds // 3600
    return f"{seconds} s" if seconds < 60 else f"{minutes} min" if minutes < 120 else f"{hours} h {minutes % 60} min"


def size_or_unknown(size):
    return "an unknown amount" if size is None else units.format_size(size)


def promote_text(answer):
    name, node = answer["job"], answer["node"]
    if answer["what"] != "forced":
        return f"{name}: {node} is primary; {answer['device']} can be mounted. {answer['other']} is its replica, and holds the same.\nNext: qrep start {name}"
    return (
        f"{name}: {node} is primary at sync point {moment(answer['sync_point'])} ({how_long(answer['missing_seconds'])} of source writes are not here).\n"
        f"When {answer['other']} is back: qrep job failback {name}"
    )


def points_text(answer):
    """What cannot be reached any more."""
    points, volume = answer["points_lost"], answer["volume"]
    if not points:
        return ""
    listed = ", ".join(f"{volume}@{point}" for point in points)
    return f" {volume}'s earlier sync points are given up: {listed} (qrep snapshot copy carries one out first)."


def promote_plan(answer, *, sure=False):
    """sure: as what happens now, for the question."""
    become, be, are = ("becomes", "is", "are") if sure else ("would become", "would be", "would be")
    name, node, other = answer["job"], answer["node"], answer["other"]
    how = {
        "ask": f"{other} {be} demoted first (it allows that), with a last run",
        "planned": f"{other} has given up and holds the same",
        "forced": f"{how_long(answer['missing_seconds'])} of source writes {are} missing"
        + (f"; {other} answers and is primary: both {are} (split brain)" if answer["other_is_primary"] else ""),
    }[answer["would"]]
    return f"{name}: {node} {become} primary at sync point {moment(answer['sync_point'])}; {how}.{points_text(answer)}"


@click.command(cls=Command)
@NAME
@click.option("--force", is_flag=True, help="The source is lost: take over at the last sync point.")
@DRY_RUN
@YES
@click.pass_obj
def promote(app, name, force, dry_run, yes):
    """Make the replica of job NAME here the primary volume: mountable, and the source from now on.

    Planned: the source was demoted, or allows this host to have it demoted (peer set --may-switch). Its writers are stopped first, and
    nothing is lost. Earlier sync points of the volume are given up by it, at once: -n tells which.

    A source that falls silent meanwhile is waited for 60 s, one that says it is at it 24 h. --force, given beside that, does not wait: it ends
    the planned promote, as long as that still waits for the source, and takes over.
    """
    body = {"force": force}
    if dry_run or not yes:
        plan = _do(app, name, "promote", body | {"dry_run": True}, "asking the other side")
        if dry_run:
            app.data(plan, lambda: promote_plan(plan))
            return
        if plan["other_is_primary"] or plan["points_lost"] and not force:  # a source that is lost: --force is the word
            app.confirm(promote_plan(plan, sure=True), yes)
    answer = _do(app, name, "promote", body, "switching")
    app.data(answer, lambda: promote_text(answer))


def demote_text(answer):
    name, node, other = answer["job"], answer["node"], answer["other"]
    if answer["what"] == "last-run":
        return f"{name}: {node} has given up its role; both sides hold the same.\nNext, on {other}: qrep job promote {name}  (or here, to take it back)"
    return (
        f"{name}: {node} is a replica of {other} now; what only {node} had ({size_or_unknown(answer['changed'])}) is kept as a sync point by the next run.\n"
        f"Next, on {other}: qrep job failback {name}"
    )


@click.command(cls=Command)
@NAME
@DRY_RUN
@YES
@click.pass_obj
def demote(app, name, dry_run, yes):
    """Give up being the source of job NAME: its volume here becomes a replica.

    Its device is claimed, so it must not be mounted. A last run brings the target to exactly what the device holds. Where the target was
    promoted meanwhile, there is no last run: what only this side has is kept as a sync point by the run that comes back.
    """
    if dry_run or not yes:
        plan = _do(app, name, "demote", {"dry_run": True}, "counting")
        what = (
            f"{name}: {plan['node']} would make a last run to {plan['other']}, then be its replica; {plan['volume']} would not be writable any more."
            if plan["would"] == "last-run"
            else f"{name}: {plan['node']} would become a replica of {plan['other']}; {size_or_unknown(plan['changed'])} only {plan['node']} has would be kept as a sync point."
        )
        if dry_run:
            app.data(plan, what)
            return
        if plan["would"] == "overtaken":
            app.confirm(what.replace("would become", "becomes").replace("would be", "are"), yes)
    answer = _do(app, name, "demote", {}, "giving up its role")
    app.data(answer, lambda: demote_text(answer))


def failback_plan(plan):
    name, node, other = plan["job"], plan["node"], plan["other"]
    here, there = plan["changed_here"], plan["changed_there"]
    known = None not in (here, there)
    lines = [
        f"{name}: since the generation that both sides had",
        f"  changed on {node}: {size_or_unknown(here)}",
        f"  changed on {other}: {size_or_unknown(there)}" + (", which would be given up (kept there as a sync point until the roles are swapped)" if there != 0 else ""),
        f"Would send at most {units.format_size(here + there)} of {units.format_size(plan['size'])}, then swap the roles."
        if known
        else f"Would compare both sides, send what differs of {units.format_size(plan['size'])}, then swap the roles.",
    ]
    if plan.get("split_brain"):
        lines.append(f"First, on {other}: qrep job demote {name}")
    return "\n".join(lines)


def failback_text(answer):
    name, node, other = answer["job"], answer["node"], answer["other"]
    sent = units.format_size((answer.get("report") or {}).get("sent") or 0)
    if answer["swapped"]:
        return f"{name}: {other} is primary again, {node} its replica; {sent} were sent in the last run.\nNext, on {other}: mount it; qrep start {name}"
    return (
        f"{name}: {other} holds what {node} holds; {sent} were sent. The roles are not swapped yet.\n"
        f"What only {other} had is a sync point there: qrep snapshot {answer['other_volume']}\nNext: qrep job failback {name}"
    )


@click.command(cls=Command)
@NAME
@click.option("--swap/--no-swap", default=True, show_default=True, help="Swap the roles at the end; without, what was given up stays a sync point there.")
@DRY_RUN
@YES
@click.pass_obj
def failback(app, name, swap, dry_run, yes):
    """Bring only the differences back to the old source of job NAME, then swap the roles.

    The old source must have been demoted, or allow this host to have it demoted. -n counts exactly what changed on each side since the
    generation that both had; each side reads only its own device.
    """
    if dry_run or not yes:
        plan = _do(app, name, "failback", {"dry_run": True}, "counting on both sides")
        if dry_run:
            app.data(plan, lambda: failback_plan(plan))
            return
        if not plan["split_brain"]:
            swapped = f"{plan['other']} becomes primary again, and its sync points are given up." if swap else ""
            lost = f"{size_or_unknown(plan['changed_there'])} that only {plan['other']} has is given up; it {'can be reached until then' if swap else 'stays a sync point there'}."
            question = " ".join(filter(None, (swapped, lost if plan["changed_there"] != 0 else "")))
            if question:
                app.confirm(f"{name}: {question}", yes)
    answer = _do(app, name, "failback", {"swap": swap}, "syncing back")
    app.data(answer, lambda: failback_text(answer))


@click.command(cls=Command)
@NAME
@DRY_RUN
@YES
@click.pass_obj
def split(app, name, dry_run, yes):
    """Make both sides of job NAME writable on purpose: the replica here becomes primary, and the source goes on.

    Runs are refused (split-brain) until qrep job resync names the side that wins.
    """
    if dry_run or not yes:
        plan = _do(app, name, "split", {"dry_run": True}, "asking the other side")
        text = f"{name}: {plan['volume']} on {plan['node']} would become writable at sync point {moment(plan['sync_point'])}; {plan['other']} goes on.{points_text(plan)}"
        if dry_run:
            app.data(plan, text)
            return
        app.confirm(text.replace("would become", "becomes"), yes)
    answer = _do(app, name, "split", {}, "splitting")
    app.data(
        answer,
        f"{name}: {answer['node']} and {answer['other']} are both primary; no run goes either way.\n"
        f"To join them: qrep job resync {name} --authoritative {answer['node']}|{answer['other']}",
    )


@click.command(cls=Command)
@NAME
@click.option("--authoritative", required=True, metavar="SIDE", help="The side that wins: the name of its host, or source or target.")
@DRY_RUN
@YES
@click.pass_obj
def resync(app, name, authoritative, dry_run, yes):
    """Make the side that is not SIDE a replica of SIDE in job NAME. What only it has is kept there as a sync point.

    Given where the losing side is; or on the winning side, if the other one allows that (peer set --may-switch) or was demoted.
    """
    body = {"authoritative": authoritative}
    if dry_run or not yes:
        plan = _do(app, name, "resync", body | {"dry_run": True}, "asking the other side")
        loser = "this side" if plan["loser"] == "here" else plan["loser"]
        winner = plan["other"] if plan["loser"] == "here" else "this side"  # SIDE may be a word such as "source"
        text = f"{name}: {loser} would become a replica of {winner}; {size_or_unknown(plan['changed'])} that only it has would be kept there as a sync point."
        if dry_run:
            app.data(plan, text)
            return
        app.confirm(text.replace("would become", "becomes").replace("would be", "is"), yes)
    answer = _do(app, name, "resync", body, "joining the two sides")
    done = f", {units.format_size(answer['report']['sent'])} sent" if answer["report"] else f"; the run comes from {answer['other']}: qrep status {name}"
    app.data(answer, f"{name}: {'this side' if answer['loser'] == 'here' else answer['loser']} is a replica of {authoritative}{done}")


@click.command(cls=Command)
@click.argument("point", metavar="NAME@POINT")
@click.option("--discard", is_flag=True, help="Do not bring what the volume holds now to the target first; it is lost then.")
@DRY_RUN
@YES
@click.pass_obj
def restore(app, point, discard, dry_run, yes):
    """Give the source of job NAME a sync point of its target back; only what differs is sent.

    The volume must not be mounted. What it holds now is brought to the target first, and is a sync point there. The target's volume is
    then at POINT as well, and the next run goes on from it.
    """
    name, at, number = point.rpartition("@")
    if not at or not name or not number:
        raise UsageError(f"{point!r} names no sync point", hint="write it JOB@POINT; qrep snapshot VOLUME lists them where the target is")
    body = {"point": number}
    plan = _do(app, name, "restore", body | {"dry_run": True}, "asking the other side")
    first = "what it holds now is lost" if discard else f"what it holds now would be a sync point on {plan['other']}"
    text = f"{name}: {plan['volume']} would get sync point {number} of {plan['other']} back; {first}."
    if dry_run:
        app.data(plan, text)
        return
    app.confirm(text.replace("would get", "gets").replace("would be", "is"), yes)
    answer = _do(app, name, "restore", body | {"discard": discard}, "restoring")
    app.data(answer, f"{name}: {answer['device']} holds sync point {number} again, and can be mounted.\nNext: qrep start {name}")


COMMANDS = (promote, demote, failback, split, resync, restore)
