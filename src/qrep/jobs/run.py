"""One job at its source: its state, and its runs. How peers are reached is given to it; what people are told of it is in shown.py."""

import time

from qrep import states, units
from qrep.errors import Interrupted, QrepError, Unsynced
from qrep.jobs.activity import Activity
from qrep.jobs.schedule import Timing
from qrep.jobs.verified import Verifies

GOING = ("queued", "connecting", "running", "waiting")  # states in which a run goes on
TAKE_UP_MAX = 3  # times in a row that a run is started again by an agent that died in it


class JobRunner(Activity):
    """A job. At most one run, estimate or verify at a time.

    settings: config.Job. request: a callable that makes the RunRequest of now (inspects the source, chooses the backend).
    dial, connect: how its target is reached (source/flow.py). db: the state database's job and run tables. events: EventLog.
    slots: slots.Slots, the runs that may go on at once. limit: a callable that tells the rate in force, as shown.py shows it.
    paths: JobPaths, None where the target is on this host. zone: a callable that tells the time zone of schedules. ended: called when what went
    on has ended. transport(): how its data travels: local, tls or plain. once: of mode copy, else None: give_back(), called when the run has
    committed, and made(generation), when that is noted.
    """

    def __init__(self, name, settings, *, request, dial, connect, db, events, slots, zone, paths=None, limit=lambda: None, ended=lambda: None,
                 transport=lambda: "local", once=None):  # fmt: skip
        super().__init__(name, settings, paths, ended)
        self.request, self.dial, self.limit, self.transport = request, dial, limit, transport
        self.db, self.events = db, events
        self._connect, self._slots, self._once = connect, slots, once
        self.waiting_for = None  # why a run is in "waiting"
        self.turn = None  # of the run that goes on: its place in the queue
        self.timing = Timing(settings, zone, db.timer(settings.id))
        self.verifies = Verifies(settings, zone, db)
        last = db.last_run(settings.id)
        self._former = None  # what the job was, and what was kept of it, before the run that was enqueued last
        self.label = ""  # the name that the next sync point is to bear
        self.committed_at = last["report"]["frozen_at_ns"] / 1e9 if last else None  # when the last sync point was frozen, wall clock
        kept = db.job(settings.id)
        self.state, self.problem, self.taken_up = kept["state"], kept["problem"], kept["taken_up"]
        self.unfinished = self.state in GOING  # the agent died in it
        if self.unfinished:
            self.state = "stopped"

    # ---- while a run goes on ----

    def set_connections(self, count, removed=None):
        """As Run.set_connections, if a run goes on; the next one asks how many there are."""
        with self._lock:
            active = self.active if self.activity == "run" and self.active is not self.turn else None
        if active is not None:
            active.set_connections(count, removed)

    @property
    def is_going(self):
        return self.activity == "run" and self.state in GOING

    def move(self, why, *, at_once):
        """Have a run that goes on connect anew, over the path that is best now, and resume. at_once False: only where that costs nothing."""
        with self._lock:
            active = self.active if self.activity == "run" and self.active is not self.turn else None
        if active is not None:
            active.move(why, at_once)

    def _progress_of_task(self):
        """For who follows a run: its place in the queue first."""
        queue = self.queue()
        return {"phase": f"queued {queue['position']}/{queue['waiting']}"} if queue else self.progress()

    def queue(self):
        """{"position", "waiting"} of a run that waits for its turn, else None."""
        place = self.turn.place() if self.turn is not None else None
        return {"position": place[0], "waiting": place[1]} if place else None

    # ---- a run ----

    def enqueue(self):
        """What begin("run") took the job for is a run that waits for its turn, and is noted as one: who was told that it has been started sees it, and
        the agent's next start takes it up. run() does it unless it was done."""
        if self.state in GOING:  # a bug of ours: nothing goes on, or begin() would have refused
            self._failed(QrepError(f"{self.name}: internal error: {self.state} without a run", code="internal", hint="please report it with the agent's log"))
        self._former = self.state, self.problem, self.timing.handled, self.db.job(self.settings.id)
        self._go("start", "queued")
        self.problem = None
        self._keep()

    def take_back(self):
        """There will be no run: the job, and what the agent's next start finds of it, are what they were before enqueue(). A time that came since
        is still due."""
        self.state, self.problem, self.timing.handled, kept = self._former
        self.db.set_job(self.settings.id, **kept)
        self.release()

    def run(self, task, cause="", together=None):
        """Reach a new generation. The caller has called begin("run"). cause: why, if nobody asked for it. together: what it shares with others
        that were started with it (RunRequest.together). Returns the report as a dict, raises its QrepError."""
        try:
            result = self._run_alone(task, cause, together)
        except BaseException as error:
            if together is not None:
                together.ended(error)
            raise
        if together is not None:
            together.ended(None)
        return result

    def _run_alone(self, task, cause, together):
        started = time.time()
        try:
            return self._run(task, started, cause, together)
        except Interrupted:
            if self._leaving:  # the state stays what it is, so that the next start sees a run to take up
                self.taken_up = 0
            else:
                self._go("stop", "stopped")
            self._keep()
            after = "it is taken up when the agent starts again" if self._leaving else "start goes on from there"
            self.events.add("run-stopped", f"what has been applied is kept; {after}", job=self.name)
            raise
        except Unsynced as error:
            self._degraded(error)
            raise
        except QrepError as error:
            self._failed(error)
            raise
        except OSError as error:
            wrapped = QrepError(f"{self.name}: {error}")
            self._failed(wrapped)
            raise wrapped from error
        except Exception as error:  # a bug of ours: a job that stayed "running" could never be started again
            if self.state in GOING:
                self._failed(QrepError(f"{self.name}: internal error: {error!r}", code="internal", hint="please report it with the agent's log"))
            raise
        finally:
            self.end()

    def _run(self, task, started, cause, together):
        from qrep.source.flow import Run
        from qrep.source.found import put_into_map

        if self.state != "queued":
            self.enqueue()
        task.progress = self._progress_of_task
        with (self._slots if together is None else together).turn() as self.turn:
            self.follow(self.turn)
            if not self.turn.wait():
                raise Interrupted(f"{self.name} was stopped")
            self._go("slot", "connecting")
            self._keep()
            request = self.request()
            request.together, request.label = together, self.label
            put_into_map(request)
            run = Run(request, self._dial_for_run, self._connect, observer=self, on_lost=self.paths and self.paths.lost)
            self.follow(run)
            if together is not None:
                together.joined(run)
            text = f"{self.settings.source} -> {self.settings.target}{', ' if cause else ''}{cause}"
            self.events.add("run-started", text, job=self.name)
            report = run.run()
            if self._once is not None:
                self._once.give_back()
            result = self._committed(report, started)
            if self._once is not None:
                self._once.made(report.generation)
            return result

    def _dial_for_run(self):
        """Called by the run for its first connection and after every interruption."""
        if self.state == "waiting":
            self._go("due", "connecting")
        elif self.state == "running":  # the target closed the session in order, and the run dials again
            self._go("cut", "waiting")
            self._go("due", "connecting")
        channel = self.dial()
        self._go("state", "running")
        return channel

    def event(self, code, text, **data):
        """What the run wants told while it goes on. That it is fuzzy is told when it is committed."""
        if code == "run-interrupted":
            self.waiting_for = text
            self._go("cut" if self.state == "running" else "retry", "waiting")
        if code != "run-fuzzy":
            self.events.add(code, text, job=self.name, **data)

    def _committed(self, report, started):
        self._go("commit", "idle")
        self.taken_up = 0
        self._keep()
        result = report.as_dict() | {"size": self.settings.size}
        # A commit whose acknowledgement was lost is found without freezing anew.
        result["frozen_at_ns"] = report.frozen_at_ns or int(started * 1e9)
        result["rate_bytes_per_s"] = report.sent / report.seconds if report.sent and report.seconds else None
        self.committed_at = result["frozen_at_ns"] / 1e9
        self.db.add_run(self.settings.id, started, result)
        self.events.add(
            "run-committed",
            f"generation {report.counter}: sent {units.format_size(report.sent)} in {units.format_time_to_go(report.seconds)}",
            job=self.name, counter=report.counter, root=report.root, fuzzy=report.fuzzy, sent=report.sent,
            seconds=round(report.seconds, 3),
        )  # fmt: skip
        if report.fuzzy:
            self.events.add(
                "run-fuzzy", f"generation {report.counter} was read of a live source: this sync point is fuzzy", job=self.name
            )
        return result

    def _degraded(self, error):
        """Blocks were left out. What was applied waits in an open generation at the target, unless the target had to go back."""
        self._go("hold", "degraded")
        self.taken_up = 0
        unsynced = {
            "source": [{"offset": offset, "size": size} for offset, size in error.unreadable],
            "target": [{"offset": offset, "size": size} for offset, size in error.unwritten],
        }
        self.problem = {"code": error.code, "text": error.message, "action": f"{error.hint}: qrep start {self.name}", "unsynced": unsynced}
        self._keep()
        for code, extents in (("source-unreadable", unsynced["source"]), ("target-unwritable", unsynced["target"])):
            if extents:
                self.events.add(code, error.message, job=self.name, extents=extents)
        self.events.add("run-degraded", error.message, job=self.name)

    def _failed(self, error):
        self._go({"running": "fail", "waiting": "give-up"}.get(self.state, "refused"), "failed")
        action = error.hint or f"qrep events {self.name} shows what led to it; qrep start {self.name} tries again"
        self.problem = {"code": error.code, "text": error.message, "action": action}
        self._keep()
        self.events.add("run-failed", error.message, job=self.name, reason=error.code)

    def last_committed(self):
        """The report of the last run that was committed, or None."""
        last = self.db.last_run(self.settings.id)
        return last["report"] if last else None

    def note_problem(self, error):
        """What the other side's doings mean for this job, until its next run; a run that goes on tells of its own."""
        if self.activity != "run":
            self.problem = {"code": error.code, "text": error.message, "action": error.hint}
            self._keep()

    # ---- its state ----

    def _go(self, event, state):
        assert state in states.JOB[self.state].get(event, ()), f"job {self.state}: {event} -> {state}"
        self.state = state

    def _keep(self):
        self.db.set_job(self.settings.id, self.state, self.problem, self.taken_up)

    def may_take_up(self):
        """Whether an unfinished run is to be started again; the caller does it. Counts, so that a run that kills the agent ends."""
        if not self.unfinished:
            return False
        self.unfinished = False
        if self.taken_up >= TAKE_UP_MAX:
            self.problem = {
                "code": "agent-died",
                "text": f"the agent ended {self.taken_up + 1} times in a row in this run; it is not taken up again",
                "action": f"see the service log for why; then qrep start {self.name}",
            }
            self.state, self.taken_up = "failed", 0
            self._keep()
            self.events.add("run-failed", self.problem["text"], job=self.name, reason="agent-died")
            return False
        self.taken_up += 1
        return True
