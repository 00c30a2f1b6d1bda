"""qrep start, stop: the everyday verbs on jobs."""

import click

from qrep import units
from qrep.cli import names
from qrep.cli.app import Command
from qrep.client import part
from qrep.cli.follow import follow_task
from qrep.cli.packed import sent_text
from qrep.cli.render import when
from qrep.errors import Interrupted, QrepError


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
        f"{name}: generation {result['counter']} committed, sent {sent_text(result)} of "
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
        except QrepError as error:
            if isinstance(error, Interrupted) and error.code == "detached":  # Ctrl-C, and not somebody's qrep stop
                raise
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
    """Run JOBs now. A job of a consistency group starts all of its group; jobs of one source read it once."""
    client = app.client()
    jobs = list(dict.fromkeys(jobs))
    if dry_run:
        tasks = {name: client.get(f"/jobs/{part(name)}/estimate", timeout=120) for name in jobs}
        answers = follow_all(app, client, tasks, ": scanning")
        several = len(jobs) > 1
        app.data(answers, "\n".join(estimate_text(name if several else "", answer) for name, answer in answers.items()))
        return
    tasks = client.post("/start", {"jobs": jobs})  # all at once: what can be shared is, and a group comes whole
    if not wait:
        app.data(tasks, "\n".join(f"{name}: started" for name in tasks))
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
