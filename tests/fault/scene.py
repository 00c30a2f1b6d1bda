"""Two devices, their state on tmpfs, the processes at both ends, and the oracle after each kill."""

import json
import os
import subprocess
import time
from pathlib import Path

import blake3
import oracle


MIB = 1 << 20
SIZE, LEAF, GRANULE = 6 * MIB, 4096, MIB
JOB, VOLUME = bytes([1]) * 16, bytes([2]) * 16
READY_S, PATIENCE_S = 5.0, 20.0


class Torn(AssertionError):
    """The target does not hold its committed generation."""


class Scene:
    """images: counter -> content of every generation that may be committed. worst_ready_s: of all targets that came up. backend: of the source."""

    def __init__(self, nest, source, target, state, backend="none"):
        self.nest, self.source, self.target, self.state, self.backend = nest, str(source), str(target), Path(state), backend
        self.images, self.worst_ready_s = {}, 0.0
        # Of power/defects.py and misconduct.py: what the targets, and the sources, have that are started from now on.
        self.defect = self.defect_of_sources = ""
        self._running = []

    # ---- processes ----

    def start(self, role, *arguments, crash="", how=""):
        device = self.source if role in ("source", "verify") else self.target
        extra = [self.backend, how] if role in ("source", "verify") else []
        defect = {"target": self.defect, "source": self.defect_of_sources}.get(role)
        process = self.nest.start(*(["defect", defect] if defect else []), role, device, self.state, *arguments, *extra, crash=crash)
        self._running.append(process)
        return process

    def ready(self, process):
        """What a target says when it is ready, or None if it died before."""
        line = process.readline()
        if not line:
            return None
        ready = json.loads(line)
        self.worst_ready_s = max(self.worst_ready_s, ready["seconds"])
        return ready

    def stop_all(self):
        for process in self._running:
            process.close()
        self._running.clear()

    def end_all(self):
        """Whoever still runs is killed; what each said and how it ended is judged. Their exit codes, in the order of their start."""
        for process in self._running:
            process.end()
        try:
            return [process.judge() for process in self._running]
        finally:
            self.stop_all()

    def run(self, crash_source="", crash_target="", how=""):
        """One run with crashes asked for; both processes are gone afterwards. Returns (source's, target's) exit codes. how: ends.py source."""
        target = self.start("target", crash=crash_target)
        ready = self.ready(target)
        if ready is None:
            return [None, *self.end_all()]
        source = self.start("source", ready["port"], crash=crash_source, how=how)
        source.communicate()
        self.finish(target)
        return self.end_all()[::-1]

    def kill_both(self, crash_source="", crash_target="", how=""):
        """One run in which both are killed while those of whom a crash point is asked stand at it; who has none goes on until then."""
        stop = {role: f"{crash}:stop" if crash else "" for role, crash in (("source", crash_source), ("target", crash_target))}
        target = self.start("target", crash=stop["target"])
        ready = self.ready(target)
        assert ready is not None, target.errors()
        source = self.start("source", ready["port"], crash=stop["source"], how=how)
        kill_standing([source, target])
        codes = self.end_all()
        assert codes == [-9, -9], f"{codes}: not both were killed"

    @staticmethod
    def finish(target):
        """A target still folds, prunes or goes back after its source has ended. Its exit code."""
        target.stdin.close()
        return target.wait()

    # ---- what happens ----

    def write(self, data):
        with open(self.source, "r+b") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def ready_target(self):
        """(a target that nobody kills, what it says when it is ready)."""
        target = self.start("target")
        ready = self.ready(target)
        assert ready is not None, target.communicate()[1]
        return target, ready

    def recover(self):
        """A target comes up by itself, in time, holding exactly its committed generation, and no map lies."""
        target, ready = self.ready_target()
        assert ready["seconds"] < READY_S and ready["damaged"] is None
        counter = ready["committed_counter"]
        if counter:
            self.holds(self.images[counter])
        self.finish(target)
        self.end_all()
        self.maps_are_true()
        return counter

    def complete(self, image):
        """The next run commits what the source holds."""
        target, ready = self.ready_target()
        source = self.start("source", ready["port"])
        out, err = source.communicate()
        assert source.returncode == 0, out + err
        report = json.loads(out)
        assert report["root"] == blake3.blake3(image).hexdigest()
        self.finish(target)
        self.end_all()
        self.images[report["counter"]] = image
        self.holds(image)
        self.maps_are_true()
        return report

    # ---- the oracle ----

    def holds(self, image):
        """b3sum and the packaged blake3 read the target and find this image."""
        wanted = blake3.blake3(image).hexdigest()
        found = blake3.blake3(oracle.read_direct(self.target)).hexdigest()
        stranger = subprocess.run(["b3sum", "--no-names", self.target], capture_output=True, text=True).stdout.strip()
        if not wanted == found == stranger:
            raise Torn(f"{self.target}: {wanted} was committed, blake3 finds {found}, b3sum {stranger}")

    def maps_are_true(self):
        """INV-I: a map whose tag is T says of every granule what the device holds, or nothing."""
        committed = oracle.superblock(self.state / "target").committed_id
        content = oracle.read_direct(self.target)
        for place in (self.state / "target" / "map", self.source_map):
            oracle.map_is_true(place, committed, content)

    @property
    def source_map(self):
        return self.state / "sources" / JOB.hex() / "map"


def kill_standing(processes):
    """Kill all once those that are to stop at a crash point have; first those that go on, which could notice the end of the others."""
    standing = [process for process in processes if process.crash.endswith(":stop")]
    deadline = time.monotonic() + PATIENCE_S
    while not all(process.stopped() for process in standing):
        assert time.monotonic() < deadline, f"nobody stands at {[process.crash for process in standing if not process.stopped()]}"
        time.sleep(0.001)
    for process in sorted(processes, key=lambda process: process in standing):
        process.kill()


def mixed(size, random_source):
    """Leaves that no packer makes smaller, leaves that it does, and leaves that are there more than once."""
    drawn = [random_source.randbytes(LEAF), (b"%d, a line of text\n" % random_source.getrandbits(64) * LEAF)[:LEAF]]
    return b"".join(random_source.choice([*drawn, drawn[0][:-64] + random_source.randbytes(64), random_source.randbytes(LEAF)]) for _ in range(size // LEAF))


def changed(image, random_source):
    """Some leaves rewritten, one granule zeroed, one that was zero filled."""
    data = bytearray(image)
    for _ in range(12):
        leaf = random_source.randrange(SIZE // LEAF)
        data[leaf * LEAF : (leaf + 1) * LEAF] = mixed(LEAF, random_source)
    zeroed, filled = random_source.sample(range(SIZE // GRANULE), 2)
    data[zeroed * GRANULE : (zeroed + 1) * GRANULE] = bytes(GRANULE)
    data[filled * GRANULE : (filled + 1) * GRANULE] = mixed(GRANULE, random_source)
    return bytes(data)
