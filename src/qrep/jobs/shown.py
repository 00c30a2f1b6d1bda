"""What people are told of a job at its source."""

import time
from datetime import UTC, datetime, timedelta

from qrep import units
from qrep.extents import describe
from qrep.jobs.paths import DOWN

SHOWN = {"connecting": "connecting", "committing": "committing"}  # phases of a run that are states of their own; all others: syncing


def iso(timestamp_ns):
    """Wall-clock nanoseconds as an ISO time, None for none."""
    return datetime.fromtimestamp(timestamp_ns / 1e9, UTC).isoformat(timespec="seconds") if timestamp_ns else None


def when(timing):
    """The fields that tell when a job runs by itself."""
    settings = timing.settings
    return {
        "schedule": settings.schedule or None,
        "missed": settings.missed,
        "next": [moment.isoformat(timespec="seconds") for moment in timing.next_times(time.time())] or None,
    }


def job_dict(runner):
    """A JobRunner as the local API shows it (docs/API.md: JOB)."""
    settings, last = runner.settings, runner.db.last_run(runner.settings.id)
    report = last["report"] if last else {}
    progress = runner.progress()
    frozen_at_ns = report.get("frozen_at_ns")
    paths = runner.paths.shown((progress or {}).get("connections") or ()) if runner.paths is not None else []
    return {
        "name": runner.name,
        "id": settings.id,
        "mode": settings.mode,
        "state": _state(runner, progress, paths),
        "role": "source",
        "source": settings.source,
        "target": settings.target,
        "local": ":" not in settings.target,
        "initial": settings.initial,
        "connections": settings.connections,
        "sync_points": settings.sync_points,
        "keep": settings.keep,
        "timeout": settings.timeout,
        "shape": settings.shape or None,
        "group": settings.group or None,
        "hints": settings.hints,
        "hint_sample": settings.hint_sample,
        "nice": settings.nice,
        "compress": settings.compress,
        "size": settings.size,
        "last_sync_point": iso(frozen_at_ns),
        "lag_seconds": max(0, int(time.time() - frozen_at_ns / 1e9)) if frozen_at_ns and not settings.finished else None,
        "fuzzy": bool(report.get("fuzzy")),
        "counter": report.get("counter"),
        "generation": report.get("generation"),
        "root": report.get("root"),
        "path": _path(runner, paths),
        "paths": paths,
        "transport": runner.transport(),
        "zero_copy": _of_transport(runner, progress, report, "plain", "zero_copy"),
        "ktls": _of_transport(runner, progress, report, "tls", "ktls"),
        "rate_bytes_per_s": progress.get("rate_bytes_per_s") if progress else None,
        "limit": runner.limit(),
        "progress": progress,
        "problem": _problem(runner) or _path_problem(paths),
        "unsynced": (runner.problem or {}).get("unsynced"),
        "rpo": settings.rpo or None,
        "rpo_passed": runner.timing.over(time.time(), runner.committed_at) is not None,
        "queue": runner.queue(),
        "last_run": report or None,
        "verify": runner.verifies.as_dict(),
    } | when(runner.timing)


def waits_for(runner):
    """What an idle job is that cannot run as it is: "made", a copy; "moving", its disk; else None."""
    if runner.state != "idle":
        return None
    return "made" if runner.settings.finished else None if runner.settings.target else "moving"


def _of_transport(runner, progress, report, transport, key):
    """What the kernel says of how it sends, without copying or by encrypting itself; None where that is not tried or not known yet."""
    if runner.transport() != transport:
        return None
    return progress.get(key) if progress else report.get(key)


def _path(runner, paths):
    """The PATH column: which of how many, and whether all of them are well."""
    active = next((path["number"] for path in paths if path["active"]), 1)
    ok = runner.state != "waiting" and not any(path["state"] == DOWN for path in paths)
    connections = runner.paths.wanted() if runner.paths is not None else runner.settings.connections
    return {"active": active, "total": max(1, len(paths)), "connections": connections, "ok": ok}


def _path_problem(paths):
    """A path that is down, and what that means: nothing is out of sync, and with no other one the next run cannot begin."""
    down = [path for path in paths if path["state"] == DOWN]
    if not down:
        return None
    first = down[0]
    since = datetime.fromisoformat(first["since"])
    since = since.astimezone().strftime("%H:%M" if datetime.now(UTC) - since < timedelta(days=1) else "%Y-%m-%d %H:%M")
    active = next(path for path in paths if path["active"])
    if active["state"] == DOWN:
        rest = "; no other one is left" if len(paths) > 1 else ""
        action = "check the link and the agent there"
    else:
        rest = f"; running on path {active['number']}" if active["in_use"] else f"; path {active['number']} is used"
        action = "check the link; nothing is out of sync"
    others = f" (and path {', '.join(str(path['number']) for path in down[1:])} too)" if down[1:] else ""
    text = f"path {first['number']} is down since {since} ({first['reason']}){others}{rest}."
    return {"code": "path-down", "text": text, "action": f"{action}."}


def _state(runner, progress, paths):
    if runner.activity == "verify":
        return "verifying"
    if len(paths) > 1 and any(path["state"] == DOWN for path in paths) and runner.state in ("idle", "running"):
        return "degraded"
    if runner.state != "running":
        return waits_for(runner) or runner.state
    return SHOWN.get((progress or {}).get("phase"), "syncing")


def left_out(unsynced, source, target):
    """What a run left out, in words. unsynced: {"source": [{offset, size}], "target": ...}; source, target: names of the two ends."""
    ends = (("source", source, "cannot be read"), ("target", target, "cannot be written"))
    lists = [(end, [(extent["offset"], extent["size"]) for extent in unsynced[key]], what) for key, end, what in ends]
    return "; ".join(f"{end}: {describe(extents)} {what}" for end, extents, what in lists if extents)


def what_to_do(unsynced):
    ends = " and ".join(f"the {end} device" for end in ("source", "target") if unsynced[end])
    return f"repair or replace {ends}"


def _problem(runner):
    if runner.problem:
        return {key: value for key, value in runner.problem.items() if key != "unsynced"}
    if runner.state == "waiting":
        return {
            "code": "waiting",
            "text": f"{runner.waiting_for or 'the target does not answer'}; it is tried again",
            "action": f"check the link and the agent there; it goes on by itself for {runner.settings.timeout}, then: qrep start {runner.name}",
        }
    if waits_for(runner) == "moving":
        report = runner.last_committed() or {}
        return {
            "code": "disk-moved",
            "text": f"{runner.settings.moved} is on its way; changes are tracked from generation {report.get('counter')} on",
            "action": f"when it is there: qrep job rebuild {runner.name} --target PEER:VOLUME",
        }
    if runner.state == "stopped" and runner.activity is None:
        return {
            "code": "stopped",
            "text": "stopped; what has been applied is kept",
            "action": f"qrep start {runner.name} goes on from there",
        }
    last = runner.db.last_run(runner.settings.id) if runner.verifies.last is not None else None
    found = runner.verifies.problem(runner.name, last["report"].get("generation")) if last else None
    return found or _rpo_problem(runner)


def _rpo_problem(runner):
    age = runner.timing.over(time.time(), runner.committed_at)
    if age is None:
        return None
    age = units.format_duration(age)
    if runner.activity == "run":
        action = f"wait for the run that goes on; qrep status {runner.name} shows how far it is"
    elif runner.settings.schedule:
        action = f"qrep start {runner.name} runs it now; if runs take too long or come too seldom, change its schedule or its rpo"
    else:
        action = f"qrep start {runner.name}; it has no schedule: qrep job set {runner.name} --schedule 'every 15m', for instance"
    text = f"the last sync point is {age} old" if runner.committed_at else f"there is no sync point yet after {age}"
    return {"code": "rpo-passed", "text": f"{text}; the rpo is {runner.settings.rpo}", "action": action}
