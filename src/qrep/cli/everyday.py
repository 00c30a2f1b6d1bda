"""qrep start, stop, verify: the everyday verbs on jobs."""

import click

from qrep import units
from qrep.cli import names
from qrep.cli.app import Command
from qrep.client import part
from qrep.cli.follow import follow_task
from qrep.cli.render import when
from qrep.errors import Differences, Interrupted, QrepError

MOST_LISTED = 20  # differing extents listed as text; --json has all that the agent kept


def estimate_text(name, answer):
    size = units.format_size(answer["size"])
    moved = units.format_size(answer["would_send"])
    if answer.get("full"):
        text = f"Would send up to {moved} of {size} (full copy)"
    elif answer.get("changed_since"):
        text = f"Would send {moved} of {size} (changed since {when(answer['changed_since'])})"
    else:
        text = f"Would send {moved} of {size}"
    if answer.get("seconds") is not None:
        pace = "at the present limit" if answer.get("limit_bytes_per_s") else "at the speed of the last run"
        text += f", about {units.format_time_to_go(answer['seconds'])} {pace}"
    return (f"{name}: " if name else "") + text + "."


def run_text(name, result):
    text = (
        f"{name}: generation {result['counter']} committed, sent {units.format_size(result['sent'])} of "
        f"{units.format_size(result['size'])} in {units.format_time_to_go(result['seconds'])}"
    )
    notes = [word for word in ("resumed", "fuzzy") if result.get(word)]
    if notes:
        text += f" ({', '.join(notes)})"
    return text + (f"\n  root {result['root']}" if result.get("root") else "")


def follow_all(app, client, tasks, doing):
    """The results of several tasks, by job. One that fails does not hide the others: its error is raised after all have ended."""
    results, errors = {}, {}
    for name, task in tasks.items():
        try:
            results[name] = follow_task(app, client, task, f"{name}{doing}")
        except Interrupted:
            raise
        except QrepError as error:
            errors[name] = error
    if errors and results:
        for name, result in results.items():
            app.say(f"{name}: {'generation ' + str(result['counter']) + ' committed' if 'counter' in result else 'done'}")
    for error in list(errors.values())[1:]:
        app.say(f"qrep: {error.message}")
    for error in errors.values():
        raise error
    return results


@click.command(cls=Command)
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...", shell_complete=names.jobs)
@click.option("--wait", is_flag=True, help="Follow the runs to their end.")
@click.option(
    "-n", "--dry-run", is_flag=True, help="Say how much would move and how long it would take; change nothing."
)
@click.pass_obj
def start(app, jobs, wait, dry_run):
    """Run JOBs now."""
    client = app.client()
    jobs = list(dict.fromkeys(jobs))
    if dry_run:
        tasks = {name: client.get(f"/jobs/{part(name)}/estimate", timeout=120) for name in jobs}
        answers = follow_all(app, client, tasks, ": scanning")
        several = len(jobs) > 1
        app.data(answers, "\n".join(estimate_text(name if several else "", answer) for name, answer in answers.items()))
        return
    tasks = {name: client.post(f"/jobs/{part(name)}/start") for name in jobs}
    if not wait:
        app.data(tasks, "\n".join(f"{name}: started" for name in jobs))
        return
    results = follow_all(app, client, tasks, "")
    app.data(results, "\n".join(run_text(name, result) for name, result in results.items()))


@click.command(cls=Command)
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...", shell_complete=names.jobs)
@click.pass_obj
def stop(app, jobs):
    """Stop the runs of JOBs and keep what has been applied; `qrep start` resumes them."""
    client = app.client()
    answers = {name: client.post(f"/jobs/{part(name)}/stop", timeout=60) for name in jobs}
    app.data(answers, "\n".join(f"{name}: {answer.get('text', 'stopped')}" for name, answer in answers.items()))


def difference_lines(name, result):
    extents = result["differences"]
    total = sum(extent["size"] for extent in extents)
    yield f"{name}: {units.format_size(total)} differ in {len(extents)} places"
    for extent in extents[:MOST_LISTED]:
        yield f"  offset {extent['offset']}  size {extent['size']}"
    if len(extents) > MOST_LISTED:
        yield f"  and {len(extents) - MOST_LISTED} more (all with --json)"


def verify_text(name, result):
    if result["differences"]:
        return "\n".join(difference_lines(name, result))
    text = f"{name}: the two sides are equal at generation {result['counter']} ({when(result.get('last_sync_point'))})"
    return (
        text
        + f"\n  root {result['root'] or result.get('target_root')}"
        + ("  (confirmed by the packaged blake3)" if result.get("independent") else "")
    )


@click.command(cls=Command)
@click.argument("job", shell_complete=names.jobs)
@click.option(
    "--independent", is_flag=True, help="Hash the target with the packaged blake3 instead of qrep's own kernel."
)
@click.pass_obj
def verify(app, job, independent):
    """Compare the two sides of JOB at the last sync point; exit 6 if they differ."""
    client = app.client()
    task = client.post(f"/jobs/{part(job)}/verify", {"independent": independent})
    result = follow_task(app, client, task, f"{job}: verifying")
    if result["differences"]:
        if app.json:
            app.data(result)
            return Differences.exit_code
        raise Differences(
            verify_text(job, result),
            hint=f"find out who wrote to the target; qrep start {job} compares both sides afresh and puts it right",
        )
    app.data(result, verify_text(job, result))
    return 0
