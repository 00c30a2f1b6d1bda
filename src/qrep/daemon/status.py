"""What `qrep status` shows: the jobs whose source is here, and those of other hosts that write to volumes here."""

import time

from qrep import __version__
from qrep.errors import QrepError
from qrep.jobs.shown import iso, job_dict, left_out, what_to_do

NOT_KNOWN_HERE = (
    "initial", "timeout", "connections", "generation", "counter", "root", "last_sync_point", "lag_seconds", "path", "paths", "transport", "zero_copy", "ktls", "rate_bytes_per_s", "shape",
    "limit", "progress", "problem", "unsynced", "next", "last_run", "schedule", "missed", "rpo", "rpo_passed", "queue", "verify", "hints", "hint_sample", "group", "nice", "compress",
)  # fmt: skip


def status(node, names):
    """The answer of GET /v1/status. names: only these jobs; empty: all."""
    known = {name: lambda runner=runner: _sent(node, runner) for name, runner in node.jobs.all()}
    for pair in node.grants.pairs():
        if pair["peer"] and pair["job"] in known and node.jobs.get(pair["job"]).settings.role == "target":
            del known[pair["job"]]  # its source is there now
        if pair["peer"]:
            known.setdefault(pair["job"], lambda pair=pair: received(node, pair))
    for name in names:
        if name not in known:
            node.jobs.get(name)  # raises the NotFound that names what was probably meant
    return {
        "node": {"name": node.name, "version": __version__, "time_zone": node.time_zone},
        "jobs": [known[name]() for name in sorted(set(names) or known)],
    }


def shown(node, runner):
    """A job that has a file here: as its source sees it, or, after its source has moved to the other side, as its target does."""
    pair = node.grants.pair(runner.settings.id) if runner.settings.role == "target" else None
    return received(node, pair) | {"connections": runner.settings.connections} if pair is not None else _sent(node, runner)


def _sent(node, runner):
    """A job as its source sees it."""
    volume = {volume.name: volume for volume in node.volumes.all()}.get(runner.settings.source)
    unsettled = volume.unsettled if volume is not None else None
    return job_dict(runner) | (_failed(unsettled) if unsettled is not None else {})


def _failed(error, hint=""):
    return {"state": "failed", "problem": {"code": error.code, "text": error.message, "action": error.hint or hint}}


def received(node, pair):
    """A job as its target sees it."""
    job = dict.fromkeys(NOT_KNOWN_HERE) | {
        "name": pair["job"], "id": pair["job_id"], "mode": "async", "state": "idle", "role": "target", "local": False,
        "source": f"{pair['peer']}:{pair['source'].rpartition(':')[2]}", "target": pair["volume"], "size": pair["size"],
        "sync_points": pair["sync_points"], "keep": pair["keep"], "fuzzy": False,
    }  # fmt: skip
    try:
        volume = node.volumes.get(pair["volume"])
        if volume.unsettled is not None:
            raise volume.unsettled
        found = volume.replica().status()
    except QrepError as error:
        return job | _failed(error, f"qrep volume show {pair['volume']}")
    job["state"], job["progress"] = _state(found)
    if job["state"] == "stopped":
        job["problem"] = {
            "code": "open",
            "text": f"a run is open on {pair['volume']} and its source is not connected",
            "action": f"on {pair['peer']}: qrep start {pair['job']} goes on from there; qrep snapshot {pair['volume']} shows what is committed",
        }
    if job["state"] == "degraded":
        job["problem"] = {
            "code": "unsynced",
            "text": f"{left_out(found['held'], pair['peer'], pair['volume'])}; the rest is applied, nothing of it is a sync point",
            "action": f"{what_to_do(found['held'])}; the next run of {pair['job']} on {pair['peer']} tries these blocks again",
        }
    job["unsynced"] = found["held"]
    at = found["last_sync_point_ns"]
    return job | {
        "last_sync_point": iso(at),
        "lag_seconds": max(0, int(time.time() - at / 1e9)) if at else None,
        "fuzzy": found["fuzzy"],
        "counter": found["committed_counter"] or None,
        "generation": found["committed_id"],
        "root": found["root"] or (node.db.root(found["committed_id"]) if found["committed_id"] else None),
    }


def _state(found):
    """(state, progress) of a target volume's status."""
    session = found["session"]
    if session is not None:
        progress = dict.fromkeys(("percent", "seconds_left", "bottleneck", "rate_bytes_per_s", "hash_bytes_per_s"))
        progress |= {"phase": "syncing", "written": session["written"], "sent": session["received"], "unreadable": 0}
        return "syncing", progress | {"read": 0, "hashed": 0, "zero": 0, "changed": session["written"]}
    if found["phase"] in ("rolling", "recovering"):
        done, total = found["restoring"] or (0, 0)
        progress = dict.fromkeys(("seconds_left", "bottleneck", "rate_bytes_per_s", "hash_bytes_per_s"))
        progress |= {"phase": "restoring", "percent": round(100 * done / total, 1) if total else None, "written": done, "sent": 0, "unreadable": 0}
        return "restoring", progress | {"read": 0, "hashed": 0, "zero": 0, "changed": 0}
    if found["open"]:
        return ("degraded" if found["held"] else "stopped"), None
    return "idle", None
