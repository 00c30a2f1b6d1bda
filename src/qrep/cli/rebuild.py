"""qrep job rebuild: after the disks of a clone were carried to another host."""

import click

from qrep import units
from qrep.cli import names
from qrep.cli.app import Command
from qrep.cli.follow import follow_task
from qrep.client import part


def rebuild_text(answer):
    name, target = answer["job"], answer["target"]
    if answer["adopted_before"]:
        following = f"qrep job rebuild {name} --target {target}" if answer["dry_run"] else f"qrep start {name}"
        return f"{target} holds generation {answer['counter']} of {name} already.\nNext: {following}"
    would = "would be" if answer["dry_run"] else "is"
    head = f"{target} is the clone of {name}: {units.format_size(answer['read'])} were read there, and nothing was written."
    if answer["differing_leaves"]:
        leaves = f"{answer['differing_leaves']} {'leaf' if answer['differing_leaves'] == 1 else 'leaves'} ({units.format_size(answer['differing_bytes'])})"
        state = (
            f"  {leaves} {'was' if answer['differing_leaves'] == 1 else 'were'} changed on the way, {int(100 * answer['percent']) / 100:.2f} % of its data is as it was. What it holds now {would} sync point "
            f"{answer['counter']};\n  the next run sends these, and what has changed at the source."
        )
    else:
        state = f"  Every byte is as it was: it {would} at generation {answer['counter']}. The next run sends what has changed at the source since."
    if answer["dry_run"]:
        return f"{head}\n{state}\nNext: qrep job rebuild {name} --target {target}"
    return f"{head}\n{state}\nNext: qrep start {name}"


@click.command(cls=Command)
@click.argument("name", shell_complete=names.jobs)
@click.option("--target", required=True, metavar="[PEER:]VOL", help="The volume that the disk of the clone is now.")
@click.option("-n", "--dry-run", is_flag=True, help="Only prove that it is the clone, and say what of it was changed.")
@click.pass_obj
def rebuild(app, name, target, dry_run):
    """Let job NAME, whose clone was carried away, go on with the volume that it is now; nothing is written to a volume that is not the clone.

    It is proved by digests: a sample first, then all of it, read where it is. See qrep-clone(1).
    """
    client = app.client()
    task = client.post(f"/jobs/{part(name)}/rebuild", {"target": target, "dry_run": dry_run}, timeout=60)
    answer = follow_task(app, client, task, f"{name}: rebuilding")
    app.data(answer, rebuild_text(answer))
