"""Every metric family of the agent: what it is called, its type, its labels and what it means. docs/METRICS.md is made from this table.

Names follow the conventions of Prometheus: base units, `_total` for what only grows. The label of a job is `qrep_job`, because `job` belongs to
the scrape configuration.
"""

BUCKETS_S = (1, 5, 15, 60, 300, 900, 3600, 14400, 43200, 86400)  # of run durations

JOB = ("qrep_job", "role")
# name: (type, labels, help)
FAMILIES = {
    "qrep_build_info": ("gauge", ("version", "isa"), "Always 1; the version, and the hash kernel in use."),
    "qrep_start_time_seconds": ("gauge", (), "When the agent started, in seconds since 1970."),
    "qrep_job_state": ("gauge", (*JOB, "state"), "1 for the state that a job is in, 0 for the others."),
    "qrep_job_problem": ("gauge", JOB, "1 while something is wrong with a job: what qrep status gives an action for."),
    "qrep_job_lag_seconds": ("gauge", JOB, "Age of the last sync point, by the time its source was frozen."),
    "qrep_job_last_sync_point_timestamp_seconds": ("gauge", JOB, "When the last sync point was frozen, in seconds since 1970."),
    "qrep_job_rpo_seconds": ("gauge", JOB, "The lag that the job may have (its setting rpo)."),
    "qrep_job_rpo_passed": ("gauge", JOB, "1 while the last sync point is older than the rpo of the job."),
    "qrep_job_queue_position": ("gauge", JOB, "Place of a run that waits for its turn; 1 is next."),
    "qrep_job_next_run_timestamp_seconds": ("gauge", JOB, "When the schedule starts the job next, in seconds since 1970."),
    "qrep_job_size_bytes": ("gauge", JOB, "Size of the volume."),
    "qrep_job_unsynced_bytes": ("gauge", JOB, "Bytes of the source that could not be brought to the target."),
    "qrep_job_progress_ratio": ("gauge", JOB, "How much of the present run is done, 0 to 1."),
    "qrep_job_rate_bytes_per_second": ("gauge", JOB, "Rate of the present run."),
    "qrep_job_limit_bytes_per_second": ("gauge", JOB, "Rate that is in force for the job at the moment; missing where it is unlimited."),
    "qrep_job_connections": ("gauge", JOB, "Connections of the run that goes on."),
    "qrep_job_read_bytes_total": ("counter", JOB, "Bytes of the source that were read, since the agent started."),
    "qrep_job_hashed_bytes_total": ("counter", JOB, "Bytes that were hashed."),
    "qrep_job_zero_bytes_total": ("counter", JOB, "Bytes that were zero, and neither hashed nor sent."),
    "qrep_job_changed_bytes_total": ("counter", JOB, "Bytes that differed from the last sync point."),
    "qrep_job_sent_bytes_total": ("counter", JOB, "Bytes that were sent: changed data in frames, with their headers."),
    "qrep_job_copies_bytes_total": ("counter", JOB, "Bytes of changed leaves that were not sent because they are copies of others in the same frame."),
    "qrep_job_packed_bytes_total": ("counter", JOB, "Bytes of changed data that were packed before they were sent."),
    "qrep_job_packed_sent_bytes_total": ("counter", JOB, "Bytes that those took once they were packed; they are in qrep_job_sent_bytes_total."),
    "qrep_job_written_bytes_total": ("counter", JOB, "Bytes that the target said it has written."),
    "qrep_job_runs_total": ("counter", ("qrep_job", "result"), "Runs by how they ended: committed, degraded, failed, stopped."),
    "qrep_job_interruptions_total": ("counter", ("qrep_job",), "Times that a run lost its connection."),
    "qrep_job_verifies_total": ("counter", ("qrep_job", "result"), "Verifies by their result: equal, differs, failed."),
    "qrep_job_verified_timestamp_seconds": ("gauge", ("qrep_job",), "When the last verify came to its end."),
    "qrep_job_verify_differing_bytes": ("gauge", ("qrep_job",), "What the last verify found at the target that was not committed, and did not heal."),
    "qrep_job_run_duration_seconds": ("histogram", ("qrep_job",), "How long runs took that were committed."),
    "qrep_job_last_run_duration_seconds": ("gauge", ("qrep_job",), "How long the last run took that was committed."),
    "qrep_path_up": ("gauge", ("qrep_job", "path", "from", "to"), "1 while a path of a job is well; missing while it has not been tried."),
    "qrep_path_active": ("gauge", ("qrep_job", "path", "from", "to"), "1 for the path that a job uses."),
    "qrep_shape_limit_bytes_per_second": ("gauge", ("shape",), "Rate of a shaping group in force now; missing where it is unlimited."),
    "qrep_shape_rate_bytes_per_second": ("gauge", ("shape",), "What the jobs of a shaping group send at the moment."),
    "qrep_volume_in_service": ("gauge", ("volume",), "0 while a target volume cannot be used: its device is not there, or its records are damaged."),
    "qrep_volume_sync_points": ("gauge", ("volume",), "Earlier sync points that a target volume can go back to."),
    "qrep_volume_attached": ("gauge", ("volume",), "Sync points of a target volume that are attached as devices or exports; their undo is kept."),
    "qrep_volume_undo_used_bytes": ("gauge", ("volume",), "Undo space that a target volume takes."),
    "qrep_volume_undo_limit_bytes": ("gauge", ("volume",), "Undo space that a target volume may take."),
    "qrep_volume_received_bytes_total": ("counter", ("volume",), "Bytes of frames that arrived for a target volume, since it was opened."),
    "qrep_volume_written_bytes_total": ("counter", ("volume",), "Bytes that were written to a target volume."),
    "qrep_runs_running": ("gauge", (), "Runs that go on."),
    "qrep_runs_queued": ("gauge", (), "Runs that wait for their turn."),
    "qrep_runs_limit": ("gauge", (), "Runs that may go on at once (limits.jobs_running)."),
    "qrep_peer_connections": ("gauge", ("peer",), "Connections of a peer to this host that are served."),
    "qrep_connections_half_open": ("gauge", (), "Connections to this host that have not proved who they are."),
    "qrep_events_total": ("counter", ("level",), "Events by level, with those that were counted instead of told."),
    "qrep_hooks_total": ("counter", ("result",), "Hooks by result: ok, failed, timed-out, dropped."),
    "qrep_hooks_waiting": ("gauge", (), "Hooks that wait to be run."),
    "qrep_config_reloads_total": ("counter", ("result",), "Reloads of the configuration: applied, refused."),
    "process_resident_memory_bytes": ("gauge", (), "Memory of the agent that is resident."),
    "process_cpu_seconds_total": ("counter", (), "Processor time of the agent."),
    "process_open_fds": ("gauge", (), "File descriptors that are open."),
    "process_max_fds": ("gauge", (), "File descriptors that may be open."),
    "process_threads": ("gauge", (), "Threads of the agent."),
}  # fmt: skip

HEAD = """# Metrics

Generated from `src/qrep/daemon/metrictable.py` by `python -m qrep.daemon.metrictable`.

The agent tells its metrics in the text format of Prometheus on its own socket, and opens no network port for them:

    qrep metrics                                                   # or: curl --unix-socket /run/qrep/qrep.sock http://localhost/metrics

For node_exporter's textfile collector, in qrep.toml; the file is replaced as a whole, and removed when the agent ends:

    [metrics]
    file = "/var/lib/prometheus/node-exporter/qrep.prom"
    every = "15s"

Totals count from the start of the agent, also over the ends of runs. A value that is not known is missing. The label of a job is
`qrep_job`; `role` is source or target: each host tells of its own side.

| family | type | labels | meaning |
|---|---|---|---|
"""
ALERTS = """
## Alerts

```yaml
groups:
  - name: qrep
    rules:
      - alert: QrepAgentGone
        expr: absent(qrep_build_info) or time() - node_textfile_mtime_seconds{file=~".*qrep.prom"} > 120
        for: 2m
      - alert: QrepLagAboveRpo
        expr: qrep_job_lag_seconds > on (instance, qrep_job, role) qrep_job_rpo_seconds
        for: 1m
      - alert: QrepJobFailed
        expr: qrep_job_state{state=~"failed|degraded"} == 1
      - alert: QrepSidesDiffer
        expr: increase(qrep_job_verifies_total{result="differs"}[1d]) > 0
      - alert: QrepPathDown
        expr: qrep_path_up == 0
        for: 1m
      - alert: QrepUndoSpaceShort
        expr: qrep_volume_undo_used_bytes / qrep_volume_undo_limit_bytes > 0.9
      - alert: QrepVolumeOutOfService
        expr: qrep_volume_in_service == 0
      - alert: QrepConfigurationRefused
        expr: increase(qrep_config_reloads_total{result="refused"}[1h]) > 0
```
"""


def document():
    """docs/METRICS.md."""
    rows = [f"| {name} | {kind} | {', '.join(labels) or '-'} | {text} |\n" for name, (kind, labels, text) in FAMILIES.items()]
    return HEAD + "".join(rows) + ALERTS


if __name__ == "__main__":
    print(document(), end="")
