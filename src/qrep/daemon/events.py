"""The event log: what happened, with a code for scripts, kept in the state database, followed by those who ask."""

import json
import logging
import os
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime

from qrep.daemon.repeats import Repeats

log = logging.getLogger("qrep.agent")
LEVELS = ("info", "warning", "error")

# code: (level, what it says). docs/EVENTS.md is generated from this table.
CODES = {
    "agent-started": ("info", "the agent serves its socket and its port"),
    "agent-stopped": ("info", "the agent ended in order"),
    "events-suppressed": ("warning", "an event repeated too often to be told every time; the text says how often it was not"),
    "records-damaged": ("error", "the state database was not what had been written; it was made anew of what was, and history may be missing. Or both copies of the pairs were gone"),
    "records-healed": ("warning", "one of the two copies of the pairs was not what had been written; it was made anew of the other"),
    "event-damaged": ("warning", "an event that was noted here has rotted; this stands in its place"),
    "config-reloaded": ("info", "the configuration was read again; what changed, what needs a restart, what could not be done"),
    "config-refused": ("error", "the configuration was to be read again and has errors; nothing was changed"),
    "metrics-not-written": ("warning", "the file of the metrics cannot be written; told once until it can"),
    "hook-failed": ("warning", "a hook could not be started, failed or took too long; it runs no hooks itself"),
    "hooks-dropped": ("warning", "hooks were not run because too many were waiting; it runs no hooks itself"),
    "volume-added": ("info", "a volume was given a name"),
    "volume-changed": ("info", "settings of a volume were changed"),
    "volume-removed": ("info", "a volume was forgotten"),
    "volume-missing": ("error", "the device of a volume is not there, or is not the volume"),
    "volume-recovered": ("warning", "a target volume was brought back to its last sync point at start"),
    "points-forgotten": ("warning", "times and names of a target volume's sync points, and whether they are fuzzy, were damaged and are lost; the sync points are there"),
    "points-out-of-reach": ("error", "earlier sync points of a target volume are lost, or cannot be read now; the newer ones and the volume are well"),
    "volume-damaged": ("error", "qrep's own records of a target volume are damaged; it is out of service"),
    "front-ended": ("error", "the process that faces the network died; connections are cut, it is started again, runs resume"),
    "front-restarted": ("info", "the process that faces the network serves again"),
    "peer-added": ("info", "a host was pinned"),
    "peer-changed": ("info", "whether the paths to a host are trusted, or whether it may switch roles, was changed"),
    "peer-tested": ("info", "the paths to a host were measured"),
    "peer-removed": ("info", "a host is not trusted any more"),
    "peer-refused": ("warning", "a connection was closed before its first message"),
    "role-changed": ("warning", "a volume became primary or a replica: who may write it has changed"),
    "role-finished": ("warning", "a change of role that had been interrupted was finished: at the agent's start, or when what it wanted was there again"),
    "role-file": ("warning", "the file of a job was from before a change of roles, and was put right at the agent's start"),
    "role-taken-back": ("warning", "a change of role that the end of the agent had interrupted did not happen"),
    "role-map-left-out": ("warning", "after a change of role the map of the other side could not be made (no room, say): the next run compares instead"),
    "role-unfinished": ("error", "a change of role is decided and cannot be finished; it is tried again every 30 s, and at the next start"),
    "snapshot-restored": ("warning", "a sync point was put back and sent to the source of its job"),
    "split-brain": ("error", "both sides of a job are primary; a run was refused and nothing written"),
    "pair-created": ("info", "a peer's job may write to a volume here"),
    "target-given-back": ("info", "a copy was made to this volume; its device is free, and it is no replica any more"),
    "pair-deleted": ("info", "a peer's job may not write here any more"),
    "job-created": ("info", "a job was created"),
    "job-changed": ("info", "settings of a job were changed"),
    "job-deleted": ("info", "a job was deleted"),
    "shape-changed": ("info", "a shaping group was made, or its rates or hours were changed"),
    "shape-switched": ("info", "the hours of a shaping group began or ended: another rate is in force"),
    "shape-deleted": ("info", "a shaping group was deleted"),
    "limit-changed": ("info", "the rate of all jobs of this node together was changed"),
    "run-started": ("info", "a run began, or was resumed"),
    "run-committed": ("info", "a generation was committed: a new sync point"),
    "copy-made": ("info", "a job of mode copy is committed and over: its target was given back"),
    "clone-converted": ("info", "a clone became a job that waits for its disk; the disk can be moved"),
    "clone-adopted": ("info", "a volume was proved to be the clone of a job, and is its replica"),
    "clone-refused": ("warning", "a volume was offered to a job as its clone, and is not; nothing was written"),
    "job-rebuilt": ("info", "a job goes on with the volume that its clone's disk is now"),
    "rebuild-refused": ("warning", "a rebuild ended before a volume was adopted: it is not the clone, or cannot be had; nothing was written to it"),
    "run-fuzzy": ("warning", "the sync point was taken of a live source and is fuzzy"),
    "run-interrupted": ("warning", "a run lost its connection and is tried again"),
    "path-down": ("warning", "a path of a job does not lead to its peer any more"),
    "path-up": ("info", "a path of a job leads to its peer again"),
    "path-switched": ("warning", "a run goes on over another path"),
    "path-added": ("info", "a job was given one more path"),
    "path-removed": ("info", "a job has one path less"),
    "path-preferred": ("info", "a person chose the path that a job prefers"),
    "run-resumed": ("info", "a run goes on from what the target has applied"),
    "connection-added": ("info", "a path of a job was given one more data connection"),
    "connection-removed": ("info", "a path of a job has one data connection less"),
    "connection-down": ("warning", "a data connection of a run cannot be had; the others do its work and it is tried again"),
    "connection-up": ("info", "a data connection that could not be had is there"),
    "run-taken-up": ("info", "a run that was going when the agent ended was started again"),
    "run-stopped": ("info", "a run was stopped; what was applied is kept"),
    "run-failed": ("error", "a run failed; the target is at its last sync point or can be brought there"),
    "group-frozen": ("info", "every source of a consistency group was frozen at one moment"),
    "group-committed": ("info", "every member of a consistency group was committed, all at once"),
    "group-withdrawn": ("error", "a member of a consistency group could not be committed, so none was; or one was stopped before that was known"),
    "group-unsettled": ("warning", "a crash came between the commit of a consistency group and its superblocks; they follow as the volumes are opened"),
    "group-damaged": ("error", "the record of a group commit cannot be read; volumes that it may name are out of service"),
    "run-coalesced": ("info", "a scheduled time came while a run of the job went on or waited for its turn; that run stands for it"),
    "run-missed": ("warning", "scheduled times passed while the agent was down or the host slept; they are one run now, or none, as the job says"),
    "run-not-started": ("error", "a scheduled run could not be started; it is tried again"),
    "rpo-passed": ("warning", "the last sync point of a job became older than its rpo"),
    "rpo-met": ("info", "the last sync point of a job is younger than its rpo again"),
    "clock-jumped": ("warning", "the wall clock was set, or the host slept; schedules go by the new time"),
    "hint-wrong": ("warning", "what the filesystem or driver said had not changed since the last run has; everything is read until it was right again"),
    "snapshot-given-back": ("warning", "a snapshot that waited for the next run was removed before its space ran full; that run scans everything, or starts anew"),
    "snapshot-left": ("warning", "the snapshot of a job could not be given back"),
    "source-unreadable": ("error", "sectors of the source cannot be read; nothing was committed"),
    "target-unwritable": ("error", "sectors of the target cannot be written; nothing was committed"),
    "run-degraded": ("warning", "a run applied all but the blocks it names; its generation stays open and is no sync point"),
    "generation-abandoned": ("warning", "an open generation was given up; the target volume is back at its last sync point"),
    "device-differs": ("error", "what a verify read of a target's device is not what was committed"),
    "verify-started": ("info", "a verify has begun by its schedule, or goes on"),
    "verify-gave-way": ("info", "a scheduled verify was ended by a run that is due; it goes on after it"),
    "verify-equal": ("info", "both sides are equal at the last sync point"),
    "verify-differs": ("error", "the sides differ"),
    "verify-healed": ("warning", "damaged leaves of the target were healed from the source"),
    "verify-failed": ("error", "a verify could not be finished"),
    "rolled-back": ("warning", "a target volume was put back to an earlier sync point"),
    "snapshot-copied": ("info", "a sync point was copied out"),
    "attached": ("info", "a sync point was attached as a device or an export"),
    "detached": ("info", "it was detached; what was written to it is gone"),
    "attach-full": ("warning", "as much was written to an attached sync point as may be; whoever writes is told that there is no space"),
    "attach-ended": ("warning", "an attached sync point cannot be used any more: its process or its volume ended, or the agent did"),
    "snapshot-deleted": ("info", "a sync point was deleted"),
    "snapshots-thinned": ("info", "sync points that neither the job nor the volume asks for any more were given up"),
    "retention-failed": ("warning", "sync points that nobody asks for any more could not be given up; it is tried again after the next run"),
    "session-ended": ("warning", "a source's session on a volume here ended with an error"),
}

LIMIT = 1000  # events in one reading
TEXT_MAX = 2000  # characters; some of it comes from peers
PRIORITIES = {"info": "<6>", "warning": "<4>", "error": "<3>"}  # of sd-daemon(3), read where stderr is the journal


class EventLog:
    """Thread-safe. `db`: StateDb. With `echo` every event is also one line on stderr, for the service log."""

    def __init__(self, db, echo=True, audit=None):
        """audit: an AuditLog that gets every event that is told, too."""
        self.db, self.echo, self.audit = db, echo, audit
        self.counts = Counter()  # by level, since the agent started, with those that were not told
        self.group_of = lambda job: ""  # the consistency group of a job of this host
        self.observers = []  # called with (code, job, data) of every event, told or only counted: they must not wait
        self.listeners = []  # called with every event that is told, in the thread that adds it: they must not wait
        self._repeats = Repeats()
        self._lock = threading.Lock()
        self._news = threading.Condition()
        self._last = db.newest_event()
        self._priorities = PRIORITIES if "JOURNAL_STREAM" in os.environ else {}

    def add(self, code, text, *, job=None, volume=None, **data):
        level = CODES[code][0]
        group = self.group_of(job) if job is not None and volume is None else ""
        if group:
            data |= {"group": group}
        with self._lock:
            self.counts[level] += 1
            for observer in self.observers:
                observer(code, job, data)
            admitted = self._repeats.admit((code, job, volume, data.get("peer")), time.monotonic())
        if admitted:
            self._tell(level, code, text, job, volume, data)

    def tell_suppressed(self, everything=False):
        """Tell what was counted instead of told, once its period is over. Called every now and then, and at the end."""
        with self._lock:
            due = self._repeats.due(time.monotonic(), everything)
        for (code, job, volume, peer), count in due:
            data = {"suppressed": code, "count": count} | ({"peer": peer} if peer else {})
            self._tell("warning", "events-suppressed", f"{code}: {count} more were not told one by one", job, volume, data)

    def prune(self, settings):
        """Forget what is older or more than config.EventsSection says."""
        self.db.prune_events(settings.keep, time.time() - settings.seconds())

    def _tell(self, level, code, text, job, volume, data):
        text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[:TEXT_MAX])
        now = time.time()
        row = self.db.add_event(now, level, code, text, job, volume, data)
        if self.echo:
            prefix = self._priorities.get(level, "")
            print(f"{prefix}qrep {level}: {code}: {job or volume or '-'}: {text}", file=sys.stderr, flush=True)
        if self.audit is not None:
            self.audit.add({"id": row, "time": now, "level": level, "code": code, "job": job, "volume": volume, "text": text, "data": data})
        event = {"id": row, "time": now, "level": level, "code": code, "job": job, "volume": volume, "text": text, "data": data}
        for listener in self.listeners:
            listener(_shown(event))
        if row is None:  # it could not be noted
            return
        with self._news:
            self._last = max(self._last, row)
            self._news.notify_all()

    @property
    def last(self):
        """The id of the newest event."""
        return self._last

    def read(self, after=0, since=0.0, job=None, level=None, codes=()):
        """(events, position): up to LIMIT events after an id and a time (seconds), oldest first, as the local API gives them.

        level: this one or a worse one. position: the id to go on after, also where nothing fits.
        """
        newest = self._last
        if after > newest:  # of one that is just being told, or of a log that was lost: then this is another one
            newest = self.db.newest_event()
            if after > newest:
                after = 0
        levels = LEVELS[LEVELS.index(level) :] if level else ()
        rows = self.db.events(after, since, job, levels, codes, LIMIT)
        position = rows[-1]["id"] if len(rows) == LIMIT else max([after, newest, *(row["id"] for row in rows[-1:])])
        return [_shown(row | {"data": json.loads(row["data"])}) for row in rows], position

    def wait(self, after, timeout):
        """Wait until there is an event later than `after`, at most `timeout` seconds."""
        with self._news:
            return self._news.wait_for(lambda: self._last > after, timeout)


def _shown(event):
    return event | {"time": datetime.fromtimestamp(event["time"], UTC).isoformat(timespec="milliseconds")}


HEAD = """# Events

Generated from `src/qrep/daemon/events.py` by `python -m qrep.daemon.events`.

    qrep events --since 2h --level warning          # or --code run-failed, any number of times; a JOB; --json: one object a line
    qrep events -f                                  # goes on when the agent is restarted

An event that repeats more than 30 times in a minute about one job, volume or peer is counted from then on, and the count is told when the
minute is over (events-suppressed). What is told is a line of `audit.log` in the state directory as well, each with a hash of the line before it: `qrep check` says
where a line was changed, taken out or put in, and the service log has the newest hash from every start of the agent. The log keeps 100,000 events and 90 days, and its newest 1000 always (`[events]` in qrep.toml).

## Hooks

A command can be run when something happens; in qrep.toml:

    [[hooks]]
    events = ["run-failed", "error"]        # codes, or levels: a level stands for itself and worse ones
    command = ["/usr/local/sbin/tell", "ops"]
    timeout = "30s"

No shell is involved; the path is absolute. The command gets the event as one JSON object on standard input and as QREP_EVENT_ID, _TIME,
_LEVEL, _CODE, _JOB, _VOLUME and _TEXT in its environment. It runs as the agent's user (root), in `/`, in a session of its own, within the
sandbox of the agent's systemd unit; texts in an event may come from a peer, so it must not hand them to a shell unquoted. Four run at
once and 256 wait; what does not fit is counted and told (hooks-dropped). One that takes longer than its time-out is killed with its process
group. A hook that fails is an event (hook-failed); these two never run a hook. When the agent ends, hooks get one second.

## Codes

| code | level | meaning |
|---|---|---|
"""


def document():
    """docs/EVENTS.md."""
    return HEAD + "".join(f"| {code} | {level} | {text} |\n" for code, (level, text) in CODES.items())


if __name__ == "__main__":
    print(document(), end="")
