"""How the demo tells: steps with what is expected and what was measured, and what all its scenes are made of. b3sum has the last word."""

import re
import time

from qrep import units
from qrep.demo.place import b3sum
from qrep.demo.site import COMMAND_S
from qrep.errors import QrepError

POLL_S = 0.004
WAIT_S = 60.0
TRIES = 4  # to hit a run in the middle
MIDDLE = 96 << 20  # bytes sent when an agent dies: more than the lanes have under way, so that some of it was applied
ROOT = re.compile(r"^\s*root ([0-9a-f]{64})", re.MULTILINE)


class Failed(QrepError):
    """A step measured something else than was expected."""

    code = "demo-failed"


class Telling:
    """place: a Place. say: as there. results: (step, expected, measured, whether it passed), grows as the story goes.

    What the first scene makes: cables, a and b (the Sites), content and target of volume `data`, and the witness of its snapshots.
    """

    def __init__(self, place, say):
        self.place, self.say, self.results = place, say, []
        self.a = self.b = self.cables = None
        self.roots = {}  # generation counter -> root
        self.files = {}  # generation counter -> files

    def step(self, name, expected):
        return _Step(self, name, expected)

    def run(self, *options):
        """`qrep start data` to its end, while the witness keeps what is frozen. Returns its output."""
        return self.to_the_end(self.a.begin("start", "data", *options))

    def to_the_end(self, command):
        while command.poll() is None:
            self.witness.look()
            time.sleep(POLL_S)
        return self.a.end(command)

    def wait_for(self, counter):
        """Wait until a run that the agent does by itself has committed generation `counter`. Returns its report."""
        deadline = time.monotonic() + COMMAND_S
        while time.monotonic() < deadline:
            self.witness.look()
            job = self.a.job("data")
            if job["counter"] == counter and job["progress"] is None:
                return job["last_run"]
            if job["problem"]:
                raise Failed(f"{job['problem']['text']}")
            time.sleep(POLL_S)
        raise Failed(f"generation {counter} was not reached in {COMMAND_S:g} s")

    def compare_output(self, output):
        """compare() of what `qrep start --wait` printed."""
        root = ROOT.search(output)
        return self.compare(int(re.search(r"generation (\d+) committed", output)[1]), root[1] if root else None)

    def compare(self, counter, reported):
        """(whether b3sum of target == b3sum of the frozen source == root reported, in words)"""
        target, frozen = b3sum(self.target), b3sum(self.witness.newest())
        self.say(f"# b3sum {self.target}   {target}\n# b3sum (frozen source)   {frozen}")
        self.roots[counter], self.files[counter] = target, self.content.seen()
        equal = target == frozen == reported
        return equal, f"generation {counter} equal" if equal else f"target {target[:8]}, source {frozen[:8]}, reported {reported}"

    def run_and_compare(self, name, expected):
        """A run as a step of its own. Returns the bytes it sent."""
        with self.step(name, f"{expected}: target == frozen source == root") as step:
            started = time.monotonic()
            equal, text = self.compare_output(self.run("--wait"))
            sent = self.a.job("data")["last_run"]["sent"]
            step.measured(f"{text}, sent {units.format_size(sent)}, {time.monotonic() - started:.1f} s", equal)
        return sent

    def until(self, condition, otherwise):
        """Wait for something that comes about by itself, while the witness keeps what is frozen. Raises Failed with `otherwise`."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            self.witness.look()
            if time.monotonic() > deadline:
                raise Failed(f"{otherwise} in {WAIT_S:g} s")
            time.sleep(POLL_S)

    def sent(self, name):
        """Bytes that the run of a job that goes on has sent."""
        return (self.a.job(name)["progress"] or {}).get("sent", 0)

    def committed(self, site):
        return site.job("data")["counter"]

    def in_the_middle(self, site):
        """Change much, start a run, kill a site's agent while data moves. Returns the command that was waiting for the run."""
        for _ in range(TRIES):
            self.content.change_much(5)
            before = self.committed(self.b)
            command = self.a.begin("start", "data", "--wait")
            while command.poll() is None:
                self.witness.look()
                progress = self.a.job("data")["progress"] or {}
                if progress.get("phase") == "syncing" and progress.get("sent", 0) > MIDDLE:
                    site.kill()
                    if site is self.a:
                        self.a.end(command, None)
                    return command
                time.sleep(POLL_S)
            self.compare_output(self.a.end(command))
            self.say(f"  (that run was too quick: it ended before it could be killed; generation {before + 1} stands; again)")
        raise Failed(f"no run could be killed in the middle in {TRIES} tries")


class _Step:
    """One row of the table. A step that ends without a measurement has failed with the error that ended it."""

    def __init__(self, story, name, expected):
        self.story, self.name, self.expected = story, name, expected
        self._measured = None

    def __enter__(self):
        self.story.say(f"\n== {self.name}")
        return self

    def measured(self, text, passed):
        self._measured = (text, passed)

    def __exit__(self, _kind, error, _trace):
        if error is not None:
            self._measured = (str(error).splitlines()[0] if str(error) else type(error).__name__, False)
        text, passed = self._measured or ("nothing", False)
        self.story.results.append((self.name, self.expected, text, passed))
        self.story.say(f"{'ok' if passed else 'FAILED'}: {text}")
        if error is None and not passed:
            raise Failed(f"{self.name}: expected {self.expected}; measured {text}")
        return False
