"""Jobs that do not run as they are: copies that were made, and jobs whose disk is on its way. And what becomes of a copy at its source."""

import msgspec

from qrep import config
from qrep.daemon.once import over
from qrep.errors import NotFound, Refused, Unreachable


def check_may_run(runner):
    """Raise Refused for a job that has no target to write to now."""
    settings = runner.settings
    if settings.finished:
        raise over(runner.name, (runner.last_committed() or {}).get("counter"))
    if not settings.target:
        raise Refused(
            f"{runner.name} waits for its disk: {settings.moved} is on its way",
            hint=f"when it is there: qrep job rebuild {runner.name} --target PEER:VOLUME", code="disk-moved",
        )  # fmt: skip


def check_may_verify(runner):
    """Raise Refused where there is nothing here that holds still at the last sync point."""
    settings, name = runner.settings, runner.name
    if settings.finished:
        root = (runner.last_committed() or {}).get("root")
        raise Refused(
            f"{name} is a copy that was made: its target was given back, and may be written by anyone since",
            hint=f"as it was made, b3sum of it said {root}" if root else "b3sum of both sides tells whether they are equal now",
            code="copy-finished",
        )
    check_may_run(runner)


def check_has_roles(name, job):
    """Raise Refused for a job whose two sides cannot change places. job: config.Job."""
    what = "waits for its disk" if job.moved and not job.target else {"copy": "is a copy that is made once", "clone": "is a clone"}.get(job.mode)
    if what:
        hint = f"qrep job rebuild {name} --target PEER:VOLUME" if not job.target else "only jobs of mode async have roles"
        raise Refused(f"{name} {what}: it has no roles to change", hint=hint, code="no-roles")


class Made:
    """Of one job of mode copy: what happens when it is committed. jobs: joblist.Jobs."""

    def __init__(self, jobs, name, settings):
        self.jobs, self.name, self.settings = jobs, name, settings

    def give_back(self):
        """Have the target let the device go, so that it can be used when the run is said to have ended."""
        try:
            self.jobs.pairs.give_back(self.settings)
            text = f"{self.settings.target} is given back"
        except (Unreachable, NotFound, Refused) as error:  # committed all the same; it gives the device back by itself when the session ends
            text = f"{self.settings.target} gives its device back by itself; it could not be asked: {error.message}"
        self.jobs.node.events.add("copy-made", text, job=self.name)

    def made(self, generation):
        """Write down that there is no more to do."""
        changed = msgspec.convert(msgspec.to_builtins(self.settings) | {"finished": generation}, config.Job)
        self.jobs.node.config.save("jobs", self.name, changed)
        self.settings.finished = generation
