"""What is known of one job's verifies: when the next one is due, whether one waits to go on, and what the last one found."""

import time
from datetime import UTC, datetime

from qrep.extents import describe
from qrep.jobs.schedule import Timing

GIVE_WAY_MAX = 3  # times in a row that a scheduled verify ends for a run without having got further: then a run waits for it, or it would never end


class _Times:
    """The settings of a job as Timing reads them."""

    rpo = ""

    def __init__(self, settings):
        self._settings = settings

    @property
    def schedule(self):
        return self._settings.verify_schedule


class Verifies:
    """settings: settings.Job, which may change under it. zone: callable. db: the state database.

    again: one was interrupted that nobody asked to end, and goes on when the job has nothing else to do. scheduled: the one that goes on was
    begun by its schedule. last: what people are told of the last one that came to its end, or None.
    """

    def __init__(self, settings, zone, db):
        self.settings, self._db = settings, db
        self.timing = Timing(_Times(settings), zone, db.timer(self.timer_id))
        kept = db.verified(settings.id)
        self.last, self.unfinished = kept["last"], kept["unfinished"]
        self.again = self.unfinished
        self.scheduled = self.giving_way = False
        self._gave_way, self._reached, self._began = 0, 0, 0.0

    @property
    def timer_id(self):
        return f"{self.settings.id}:verify"

    def begin(self, scheduled):
        self.scheduled, self.giving_way, self.again, self._began = scheduled, False, False, time.monotonic()
        self._note(scheduled)

    def may_give_way(self):
        return self.scheduled and self._gave_way < GIVE_WAY_MAX

    def interrupted(self, leaving, reached):
        """It was stopped. leaving: the agent ends. reached: granules that it has read. Returns whether it goes on later by itself."""
        if self.giving_way:
            self._gave_way = 0 if reached > self._reached else self._gave_way + 1
        self._reached = max(reached, self._reached)
        self.again = self.giving_way or (leaving and self.scheduled)
        self._note(self.again)
        return self.again

    def failed(self):
        self._gave_way = self._reached = 0
        self._note(False)

    def finished(self, result):
        """result: of jobs/look.py."""
        repair = result["repair"] or {"healed": [], "dry_run": True}
        self.last = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"), "equal": result["equal"], "generation": result["generation"],
            "counter": result["counter"], "places": len(result["differences"]), "different_bytes": _bytes(result["differences"]),
            "source_damage_bytes": _bytes(result["source_damage"]), "healed_bytes": 0 if repair["dry_run"] else _bytes(repair["healed"]),
            "source_read": result["source_read"], "seconds": round(time.monotonic() - self._began, 3), "scheduled": self.scheduled,
            "first": [(extent["offset"], extent["size"]) for extent in result["differences"][:3]],
        }  # fmt: skip
        self._gave_way = self._reached = 0
        self._note(False)

    def _note(self, unfinished):
        self.unfinished = unfinished
        self._db.set_verified(self.settings.id, self.last, unfinished)

    def as_dict(self):
        """`verify` of a JOB (docs/API.md)."""
        upcoming = [moment.isoformat(timespec="seconds") for moment in self.timing.next_times(time.time())]
        return {
            "schedule": self.settings.verify_schedule or None, "rate": self.settings.verify_rate or None, "next": upcoming or None,
            "last": self.last, "waits": self.again,
        }  # fmt: skip

    def problem(self, name, generation):
        """What `status` says while the last verify found the sync point of now to be wrong; None else."""
        last = self.last
        if last is None or last["equal"] or last["generation"] != generation:
            return None
        if last["different_bytes"]:
            text = f"the target does not hold its last sync point: {describe(last['first'], last['places'])}; found {last['at']}"
            action = f"find out who wrote to it; qrep verify {name} --repair heals it in place, qrep start {name} by the next run"
        elif last["source_damage_bytes"]:
            text = f"the source's frozen image is not what was committed any more: {last['source_damage_bytes']} bytes; found {last['at']}"
            action = "see what is wrong with the disk of the source; the target is well"
        else:
            text = f"the maps of the two sides are not the same; found {last['at']}"
            action = f"qrep start {name} puts it right"
        return {"code": "sides-differ", "text": text, "action": action}


def _bytes(extents):
    return sum(extent["size"] for extent in extents)
