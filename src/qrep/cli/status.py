"""qrep status: every job in one line, then what is not fine and what to do about it."""

import click

from qrep import units
from qrep.cli import hints, names
from qrep.cli.app import Command, printable
from qrep.cli.packed import sent_text
from qrep.cli.render import lag, table, when, when_there
from qrep.errors import Degraded

NOT_FINE = ("failed", "degraded")
HEADER = ("JOB", "MODE", "STATE", "SOURCE -> TARGET", "LAST SYNC POINT", "LAG", "PATH", "RATE")


def state_text(job):
    progress = job.get("progress") or {}
    text = job["state"]
    if text in ("syncing", "degraded", "restoring") and progress.get("percent") is not None:
        text += f" {progress['percent']:.0f}%"
    if job.get("queue"):
        text += f" {job['queue']['position']}/{job['queue']['waiting']}"
    return text


def path_text(path):
    if not path:
        return "-"
    text = f"{path['active']}/{path['total']}"
    if path.get("connections", 1) > 1:
        text += f" x{path['connections']}"
    return text if path.get("ok", True) else f"{text} !"


def rate_text(job):
    if not job.get("rate_bytes_per_s"):
        return "-"
    text, limit = units.format_rate(job["rate_bytes_per_s"]), job.get("limit") or {}
    if limit.get("rate_bytes_per_s"):
        text += f" <= {units.format_rate(limit['rate_bytes_per_s'])} {limit.get('shape') or ''}".rstrip()
    return text


def limit_lines(job):
    """Which rate is in force, and why."""
    limit = job.get("limit")
    if not limit:
        return []
    return [f"  {limit['why']}" + (f", shared with {', '.join(limit['shared_with'])}" if limit.get("shared_with") else "")]


def nice_lines(nice):
    """How far what is read gives way to others, and to whom."""
    if not nice:
        return []
    if not nice["holds_back"]:
        return ["  nice    nobody else uses the source; reading as fast as it goes"]
    took = f", where a read takes {nice['read_ms']:.2f} ms" if nice.get("read_ms") else ""
    return [
        f"  nice    holds back for {nice['others_ios_per_s']} requests of others a second{took}: "
        f"reads at most {units.format_rate(nice['limit_bytes_per_s'])}"
    ]


def sync_point_text(job):
    text = when(job.get("last_sync_point"))
    return f"{text} fuzzy" if job.get("fuzzy") and job.get("last_sync_point") else text


def problem_lines(job):
    """What is not fine and what to do; nothing if all is."""
    problem = job.get("problem")
    if not problem:
        if job["state"] not in NOT_FINE:
            return []
        problem = {"text": job["state"]}
    action = problem.get("action") or f"qrep events {job['name']} shows what led to it"
    text = problem["text"].removeprefix(f"{job['name']}: ")  # many errors name it themselves
    return [f"{job['name']}: {printable(text)}", f"{' ' * len(job['name'])}  action: {printable(action)}"]


def overview(jobs):
    if not jobs:
        return "no jobs\n  action: qrep volume add NAME DEVICE, then: qrep job create NAME --source VOL --target [PEER:]VOL"
    rows = [
        (
            job["name"],
            job["mode"],
            state_text(job),
            f"{job['source']} -> {job['target'] or '(moving)'}",
            sync_point_text(job),
            lag(job.get("lag_seconds")),
            path_text(job.get("path")),
            rate_text(job),
        )
        for job in jobs
    ]
    text = table(HEADER, rows)
    problems = [line for job in jobs for line in problem_lines(job)]
    return text + ("\n\n" + "\n".join(problems) if problems else "")


def transport_text(transport, zero_copy, ktls):
    """How data travels: `TLS`, and whether the kernel encrypts it; or `plain`, and whether the kernel copies it."""
    if transport != "plain":
        return "TLS, encrypted by the kernel" if ktls else "TLS"
    return {True: "plain, zero-copy", False: "plain, copied"}.get(zero_copy, "plain")


def flow_line(job, progress):
    if job.get("role") == "target":
        received, written = progress.get("sent") or 0, progress.get("written") or 0
        return f"received {units.format_size(received)}  written {units.format_size(written)}"
    parts = [f"read {units.format_size(progress.get('read', 0))}"]
    hashed = f"hashed {units.format_size(progress.get('hashed', 0))}"
    if progress.get("hash_bytes_per_s"):
        hashed += f" at {units.format_rate(progress['hash_bytes_per_s'])}"
    sent = f"sent {sent_text(progress)}"
    if progress.get("rate_bytes_per_s"):
        sent += f" at {units.format_rate(progress['rate_bytes_per_s'])}"
    return "  ".join([*parts, hashed, f"changed {units.format_size(progress.get('changed', 0))}", sent])


def timing_lines(job, node):
    """Its turn, its next times, how old its sync point may become; nothing of what does not apply."""
    if job.get("queue"):
        yield f"queue   place {job['queue']['position']} of {job['queue']['waiting']}; as many jobs run as may at once (limits.jobs_running)"
    if job.get("next"):
        times = ", ".join(map(when_there, job["next"]))
        yield f"next    {times}  ({job['schedule']}, {node.get('time_zone') or job['next'][0][19:]})"
    verify = job.get("verify") or {}
    if verify.get("last") or verify.get("next") or verify.get("waits"):
        yield f"verify  {verify_words(verify)}"
    if job.get("rpo"):
        age = f"lag {lag(job['lag_seconds'])}" if job.get("last_sync_point") else "no sync point yet"
        yield f"rpo     {job['rpo']}{' passed' if job.get('rpo_passed') else ''}, {age}"


def verify_words(verify):
    last, words = verify.get("last"), []
    if last:
        found = "equal" if last["equal"] else "different"
        healed = f", {units.format_size(last['healed_bytes'])} healed" if last["healed_bytes"] else ""
        words.append(f"{found} at generation {last['counter']}, {when(last['at'])}{healed}")
    if verify.get("waits"):
        words.append("one was interrupted and goes on when the job is idle")
    if verify.get("next"):
        words.append(f"next {when_there(verify['next'][0])}  ({verify['schedule']})")
    return "; ".join(words)


def path_lines(paths):
    """`path 1 *  10.0.1.1 -> 10.0.1.2   up   2 connections  412 + 400 MiB/s`, one line a path."""
    rows = []
    for path in paths:
        route = f"{path['source'] or path['from']} -> {path['to']}"
        rows.append((f"  path {path['number']}{' *' if path['active'] else ''}", route, path["state"], path_doing(path)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)] if rows else []
    return ["  ".join([*(word.ljust(width) for word, width in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows]


def sum_of_rates(connections):
    """`412 + 400 MiB/s`"""
    words = [units.format_rate(one["rate_bytes_per_s"]).rsplit(" ", 1) for one in connections]
    following = [*(unit for _, unit in words[1:]), ""]
    return " + ".join(number if unit == after else f"{number} {unit}" for (number, unit), after in zip(words, following, strict=False))


def path_doing(path):
    """What a path does, or why it does nothing."""
    if path["state"] == "down":
        return f"since {when(path['since'])}: {printable(path['reason'])}"
    if path["connections"]:
        there = [one for one in path["connections"] if one["state"] != "down"]
        down = len(path["connections"]) - len(there)
        count = f"{len(there)} connection{'s' if len(there) != 1 else ''}{f', {down} down' if down else ''}"
        return f"{count}  {sum_of_rates(there)}".rstrip()
    if path["in_use"]:
        return "connected"
    if path["returns_in_seconds"]:
        return f"returned to in {path['returns_in_seconds']:.0f} s if it stays well"
    return "idle" if path["active"] else "standby"


def detail(job, node):
    progress = job.get("progress")
    here = "target: this host" if job.get("role") == "target" else "source: this host"
    head = [job["name"], job["mode"], here, job["state"]]
    if progress:
        if progress.get("percent") is not None:
            head.append(f"{progress['percent']:.1f}% done,")
        if progress.get("seconds_left") is not None:
            head.append(f"{units.format_clock(progress['seconds_left'])} to go,")
        if progress.get("bottleneck"):
            head.append(f"bottleneck: {progress['bottleneck']}")
        head[-1] = head[-1].rstrip(",")
    lines = ["  ".join(head[:4]) + ("  " + " ".join(head[4:]) if head[4:] else "")]
    lines.append(f"  source  {job['source']}  {units.format_size(job['size']) if job.get('size') else ''}".rstrip())
    if job.get("last_sync_point"):
        point = f"sync point {when(job['last_sync_point'], precise=True)} (generation {job['counter']}{', fuzzy' if job.get('fuzzy') else ''})"
        if job.get("unsynced") or (progress and progress.get("phase") in ("syncing", "committing")):
            point = f"open generation on top of {when(job['last_sync_point'], precise=True)} (would roll back there)"
    else:
        point = "no sync point yet"
    lines.append(f"  target  {job['target'] or '(its disk is on its way)'}  {point}")
    if job.get("group"):
        lines.append(f"  group   {job['group']}  (all of its jobs are committed at once, or none)")
    lines += [f"  {line}" for line in timing_lines(job, node)]
    if job.get("root"):
        lines.append(f"  root    {job['root']}  (b3sum of the target at that sync point)")
    if job.get("transport") in ("tls", "plain"):
        lines.append(f"  data    {transport_text(job['transport'], job.get('zero_copy'), job.get('ktls'))}")
    if progress:
        lines.append("  " + flow_line(job, progress))
        lines += nice_lines(progress.get("nice"))
    lines += limit_lines(job)
    last = job.get("last_run")
    if last and not progress:
        lines.append(
            f"  last run  read {units.format_size(last.get('read', 0))}"
            + (f" and {units.format_size(last['read_shared'])} with others" if last.get("read_shared") else "")
            + f"  changed {units.format_size(last.get('changed', 0))}  "
            f"sent {sent_text(last)}  in {units.format_time_to_go(last.get('seconds', 0))}"
            + ("  (resumed)" if last.get("resumed") else "")
        )
        spared = hints.read_text(last) if last.get("clean") else hints.hint_text(last)
        lines += [f"            {printable(spared)}"] if spared else []
    lines += path_lines(job.get("paths") or [])
    lines += problem_lines(job)
    return "\n".join(lines)


def render(answer, named):
    jobs = answer["jobs"]
    if named:
        return "\n\n".join(detail(job, answer["node"]) for job in jobs)
    return overview(jobs)


def not_fine(jobs):
    return [job for job in jobs if job.get("problem") or job["state"] in NOT_FINE]


@click.command(cls=Command)
@click.argument("jobs", nargs=-1, metavar="[JOB]...", shell_complete=names.jobs)
@click.option("--watch", is_flag=True, help="Keep showing it until Ctrl-C.")
@click.option("--check", is_flag=True, help="Print only what is not fine; exit 3 if anything is.")
@click.pass_obj
def status(app, jobs, watch, check):
    """Jobs, paths, lag; what to do next."""
    client = app.client()
    if watch:
        return watch_status(app, client, jobs)
    answer = client.get("/status", job=list(jobs) or None)
    if check:
        bad = not_fine(answer["jobs"])
        app.data(answer | {"jobs": bad}, "\n".join(line for job in bad for line in problem_lines(job)) or "all jobs are fine")
        return Degraded.exit_code if bad else 0
    app.data(answer, lambda: render(answer, jobs))
    return 0


def watch_status(app, client, jobs):
    """Redraw on a terminal; one JSON object a line with --json, one table after the other into a pipe. Until Ctrl-C."""
    import sys
    import time

    try:
        while app.json or not sys.stdout.isatty():
            answer = client.get("/status", job=list(jobs) or None)
            app.data(answer, f"{render(answer, jobs)}\n")
            time.sleep(1)
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        with Live(console=Console(highlight=False), screen=False, refresh_per_second=4) as live:
            while True:
                live.update(Text(render(client.get("/status", job=list(jobs) or None), jobs)))
                time.sleep(1)
    except KeyboardInterrupt:
        return 0
