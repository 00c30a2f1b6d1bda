"""qrep peer test: how fast the paths to a host are."""

import click

from qrep import units
from qrep.cli import names
from qrep.cli.app import Command, printable
from qrep.cli.follow import follower
from qrep.client import part
from qrep.errors import Degraded, Interrupted, UsageError, from_dict


def connections_text(count):
    return f"{count} connection{'s' if count != 1 else ''}"


def way(path):
    return f"{path['from']} -> {path['address']}" if path.get("from") else path["address"]


def path_rows(path, transport):
    """(way, connections, rate, facts) for each measurement of a path."""
    carrier = "plain" if transport != "tls" else "kernel TLS" if path["ktls"] else "TLS"
    zero_copy = "yes" if path["zero_copy"] else "no"
    facts = f"rtt {path['rtt_ms']:.2f} ms   {carrier}   zero-copy send: {zero_copy}"
    for each in path["measurements"]:
        yield way(path), connections_text(each["connections"]), units.format_rate(each["rate_bytes_per_s"], 2), facts
        facts = ""


def paths_text(result):
    """A line for each measurement, and one for each path that does not answer."""
    rows = {way(path): list(path_rows(path, result["transport"])) for path in result["paths"] if not path["error"]}
    longest = max(len(way(path)) for path in result["paths"])
    widths = [max(len(row[column]) for path in rows.values() for row in path) for column in (1, 2)]
    for path in result["paths"]:
        first = way(path).ljust(longest)
        if path["error"]:
            yield f"{first}   {printable(path['error']['message'])}"
        for _way, count, rate, facts in rows.get(way(path), ()):
            yield f"{first}   {count.ljust(widths[0])}   {rate.ljust(widths[1])}   {facts}".rstrip()


def copy_text(copy):
    text = f"full copy of {copy['volume']}, {units.format_size(copy['size'])}: {units.format_time_to_go(copy['seconds'])}"
    if copy["seconds_limited"] is not None:
        text += f"; {units.format_time_to_go(copy['seconds_limited'])} at the present limit ({copy['limit']['why']})"
    return text


def running_text(result):
    """What shared the paths meanwhile; "" if nothing did."""
    here, there = ", ".join(result["jobs_running"]), result["jobs_running_there"]
    parts = [f"{here} ran here"] * bool(here) + [f"{there} run{'s' if there != 1 else ''} went on on {result['peer']}"] * bool(there)
    return f"meanwhile {' and '.join(parts)}: the rates are what that left" if parts else ""


def test_text(result):
    best = result["best"]
    lines = [*paths_text(result), ""]
    lines.append(f"best: {connections_text(best['connections'])} over {way(best)}, {units.format_rate(best['rate_bytes_per_s'], 2)}")
    lines += [f"  {copy_text(copy)}" for copy in result["copies"] if copy["seconds"] is not None]
    return "\n".join([*lines, *filter(None, [running_text(result)])])


@click.command(cls=Command)
@click.argument("name", shell_complete=names.peers)
@click.option("--seconds", type=click.IntRange(1, 60), default=5, show_default=True, metavar="N", help="How long each measurement takes, 1 to 60.")
@click.option("--connections", default="1,2,4,8", show_default=True, metavar="N[,N...]", help="Numbers of connections to try, each 1 to 16.")
@click.pass_obj
def test(app, name, seconds, connections):
    """Measure the paths to host NAME: rates, round-trip time, and how long a full copy would take.

    It goes over the same connections as a run and does all that a run does but reading and writing a device, so the rate is what a run
    can get. Limits of rate do not hold it back, but it gives way to runs that go on. Ctrl-C ends it. Exit code 3 if a path does not answer, 4 if none does.
    """
    try:
        counts = [int(count) for count in connections.split(",")]
    except ValueError:
        raise UsageError(f"{connections!r} are no numbers of connections", hint="write them like 1,2,4,8") from None
    client = app.client()
    task = client.post(f"/peers/{part(name)}/test", {"seconds": seconds, "connections": counts})
    result = follow(app, client, task, f"test of {name}")
    app.data(result, lambda: test_text(result))
    return Degraded.exit_code if any(path["error"] for path in result["paths"]) else 0


def follow(app, client, task, title):
    """Its result. Unlike a run, a test is ended by Ctrl-C, on both sides."""
    try:
        with follower(app, title) as show:
            for task in client.task(task):
                show.show(task.get("progress"))
    except KeyboardInterrupt:
        client.call("DELETE", f"/tasks/{part(task['id'])}")
        raise Interrupted(f"the {title} was ended") from None
    if task["state"] == "failed":
        raise from_dict(task["error"])
    return task["result"]
