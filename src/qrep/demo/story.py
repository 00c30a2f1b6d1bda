"""What the demo shows, step by step. Each step says what is expected and what was measured; a stranger's b3sum has the last word."""

import re
import time

from qrep import units
from qrep.demo.content import Content, files_of
from qrep.demo.place import SPARSE, Cables, Witness, b3sum
from qrep.demo.site import COMMAND_S, Site
from qrep.errors import QrepError

POLL_S = 0.004
TRIES = 4  # to hit a run in the middle
MIDDLE = 96 << 20  # bytes sent when an agent dies: more than the lanes have under way, so that some of it was applied
ROOT = re.compile(r"^\s*root ([0-9a-f]{64})", re.MULTILINE)


class Failed(QrepError):
    """A step measured something else than was expected."""

    code = "demo-failed"


class Story:
    """place: a Place. say: as there. results: (step, expected, measured, whether it passed), grows as the story goes."""

    def __init__(self, place, say):
        self.place, self.say, self.results = place, say, []
        self.a = self.b = None  # the Sites
        self.roots = {}  # generation counter -> root
        self.files = {}  # generation counter -> files

    def step(self, name, expected):
        return _Step(self, name, expected)

    def tell(self):
        self.set_up()
        self.first_run()
        self.differential_run()
        self.kill_source()
        self.kill_target()
        self.roll_back()
        self.catch_up()

    def kept(self):
        """Where everything is, and how to look at it and to end it."""
        sites = [site for site in (self.a, self.b) if site is not None and site.process is not None]
        lines = [f"left in {self.place.path}; the agents run on. To use them:"]
        lines += [f"  qrep --socket {site.socket} status     ({site.name})" for site in sites]
        kill = f"kill {' '.join(str(site.process.pid) for site in sites)}; sleep 1" if sites else "true"
        return "\n".join([*lines, "To remove it:", f"  {'; '.join([kill, *self.place.ways_out()])}"])

    # ---- scenes ----

    def set_up(self):
        place = self.place
        self.say("A volume with real files, on an image that can be cloned, and an empty target of the same size.")
        with self.step("two agents, pinned to each other", "both answer") as step:
            outer = place.loop(place.image("outer.img", 2 * SPARSE))
            place.command("mkfs.xfs", "-q", "-m", "reflink=1", outer)
            xfs = place.mount(outer, "xfs")
            self.witness = Witness(xfs)
            self.source = place.loop(place.image("xfs/source.img", SPARSE))
            place.command("mkfs.ext4", "-q", self.source)
            self.content = Content(place.mount(self.source, "data"))
            self.content.make()
            self.target_image = place.image("target.img", SPARSE)
            self.target = place.loop(self.target_image)
            self.cables = Cables(place)
            self.a, self.b = (Site(place, name, self.cables) for name in Cables.SITES)
            seconds = max(self.a.start(), self.b.start())
            self.a.qrep("peer", "add", "site-b", ",".join(self.b.addresses), "-y")
            self.b.qrep("peer", "add", "site-a", ",".join(self.a.addresses), "-y")
            step.measured(f"both within {seconds:.1f} s", True)
        with self.step("a job over both volumes", "created") as step:
            self.a.qrep("volume", "add", "data", self.source)
            self.b.qrep("volume", "add", "data", self.target, "--accept", "site-a")
            output = self.a.qrep("job", "create", "data", "--source", "data", "--target", "site-b:data", "--sync-points", "5")
            step.measured("created", "Created job data" in output)

    def first_run(self):
        self.full_sent = self.run_and_compare("first run, source mounted and in use", "the whole volume")

    def differential_run(self):
        self.say("\nA new file, 64 changed pages, one file deleted, one renamed.")
        self.content.change_a_little()
        with self.step("how much would move (start -n)", "under 16 MiB") as step:
            number, unit = re.search(r"Would send ([0-9.]+) (\S+) of", self.a.qrep("start", "data", "-n")).groups()
            moved = float(number) * units.parse_size(f"1{unit}")
            step.measured(f"{number} {unit}", 0 < moved < 16 << 20)
        sent = self.run_and_compare("second run", "only what changed")
        with self.step("what the second run sent", "under 16 MiB") as step:
            step.measured(f"{units.format_size(sent)} of {units.format_size(SPARSE)}", 0 < sent < 16 << 20)

    def kill_source(self):
        self.say("\nThe source's agent dies in the middle of a run.")
        with self.step("kill -9 of the source's agent, resume", "resumed, equal") as step:
            self.in_the_middle(self.a)
            before = self.committed(self.b)
            self.a.start()
            self.say("  (the agent takes the run up by itself)")
            last = self.wait_for(before + 1)
            self.a.qrep("events", "--since", "1m", "data")
            equal, text = self.compare(last["counter"], last["root"])
            how = "resumed" if last["resumed"] else "begun anew"
            step.measured(f"{how}, {text}, sent {units.format_size(last['sent'])}", equal and last["resumed"])

    def kill_target(self):
        self.say("\nThe target's agent dies in the middle of a run, and recovers without the source.")
        with self.step("kill -9 of the target's agent, recovery", "the last sync point, exactly") as step:
            last = self.committed(self.b)
            command = self.in_the_middle(self.b)
            self.a.qrep("stop", "data")
            self.a.end(command, None)
            seconds = self.b.start()
            self.b.qrep("events", "--since", "1m")
            found = b3sum(self.target)
            step.measured(f"ready in {seconds:.1f} s, b3sum is that of generation {last}", found == self.roots[last])
        self.run_and_compare("the run after it", "equal")

    def roll_back(self):
        self.say("\nBack to the second sync point.")
        with self.step("rollback to an earlier sync point", "b3sum of that generation") as step:
            self.b.qrep("snapshot", "data")
            self.b.qrep("snapshot", "rollback", "data@2", "-y")
            found = b3sum(self.target)
            step.measured(f"{found[:16]}...", found == self.roots[2])
        with self.step("mounted read-only, file by file", "the files of that moment") as step:
            device = self.place.loop(self.target_image, "--read-only")
            point = self.place.mount(device, "rolled-back", "-o", "ro,noload")
            found = files_of(point)
            self.place.unmount(point)
            step.measured(f"{len(found)} files equal" if found == self.files[2] else "they differ", found == self.files[2])

    def catch_up(self):
        self.run_and_compare("forward again from the rolled back target", "equal")
        with self.step("verify, hashed by the packaged blake3", "no difference") as step:
            output = self.a.qrep("verify", "data", "--independent")
            root = ROOT.search(output)
            step.measured("no difference, same root", bool(root) and root[1] == self.roots[max(self.roots)])
        with self.step("a run with nothing changed", "sends nothing") as step:
            self.place.command("mount", "-o", "remount,ro", self.content.point)
            self.run("--wait")
            self.run("--wait")
            changed = self.a.job("data")["last_run"]["changed"]
            step.measured(f"{units.format_size(changed)} changed", changed == 0)

    # ---- what the scenes are made of ----

    def run(self, *options):
        """`qrep start data` to its end, while the witness keeps what is frozen. Returns its output."""
        command = self.a.begin("start", "data", *options)
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
