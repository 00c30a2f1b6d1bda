"""The second act: jobs that run themselves, share a rate, and lose a path."""

import os
import time

from qrep import units
from qrep.demo.place import b3sum
from qrep.demo.telling import POLL_S, Telling

LOGS = 64 << 20  # bytes of the second volume
SAMPLE_S = 0.8  # over which rates are measured
SLOW, FAST = 40 << 20, 100 << 20  # bytes per second of the shape, before and after


class Unattended(Telling):
    def schedule(self):
        self.say("\nA second volume, whose job runs by itself.")
        a = self.a
        with self.step("a schedule: every 2 s", "runs nobody started, equal") as step:
            os.mkdir(os.path.join(self.place.path, "xfs/logs"))
            self.logs = self.place.image("xfs/logs/logs.img", LOGS)
            self.logs_target = self.place.loop(self.place.image("logs-target.img", LOGS))
            a.qrep("volume", "add", "logs", self.logs)
            self.b.qrep("volume", "add", "logs", self.logs_target, "--accept", "site-a")
            a.qrep("job", "create", "logs", "--source", "logs", "--target", "site-b:logs", "--schedule", "every 2s")
            for _ in range(2):
                self._write_logs(1 << 20)
                self.until(lambda: a.job("logs")["root"] == b3sum(self.logs), "the schedule brought no run")
            a.qrep("job", "set", "logs", "--schedule", "none")
            self.until(lambda: a.job("logs")["state"] == "idle", "the last run did not end")
            job = a.job("logs")
            equal = job["root"] == b3sum(self.logs) == b3sum(self.logs_target)
            step.measured(f"{job['counter']} runs, {'equal' if equal else 'different'}", equal and job["counter"] >= 2)

    def share_a_rate(self):
        self.say("\nBoth jobs in one shaping group, both with much to send; then another rate, in the middle.")
        a = self.a
        with self.step("two jobs share a shape", f"half of {units.format_rate(SLOW)} each") as step:
            a.qrep("shape", "set", "office", "--peak", units.exact_rate(SLOW))
            for name in ("data", "logs"):
                a.qrep("job", "set", name, "--shape", "office")
            self.place.command("mount", "-o", "remount,rw", self.content.point)
            self.content.change_much(6)
            self._write_logs(LOGS)
            commands = [a.begin("start", name, "--wait") for name in ("data", "logs")]
            self.until(lambda: min(self.sent("data"), self.sent("logs")) > 1 << 20, "the two runs did not begin to send")
            rates, total = self._rates("data", "logs")
            a.qrep("status")
            near = all(0.3 * SLOW < rate < 0.7 * SLOW for rate in rates) and total < 1.15 * SLOW
            step.measured(" + ".join(units.format_rate(rate) for rate in rates), near)
        with self.step("the rate is changed while they run", "followed at once, no connection lost") as step:
            before = len(self._interruptions())
            a.qrep("shape", "set", "office", "--peak", units.exact_rate(FAST))
            _rates, now = self._rates()
            outputs = [self.to_the_end(command) for command in commands]
            cut = len(self._interruptions()) - before
            equal, text = self.compare_output(outputs[0])
            step.measured(f"{units.format_rate(total)}, then {units.format_rate(now)}, {text}", equal and now > 1.4 * total and not cut)

    def lose_a_path(self):
        self.say("\nA cable is pulled in the middle of a run.")
        a = self.a
        with self.step("path 1 pulled mid-run", "the run goes on over path 2, equal") as step:
            a.qrep("shape", "set", "office", "--peak", units.exact_rate(SLOW))
            self.content.change_much(4)
            command = a.begin("start", "data", "--wait")
            self.until(lambda: self.sent("data") > 16 << 20, "the run did not begin to send")
            self.cables.set(1, "down")
            pulled = time.monotonic()
            self.until(lambda: a.job("data")["path"]["active"] == 2 and a.job("data")["state"] == "degraded", "no fail-over")
            seconds = time.monotonic() - pulled
            a.qrep("status", code=None)
            equal, text = self.compare_output(self.to_the_end(command))
            self.cables.set(1, "up")
            step.measured(f"on path 2 after {seconds:.1f} s, {text}", equal and seconds < 10)

    # ---- what these scenes are made of ----

    def _write_logs(self, size):
        with open(self.logs, "r+b") as file:
            file.write(os.urandom(size))
            os.fsync(file.fileno())

    def _interruptions(self):
        return [event for name in ("data", "logs") for event in self.a.events(name) if event["code"] == "run-interrupted"]

    def _rates(self, *names):
        """(bytes per second of each job as the agent counts them, of all together as the kernel counts them on the cables)"""
        began, before, carried = time.monotonic(), [self.sent(name) for name in names], self.cables.carried("site-a")
        while time.monotonic() < began + SAMPLE_S:
            self.witness.look()
            time.sleep(POLL_S)
        after, now = [self.sent(name) for name in names], self.cables.carried("site-a")
        seconds = time.monotonic() - began
        return [(new - old) / seconds for new, old in zip(after, before, strict=True)], (now - carried) / seconds
