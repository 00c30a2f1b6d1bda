"""Signs of life: systemd is told that the agent lives only while every thread that it cannot do without has shown itself lately.

It is the housekeeping thread that tells, so that one counts, too.
"""

import logging
import time

log = logging.getLogger("qrep.agent")
PINGS = 3  # in the time that systemd waits


class Watchdog:
    """notifier: Notifier. signs: {what: callable that says when it showed itself last (time.monotonic())}.

    Whoever was not seen for half the time that systemd waits is taken for hung; systemd ends the agent when it has waited for all of it.
    """

    def __init__(self, notifier, signs):
        self._notifier, self._signs = notifier, signs
        self._hung = ()
        self.period_s = notifier.watchdog_s / PINGS if notifier.watchdog_s else None

    def hung(self, now):
        """Names of those that do not show themselves."""
        limit_s = self._notifier.watchdog_s / 2
        return tuple(name for name, seen in self._signs.items() if now - seen() > limit_s)

    def ping(self):
        """Called every period_s."""
        hung = self.hung(time.monotonic())
        if not hung:
            self._notifier.alive()
        if hung != self._hung:
            self._hung = hung
            log.error("hung: %s; systemd is not told that the agent lives", ", ".join(hung)) if hung else log.warning("all threads show themselves again")


def summary(jobs):
    """The status line for systemd. jobs: [job_dict]."""
    going = [job for job in jobs if job["state"] in ("connecting", "syncing", "committing", "verifying")]
    parts = []
    for job in going[:3]:
        percent = (job.get("progress") or {}).get("percent")
        parts.append(f"{job['name']} {job['state']}" + (f" {percent:.0f} %" if percent is not None else ""))
    text = f"{len(jobs)} {'job' if len(jobs) == 1 else 'jobs'}"
    text += f"; running: {', '.join(parts)}" + (f" and {len(going) - 3} more" if len(going) > 3 else "") if going else ""
    problems = sum(bool(job.get("problem")) for job in jobs)
    return text + (f"; {problems} not fine, see qrep status" if problems else "")
