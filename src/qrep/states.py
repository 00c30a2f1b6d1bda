"""The states of the control plane, as literal tables: phase -> event -> the phases it may lead to.

The machines of `protocol/` obey these tables: an event that is not listed in the current phase is refused, and a phase change that is
not listed is a bug of ours and asserts. An event that leaves the phase as it is, is listed with that phase.
docs/STATES.md is generated from them: `python -m qrep.states > docs/STATES.md`.
"""

# One target volume, as long as its device is claimed. "*": any control session.
TARGET = {
    "down": {"start": ("recovering", "idle", "open", "primary", "faulted")},
    # The device is being brought back to the committed generation; nothing else is listened to.
    "recovering": {"undo_restored": ("idle",), "failed": ("faulted",)},
    # The device holds exactly the committed generation.
    "idle": {
        "hello": ("idle",), "begin": ("open", "idle"), "abort": ("idle",), "scan": ("idle",), "check": ("idle",), "get-nodes": ("idle",), "repair": ("idle",),
        "get-leaves": ("idle",), "get-root": ("idle",), "ping": ("idle",), "resume": ("idle",), "rollback": ("rolling",),
        "prepare": ("idle",), "hold": ("idle",), "commit": ("idle",), "add-connections": ("idle",), "connections_ended": ("idle",),
        "lanes_failed": ("idle",), "disconnected": ("idle",), "abandon": ("idle",), "checkpoint_due": ("idle",),
        "failed": ("idle", "faulted"), "take_over": ("primary",),
    },
    # Its host writes it; every session is refused. The device is claimed only while it is about to be given up (docs/ROLES.md).
    "primary": {"hello": ("primary",), "disconnected": ("primary",), "lanes_failed": ("primary",), "abandon": ("primary",), "give_up": ("mapping",),
                "checkpoint_due": ("primary",), "connections_ended": ("primary",), "failed": ("primary", "faulted")},
    # What its host left is read, to be a generation.
    "mapping": {"device_mapped": ("idle",), "hello": ("mapping",), "disconnected": ("mapping",), "lanes_failed": ("mapping",), "abandon": ("mapping",),
                "checkpoint_due": ("mapping",), "connections_ended": ("mapping",), "failed": ("primary", "faulted")},
    # A generation is open; lanes may be running or not.
    "open": {
        "hello": ("open",), "begin": ("recovering", "open", "idle"), "resume": ("open",), "prepare": ("preparing", "open"), "hold": ("preparing", "open"),
        "add-connections": ("open",), "connections_ended": ("open",),
        "commit": ("open",), "abort": ("recovering", "idle", "open"), "ping": ("open",), "scan": ("open",), "check": ("open",), "get-nodes": ("open",), "repair": ("open",),
        "get-leaves": ("open",), "get-root": ("open",), "lanes_failed": ("open", "recovering", "idle"),
        "disconnected": ("open",), "abandon": ("recovering", "idle"), "checkpoint_due": ("open",),
        "failed": ("recovering", "idle", "faulted", "open"),
    },
    # Waiting for the last writes, then for the comparison of what was applied with what was announced; open again where blocks are missing.
    "preparing": {
        "manifest_collected": ("prepared", "open"),
        "failed": ("open", "recovering", "idle", "faulted"),
    },
    # Everything is on the device and flushed; one sector decides.
    "prepared": {
        "hello": ("prepared",), "commit": ("idle", "prepared"), "decided": ("idle",), "abort": ("recovering", "idle", "prepared"), "resume": ("open", "prepared"),
        "begin": ("recovering", "open", "idle", "prepared"), "ping": ("prepared",), "disconnected": ("prepared",),
        "scan": ("prepared",), "check": ("prepared",), "get-nodes": ("prepared",), "repair": ("prepared",), "get-leaves": ("prepared",), "get-root": ("prepared",), "prepare": ("prepared",), "hold": ("prepared",),
        "connections_ended": ("prepared",), "abandon": ("recovering", "idle"), "lanes_failed": ("prepared",), "checkpoint_due": ("prepared",),
        "failed": ("recovering", "idle", "faulted"),
    },
    # A sync point is being put back, as an open generation of its own.
    "rolling": {"point_applied": ("idle",), "failed": ("recovering", "idle", "faulted")},
    # Out of service until the volume is opened anew.
    "faulted": {"hello": ("faulted",), "disconnected": ("faulted",), "lanes_failed": ("faulted",), "abandon": ("faulted",),
                "checkpoint_due": ("faulted",), "connections_ended": ("faulted",), "failed": ("faulted",)},
}  # fmt: skip

# One run of a job at its source, over any number of connections in turn.
SOURCE = {
    "new": {"connected": ("greeting",), "stop": ("failed",)},
    "greeting": {"state": ("aborting", "comparing", "freezing", "done"), "stale": ("greeting", "failed")},
    # The target is asked to give up a generation that this run cannot use.
    "aborting": {"aborted": ("comparing", "freezing"), "nak": ("closed",)},
    # Fresh digests of the target, chunk by chunk: the base to compare with.
    "comparing": {"digests": ("comparing", "freezing"), "nak": ("closed",)},
    "freezing": {"frozen": ("searching", "starting")},
    # Where the base is digests without leaf pages: a pass over the frozen image that sends nothing, then the pages of what differs.
    "searching": {"differences_found": ("fetching", "starting"), "lanes_failed": ("failed",)},
    "fetching": {"leaves": ("fetching", "starting"), "nak": ("closed",)},
    # Begin or Resume was sent.
    "starting": {"began": ("sending",), "resumed": ("overlaying", "sending"), "nak": ("closed",), "aborted": ("failed",)},
    # What the target has applied arrives in chunks.
    "overlaying": {"applied": ("overlaying", "sending")},
    "sending": {
        "lanes_finished": ("preparing", "holding", "giving-up"), "lanes_failed": ("closed", "giving-up"), "nak": ("closed", "giving-up"), "aborted": ("failed",),
        "add_connections": ("sending",), "added": ("sending",),
    },
    # Connections asked for just before all was sent may still be added: nobody brings their tokens then.
    "preparing": {
        "prepared": ("committing",), "held": ("degraded", "giving-up"), "nak": ("closed", "giving-up"), "aborted": ("failed",), "added": ("preparing",),
    },
    # Blocks of the source could not be read: the target is told to keep what was applied.
    "holding": {"held": ("degraded",), "nak": ("closed",), "aborted": ("failed",), "added": ("holding",)},
    # COMMIT may have been sent, or that of the group for all its members: only the target knows. It has not if the pending digests could not be written.
    "committing": {"committed": ("done",), "nak": ("closed",), "aborted": ("failed",), "failed": ("giving-up",)},
    # Abort was sent because of a failure here, or of another member of the group: what the target had said before it heard of that may still come.
    "giving-up": {"aborted": ("failed",), "nak": ("failed",), "added": ("giving-up",), "prepared": ("giving-up",), "held": ("giving-up",)},
    # Without a connection; the attempt may still be open at the target.
    "closed": {"connected": ("greeting",), "stop": ("failed",)},
    "done": {},
    "failed": {},
    # Over for now: all but some blocks is applied, nothing is committed, and the attempt is open for the next run.
    "degraded": {},
}  # fmt: skip
# These may come in every phase that has a connection, and lead to "closed" or "failed"; a connection lost while holding, to "degraded".
SOURCE_ANYWHERE = ("disconnected", "failed", "stop", "withdraw", "snapshot_lost", "error")

# A job as a person sees it.
JOB = {
    "idle": {"start": ("queued",), "disable": ("disabled",)},
    # As many runs as the agent may have go on already.
    "queued": {"slot": ("connecting",), "refused": ("failed",), "stop": ("stopped",)},
    "connecting": {"state": ("running",), "retry": ("waiting",), "refused": ("failed",), "stop": ("stopped",)},
    "running": {"commit": ("idle",), "hold": ("degraded",), "cut": ("waiting",), "fail": ("failed",), "stop": ("stopped",)},
    "waiting": {"due": ("connecting",), "stop": ("stopped",), "give-up": ("failed",)},
    "stopped": {"start": ("queued",), "disable": ("disabled",)},
    "failed": {"start": ("queued",), "disable": ("disabled",)},
    # The last run left blocks un-synced; the target holds an open generation, which the next run takes up.
    "degraded": {"start": ("queued",), "disable": ("disabled",)},
    "disabled": {"enable": ("idle",)},
}

TITLES = (("Target volume", TARGET, "down"), ("Source run", SOURCE, "new"), ("Job", JOB, "idle"))


def diagram(table, first):
    """A mermaid state diagram of a table; events that lead from and to the same phases share one arrow."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {_name(first)}"]
    for phase, events in table.items():
        arrows = {}
        for event, targets in events.items():
            for target in targets:
                if target != phase:
                    arrows.setdefault(target, []).append(event)
        lines += [f"    {_name(phase)} --> {_name(target)}: {', '.join(names)}" for target, names in arrows.items()]
    return "\n".join([*lines, "```"])


def _name(phase):
    return phase.replace("-", "_")


def events_table(table):
    """Which events each phase takes, as a Markdown table."""
    rows = ["| phase | takes | leads to |", "|---|---|---|"]
    for phase, events in table.items():
        targets = sorted({target for names in events.values() for target in names if target != phase})
        rows.append(f"| {phase} | {', '.join(events) or '-'} | {', '.join(targets) or '-'} |")
    return "\n".join(rows)


def document():
    """docs/STATES.md."""
    parts = ["# States\n\nGenerated from `src/qrep/states.py` by `python -m qrep.states`; a test holds it up to date. What a phase does not take is refused.\n"]
    for title, table, first in TITLES:
        parts.append(f"## {title}\n\n{diagram(table, first)}\n\n{events_table(table)}\n")
        if table is SOURCE:
            parts.append(f"In every phase with a connection also: {', '.join(SOURCE_ANYWHERE)}.\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(document(), end="")
