"""The metrics of the agent: collected when they are asked for, and written as Prometheus reads them. metrictable.py says what they mean."""

import math
import os
import resource
import threading
import time
from datetime import datetime

from qrep import __version__
from qrep.daemon.metrictable import BUCKETS_S, FAMILIES
from qrep.daemon.status import received
from qrep.jobs.shown import job_dict
from qrep.settings import parse_rpo

STATES = (
    "idle", "queued", "connecting", "syncing", "committing", "verifying", "waiting", "stopped", "failed", "degraded", "restoring", "disabled",
)  # fmt: skip
MOVED = ("read", "hashed", "zero", "changed", "sent", "copies", "packed", "packed_sent", "written")
HISTOGRAM = "qrep_job_run_duration_seconds"


class Samples:
    """Values by family: [(suffix, labels, value)]."""

    def __init__(self):
        self.families = {name: [] for name in FAMILIES}

    def put(self, family, value, *labels, suffix="", more=()):
        """None: it is not known, and left out. labels: in the order of the table."""
        if value is not None:
            names = FAMILIES[family][1]
            assert len(labels) == len(names), family
            self.families[family].append((suffix, (*zip(names, labels, strict=True), *more), value))


class Metrics:
    """node: the Node."""

    def __init__(self, node):
        self.node = node
        self._lock = threading.Lock()
        self._highest = {}  # of counters: what is moving from "now" to "before" is missing for a moment, and a counter must not fall

    def collect(self):
        """{family: [(suffix, ((label, value), ...), number)]}"""
        samples = Samples()
        for part in (_agent, _jobs, _results, _volumes, _shapes, _process):
            part(self.node, samples)
        with self._lock:
            self._hold_counters(samples.families)
        return samples.families

    def _hold_counters(self, families):
        highest = {}
        for name, values in families.items():
            if FAMILIES[name][0] != "counter":
                continue
            for number, (suffix, labels, value) in enumerate(values):
                highest[name, labels] = value = max(value, self._highest.get((name, labels), 0))
                values[number] = (suffix, labels, value)
        self._highest = highest

    def text(self):
        return render(self.collect())

    def as_list(self):
        """For JSON."""
        return [
            {
                "name": name, "type": FAMILIES[name][0], "help": FAMILIES[name][2],
                "samples": [{"name": name + suffix, "labels": dict(labels), "value": value} for suffix, labels, value in values],
            }
            for name, values in self.collect().items() if values
        ]  # fmt: skip


def render(families):
    """The text format 0.0.4."""
    lines = []
    for name, values in families.items():
        if values:
            kind, _labels, about = FAMILIES[name]
            lines += [f"# HELP {name} {_escaped(about)}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{suffix}{_labels_text(labels)} {_number(value)}" for suffix, labels, value in values]
    return "\n".join(lines) + "\n"


def _escaped(text):
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _labels_text(labels):
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(str(value)).replace(chr(34), chr(92) + chr(34))}"' for name, value in labels) + "}"


def _number(value):
    if isinstance(value, float):
        return "+Inf" if value == math.inf else repr(value)
    return str(int(value))


def _timestamp(iso):
    return datetime.fromisoformat(iso).timestamp() if iso else None


def _agent(node, samples):
    from qrep._native import hasher

    samples.put("qrep_build_info", 1, __version__, hasher.isa())
    samples.put("qrep_start_time_seconds", node.started.timestamp())
    for level in ("info", "warning", "error"):
        samples.put("qrep_events_total", node.events.counts[level], level)
    for result in ("ok", "failed", "timed-out", "dropped"):
        samples.put("qrep_hooks_total", node.hooks.counts[result], result)
    samples.put("qrep_hooks_waiting", node.hooks.waiting())
    for result in ("applied", "refused"):
        samples.put("qrep_config_reloads_total", node.figures.reloads[result], result)
    counts = node.listener.counts()
    for peer in node.peers.all():
        samples.put("qrep_peer_connections", counts.get(peer, 0), peer)
    samples.put("qrep_connections_half_open", node.network.half_open())


def _jobs(node, samples):
    for _name, runner in node.jobs.all():
        job = job_dict(runner)
        _job(samples, job)
        moved = runner.moved_now()
        for what in MOVED:
            samples.put(f"qrep_job_{what}_bytes_total", moved.get(what, 0), job["name"], "source")
    for pair in node.grants.pairs():
        if pair["peer"]:
            _job(samples, received(node, pair))
    runs = node.slots.as_dict()
    samples.put("qrep_runs_queued", runs["waiting"])
    samples.put("qrep_runs_running", runs["going"])
    samples.put("qrep_runs_limit", runs["limit"])


def _job(samples, job):
    who, progress = (job["name"], job["role"]), job.get("progress") or {}
    for state in STATES:
        samples.put("qrep_job_state", job["state"] == state, *who, state)
    samples.put("qrep_job_problem", bool(job["problem"]), *who)
    samples.put("qrep_job_lag_seconds", job["lag_seconds"], *who)
    samples.put("qrep_job_last_sync_point_timestamp_seconds", _timestamp(job["last_sync_point"]), *who)
    samples.put("qrep_job_rpo_seconds", parse_rpo(job["rpo"]) if job["rpo"] else None, *who)
    samples.put("qrep_job_next_run_timestamp_seconds", _timestamp(job["next"][0]) if job["next"] else None, *who)
    samples.put("qrep_job_rpo_passed", job["rpo_passed"] if job["rpo"] else None, *who)
    samples.put("qrep_job_queue_position", job["queue"]["position"] if job["queue"] else None, *who)
    samples.put("qrep_job_size_bytes", job["size"], *who)
    last = (job.get("verify") or {}).get("last")
    if last:
        samples.put("qrep_job_verified_timestamp_seconds", _timestamp(last["at"]), job["name"])
        samples.put("qrep_job_verify_differing_bytes", last["different_bytes"], job["name"])
    if job["role"] == "source":
        unsynced = job.get("unsynced") or {}
        samples.put("qrep_job_unsynced_bytes", sum(extent["size"] for extents in unsynced.values() for extent in extents), *who)
    percent = progress.get("percent")
    samples.put("qrep_job_progress_ratio", None if percent is None else percent / 100, *who)
    samples.put("qrep_job_rate_bytes_per_second", float(job["rate_bytes_per_s"] or 0), *who)
    limit = job.get("limit")
    samples.put("qrep_job_limit_bytes_per_second", limit["rate_bytes_per_s"] if limit else None, *who)
    going = [one for one in progress.get("connections") or () if one["state"] != "down"]
    samples.put("qrep_job_connections", len(going), *who)
    for path in job["paths"] or ():
        place = (job["name"], path["number"], path["from"], path["to"])
        samples.put("qrep_path_up", None if path["state"] == "unknown" else path["state"] == "up", *place)
        samples.put("qrep_path_active", path["active"], *place)


def _results(node, samples):
    figures = node.figures
    for name, _runner in node.jobs.all():
        for result in ("committed", "degraded", "failed", "stopped"):
            samples.put("qrep_job_runs_total", figures.runs[name, result], name, result)
        for result in ("equal", "differs", "failed"):
            samples.put("qrep_job_verifies_total", figures.verifies[name, result], name, result)
        samples.put("qrep_job_interruptions_total", figures.interruptions[name], name)
        durations = figures.durations.get(name)
        if durations is None:
            continue
        for limit, count in zip((*BUCKETS_S, math.inf), durations.counts, strict=True):
            samples.put(HISTOGRAM, count, name, suffix="_bucket", more=(("le", _number(limit)),))
        samples.put(HISTOGRAM, durations.sum, name, suffix="_sum")
        samples.put(HISTOGRAM, durations.counts[-1], name, suffix="_count")
        samples.put("qrep_job_last_run_duration_seconds", durations.last, name)


def _volumes(node, samples):
    for volume in node.volumes.all():
        target = volume.target
        if target is None and volume.error is None:
            continue
        samples.put("qrep_volume_in_service", target is not None and not target.damaged, volume.name)
        if target is None:
            continue
        status = target.status()
        samples.put("qrep_volume_sync_points", status["sync_points"], volume.name)
        samples.put("qrep_volume_attached", len(node.attachments.of_volume(volume.name)), volume.name)
        samples.put("qrep_volume_undo_used_bytes", status["undo_used"], volume.name)
        samples.put("qrep_volume_undo_limit_bytes", status["undo_limit"], volume.name)
        session = status["session"] or {}
        for what in ("received", "written"):
            samples.put(f"qrep_volume_{what}_bytes_total", target.moved[what] + session.get(what, 0), volume.name)


def _shapes(node, samples):
    rates = {runner.settings.shape: 0.0 for _name, runner in node.jobs.all() if runner.settings.shape}
    for _name, runner in node.jobs.all():
        if runner.settings.shape:
            rates[runner.settings.shape] += (runner.progress() or {}).get("rate_bytes_per_s") or 0.0
    for shape in node.shapes.all():
        samples.put("qrep_shape_limit_bytes_per_second", shape["rate_bytes_per_s"], shape["name"])
        samples.put("qrep_shape_rate_bytes_per_second", rates.get(shape["name"], 0.0), shape["name"])


def _process(_node, samples):
    with open("/proc/self/statm") as file:
        samples.put("process_resident_memory_bytes", int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    samples.put("process_cpu_seconds_total", time.process_time())
    samples.put("process_open_fds", len(os.listdir("/proc/self/fd")))
    samples.put("process_max_fds", resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    samples.put("process_threads", len(os.listdir("/proc/self/task")))
