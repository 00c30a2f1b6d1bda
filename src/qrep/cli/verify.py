"""qrep verify: both sides of a job, compared at the last sync point and healed."""

import click

from qrep import units
from qrep.cli import names
from qrep.cli.app import Command
from qrep.client import part
from qrep.cli.follow import follow_task
from qrep.cli.render import when
from qrep.errors import Differences

MOST_LISTED = 20  # differing extents listed as text; --json has all that the agent kept
KINDS = (
    ("differences", "differ at the target"),
    ("source_damage", "of the source's frozen image are not what was committed"),
    ("map_differences", "are not the same in the maps of both sides"),
)


def _total(extents):
    places = f"{len(extents)} place{'' if len(extents) == 1 else 's'}"
    return f"{units.format_size(sum(extent['size'] for extent in extents))} in {places}"


def _digests(count):
    return f"{count} digest{'' if count == 1 else 's'}"


def _listed(extents):
    for extent in extents[:MOST_LISTED]:
        yield f"  offset {extent['offset']}  size {extent['size']}"
    if len(extents) > MOST_LISTED:
        yield f"  and {len(extents) - MOST_LISTED} more (all with --json)"


def result_lines(name, result):
    """What was found, and what was done about it."""
    if result["equal"]:
        yield f"{name}: the two sides are equal at generation {result['counter']} ({when(result.get('last_sync_point'))})"
        yield f"  root {result['root'] or result.get('target_root')}" + ("  (confirmed by the packaged blake3)" if result["independent"] else "")
    for kind, words in KINDS:
        extents = result[kind]
        if extents and not (kind == "map_differences" and extents == result["differences"]):
            yield f"{name}: {_total(extents)} {words}"
            yield from _listed(extents)
    repair = result.get("repair")
    if repair:
        done, rest = ("would be healed", "would be left") if repair["dry_run"] else ("healed", "left")
        if repair["healed"]:
            yield f"{name}: {_total(repair['healed'])} {done} with what the source still holds"
            yield from _listed(repair["healed"])
        if repair["left"]:
            yield f"{name}: {_total(repair['left'])} {rest} to the next run"
            yield from (f"  offset {entry['offset']}: {entry['why']}" for entry in repair["reasons"][:MOST_LISTED])
    read = result["read"]
    source = f", {units.format_size(read['source'])} of the source's frozen image" if result["source_read"] else ""
    yield f"  read {units.format_size(read['target'])} of the target{source}; compared {_digests(result['wire']['digests'])}, {result['wire']['bytes']} bytes"
    if result["note"]:
        yield f"  {result['note']}"


def what_to_do(name, result):
    if result["source_damage"] and not result["differences"]:
        return "the target is well: find out what is wrong with the disk of the source before the next run replicates it"
    repair = result.get("repair")
    if repair and repair["dry_run"] and repair["healed"]:
        return f"qrep verify {name} --repair heals it in place; or qrep start {name} by the next run"
    if repair or not result["differences"]:
        return f"qrep start {name} puts the rest right, and sends nothing else"
    return f"find out who wrote to the target; qrep verify {name} --repair heals it in place, qrep start {name} by the next run"


@click.command(cls=Command)
@click.argument("job", shell_complete=names.jobs)
@click.option("--independent", is_flag=True, help="Have the target's device hashed as a whole by the packaged blake3, too.")
@click.option("--rate", metavar="RATE", help="Read at most so much a second at each end, such as 100M; else as the job says.")
@click.option("--repair", is_flag=True, help="Heal damaged leaves of the target in place with what the source still holds.")
@click.option("-n", "--dry-run", is_flag=True, help="With --repair: say what would be healed, and write nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def verify(app, job, independent, rate, repair, dry_run, yes):
    """Compare the two sides of JOB at the last sync point; exit 6 if they differ.

    Each end reads its own device and compares it with its own map, then the maps are compared: 32 bytes when all is well. The source
    reads the frozen image that it keeps of that moment, if it keeps one. A verify that was interrupted goes on where it was.
    """
    client = app.client()
    if repair and not dry_run:
        app.confirm(f"Damaged leaves of the target of job {job} are written over with what was committed; nothing else is written.", yes)
    options = {"independent": independent, "rate": rate, "repair": repair, "dry_run": dry_run}
    task = client.post(f"/jobs/{part(job)}/verify", {key: value for key, value in options.items() if value})
    result = follow_task(app, client, task, f"{job}: verifying")
    text = "\n".join(result_lines(job, result))
    if result["equal"]:
        app.data(result, text)
        return 0
    if app.json:
        app.data(result)
        return Differences.exit_code
    raise Differences(text, hint=what_to_do(job, result))
