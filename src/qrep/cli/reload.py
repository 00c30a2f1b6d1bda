"""qrep reload: the agent reads its configuration again."""

import click

from qrep.cli.app import Command, printable
from qrep.errors import ConfigError, Degraded


def change_line(change):
    name = f"{change['kind']} {change['name']}" if change["name"] else change["kind"]
    return f"{name}: {', '.join(change['fields'])} changed" if change["fields"] else f"{name} {change['what']}"


def text_of(answer):
    lines = [change_line(change) for change in answer["changes"]]
    for what in answer["restart"]:
        lines.append(f"{what.removesuffix(' changed')}: counts from the next start of the agent on")
    for one in answer["failed"]:
        lines += [f"{one['change']}: not done: {one['message']}", *([f"  action: {one['hint']}"] if one["hint"] else [])]
    return "\n".join(lines) or "nothing changed"


def problem_text(problem):
    where = f"{problem['file']}:{problem['line']}" if problem["line"] else problem["file"]
    place = f"{problem['place']}: " if problem["place"] else ""
    return f"{where}: {place}{problem['message']}" + (f"\n  action: {problem['hint']}" if problem["hint"] else "")


@click.command(cls=Command)
@click.option("-n", "--dry-run", is_flag=True, help="Say what would change; change nothing.")
@click.pass_obj
def reload(app, dry_run):
    """Let the agent read all configuration files again, as SIGHUP does. Runs go on.

    All files are checked first: an error in any of them changes nothing, all are shown, and the exit code is 2. What could not be changed
    now is named, and the exit code is 3.
    """
    answer = app.client().post("/reload", {"dry_run": True} if dry_run else {}, timeout=120)
    if answer["problems"]:
        app.data(answer, printable("\n".join(problem_text(problem) for problem in answer["problems"])))
        app.say("qrep: nothing was changed")
        return ConfigError.exit_code
    app.data(answer, printable(text_of(answer)))
    if dry_run:
        app.say("nothing was changed: this was a dry run")
    return Degraded.exit_code if answer["failed"] else 0
