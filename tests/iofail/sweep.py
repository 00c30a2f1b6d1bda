"""One point after the other: a fork in which one call fails, what it says of that, and what a fresh start finds when the fault is gone.

    sweep = Sweep(Replica(directory, seed), Injector(library, directory))     # in a process that has interpose.c loaded: see running.py
    sweep.calls("second")                         # {(kind, op): how many calls the act makes}
    sweep.attempt(Point(...))                     # Attempt; its `problem` is None or what must not be
"""

import dataclasses
import functools
import json
import logging
import os
import random
import secrets
import select
import signal
import sys
import tempfile
import time

import blake3
import oracle
import plainblake3
from iofail import states
from iofail.injector import TARGET_SIDE, WAYS, Point
from iofail.replica import ALLOWED, LEAF, RUN, TREE_OF, Unsynced, points_wanted

from qrep.errors import QrepError
from qrep.source.flow import Run
from qrep.source.found import put_into_map

HANG_S = 30.0
FLUSH_FAILED = 71
NOT_DURABLE = ("flush", "dirflush")
NOW_NS = 1_900_000_000 * 10**9


class Wrong(AssertionError):
    """What must not be, in words."""


@dataclasses.dataclass
class Attempt:
    """Of one point. hit: the call was reached; void: and was too small to be done in part. ended: in a word. told: the act's report or error."""

    point: Point
    hit: bool = False
    void: bool = False
    ended: str = ""
    told: dict = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    problem: str | None = None


class Sweep:
    """defect(): carried out in the fork, a canary; None: there is none."""

    def __init__(self, replica, injector):
        plainblake3.subtree = functools.lru_cache(maxsize=4096)(plainblake3.subtree)
        self.replica, self.injector = replica, injector
        self._recovered, self._gone_on = {}, set()
        self.defect = None
        logging.basicConfig(stream=sys.stderr, level=logging.ERROR)

    @property
    def states(self):
        """(how many different ones attempts have left, how many different ones those recovered to)."""
        return len(self._recovered), len(self._gone_on)

    # ---- an attempt ----

    def calls(self, act):
        """{(kind, op): calls} of an act in which nothing fails."""
        attempt = self.attempt(Point(act, "source", "read", 0, "eio"))
        if attempt.problem or attempt.ended != "done":
            raise Wrong(f"{act} without any failure: {attempt.ended} {attempt.told} {attempt.problem}")
        return self.injector.counts()

    def attempt(self, point):
        attempt = Attempt(point)
        self.replica.trees[TREE_OF[point.act]].restore()
        began = time.monotonic()
        code, said, errors = self._forked(point)
        attempt.seconds = time.monotonic() - began
        self.injector.over(point)
        attempt.hit = self.injector.shared.hits > 0
        attempt.void = self.injector.shared.voids >= self.injector.shared.hits > 0
        try:
            attempt.told = said or {}
            attempt.ended = self._ended(point, attempt, code, said, errors)
            self._go_on(point, attempt)
        except Wrong as err:
            attempt.problem = str(err)
        except (AssertionError, QrepError, OSError) as err:
            attempt.problem = f"afterwards: {type(err).__name__}: {err}"
        return attempt

    def _forked(self, point):
        """(exit code, None: it hung; what it reported or None; what it wrote to its standard error)."""
        ours, theirs = os.pipe()
        with tempfile.TemporaryFile() as errors:
            pid = os.fork()
            if not pid:
                os.close(ours)
                os.dup2(errors.fileno(), 2)
                self._in_the_fork(point, theirs)
            os.close(theirs)
            said = b""
            deadline = time.monotonic() + HANG_S
            while select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0]:
                more = os.read(ours, 1 << 16)
                if not more:
                    break
                said += more
            else:
                os.kill(pid, signal.SIGUSR1)  # says where its threads are, in its standard error
                time.sleep(0.5)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                os.close(ours)
                return None, None, os.pread(errors.fileno(), 1 << 16, 0).decode(errors="replace")
            os.close(ours)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            return code, json.loads(said) if said else None, os.pread(errors.fileno(), 1 << 16, 0).decode(errors="replace")

    def _in_the_fork(self, point, pipe):
        import faulthandler

        faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)
        told = {}
        try:
            _repeatable(point.act)
            if self.defect is not None:
                self.defect()
            act = getattr(self.replica, f"act_{point.act}")
            self.injector.arm(point)
            try:
                told = act()
            except Unsynced as err:
                told = {"error": err.code, "message": err.message, "unreadable": [place[:2] for place in err.unreadable],
                        "unwritten": [place[:2] for place in err.unwritten]}  # fmt: skip
            except QrepError as err:
                told = {"error": err.code, "message": err.message, "hint": err.hint}
            except OSError as err:
                told = {"error": "os", "message": str(err)}
            self.injector.disarm()
            told["steps"] = self.replica.records.done
            told["open"] = self._still_open()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(99)
        os.write(pipe, json.dumps(told).encode())
        os._exit(0 if told.get("done") else 1)

    def _still_open(self):
        """Descriptors on what lies below the root, which nobody will close any more."""
        found, root = [], os.fspath(self.replica.directory)
        for name in os.listdir("/proc/self/fd"):
            try:
                leads = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                continue
            if leads.startswith(root):
                found.append(leads)
        return found

    # ---- what it says ----

    def _ended(self, point, attempt, code, said, errors):
        """done, failed or ended (the process, for a flush). Raises Wrong where what was said is not what it may be."""
        way, hit = WAYS[point.way], attempt.hit and not attempt.void
        if code is None:
            raise Wrong(f"it hangs: {errors}")
        try:
            oracle.nothing_forbidden(errors)
        except oracle.Forbidden as err:
            raise Wrong(str(err)) from err
        if code not in (0, 1, FLUSH_FAILED) or (said is None) != (code == FLUSH_FAILED):
            raise Wrong(f"exit code {code}, it says {said}: {errors}")
        told_flush = hit and way.how in ("fail", "lose", "late") and (point.op in NOT_DURABLE)
        if code == FLUSH_FAILED:
            by_slot = hit and point.kind == "superblock" and point.op == "write"
            if not (told_flush or by_slot):
                raise Wrong(f"it ended with {code}, and no flush had failed: {errors}")
        elif told_flush and point.kind != "statedb":
            raise Wrong(f"a flush failed and it went on: {said}")
        after = self.injector.after_failed_flush() if point.kind in TARGET_SIDE else {}
        for op in ("flush", "dirflush", "rename"):
            if after.get(op):
                raise Wrong(f"{after[op]} times {op} after a flush had failed")
        if code == FLUSH_FAILED:
            if "flush" not in errors:
                raise Wrong(f"it ended and did not say why: {errors!r}")
            return "ended"
        if said["open"]:
            raise Wrong(f"left open: {said['open']}")
        if said.get("error") == "internal":
            raise Wrong(f"a bug: {said}")
        if said.get("error") and not said["message"]:
            raise Wrong(f"an error without words: {said}")
        if hit and way.harmless and not said.get("done"):
            raise Wrong(f"{point.way} is nothing to fail for: {said}")
        self._names_what_it_left_out(point, attempt, said)
        return "done" if said.get("done") else "failed"

    def _names_what_it_left_out(self, point, attempt, said):
        """INV-Z. Places that cannot be read or written for good are named, and nothing else is."""
        if said.get("error") != "unsynced":
            if attempt.hit and point.way == "eio-place" and said.get("done") and point.act in ("first", "second") and point.kind == "source":
                raise Wrong("a sector of the source could not be read, and the run committed")
            return
        named = {"source": said["unreadable"], "device": said["unwritten"]}
        if not any(named.values()):
            raise Wrong(f"blocks were left out, and none is named: {said}")
        if point.way == "eio-place":
            place = self.injector.shared.place_offset
            for kind, extents in named.items():
                inside = any(offset <= place < offset + size for offset, size in extents)
                if kind == point.kind and (not inside or sum(size for _, size in extents) > LEAF):
                    raise Wrong(f"the sector at {place} fails, and {extents} of the {kind} are named")
                if kind != point.kind and extents:
                    raise Wrong(f"{extents} of the {kind} are named, and the {point.kind} fails")

    # ---- when the fault is gone ----

    def _go_on(self, point, attempt):
        """The state that was left recovers by itself to one that may be, from which the next run commits. What was found of a state is not tried again."""
        if point.act == "records":
            wrong = self.replica.records.wrong(attempt.told.get("steps", []))
            if wrong:
                raise Wrong(wrong)
            return
        left = point.act, states.digest(self.replica.tree())
        if left not in self._recovered:
            self._recovered[left] = self._recover(point)
        counter = self._recovered[left]
        if attempt.ended == "done" and counter != attempt.told["counter"]:
            raise Wrong(f"it said that generation {attempt.told['counter']} is committed, and {counter} is")

    def _images(self, point):
        images = self.replica.images
        return {"first": {0: images[0], 1: images[4]}, "rollback": images | {5: images[2]}, "settle": images | {5: images[4]}}.get(point.act, images)

    def _recover(self, point):
        """The counter of the generation that is committed once the volume was opened. Nothing of what is looked at is asked of qrep."""
        place = self.replica.directory
        with self.replica.site() as site:
            if site.volume.damaged or site.volume.status()["phase"] == "faulted":
                raise Wrong(f"it is out of service: {site.volume.damaged}")
        found = oracle.superblock(place / "target")
        if found.counter not in ALLOWED[point.act]:
            raise Wrong(f"generation {found.counter} is committed")
        images = self._images(point)
        if found.counter:
            self._holds(point, images[found.counter])
        state = point.act, states.digest(self.replica.tree(), states.meaning(place / "target"))
        if state not in self._gone_on:
            self._gone_on.add(state)
            for each in (place / "target/map", self.replica.source_map()):
                oracle.map_is_true(each, found.committed_id, images[found.counter])
            self._next_run(point, images, found.counter)
        return found.counter

    def _next_run(self, point, images, counter):
        replica = self.replica
        with replica.site() as site:
            if counter:
                self._points_are_true(site, images, counter, points_wanted(point.act, counter))
            if point.act == "verify":
                replica.repair(site)
            request = site.make_run_request(**RUN)
            put_into_map(request)  # what a verify has found is sent
            report = Run(request, site.local.dial, site.local.connect).run()
        wanted = replica.images[4]
        if report.root != blake3.blake3(wanted).hexdigest() or oracle.read_direct(replica.path_of("device")) != wanted:
            raise Wrong("the next run committed something else than the source holds")
        left = [path.name for path in replica.directory.rglob("*.tmp")]
        if left:
            raise Wrong(f"left behind: {left}")

    def _holds(self, point, image):
        """A repair that is cut short leaves each sector of the leaf as it was or right."""
        found = oracle.read_direct(self.replica.path_of("device"))
        if found != image and not (point.act == "verify" and all(each in pair for each, *pair in zip(*map(sectors, (found, image, self.replica.damaged)), strict=True))):
            raise Wrong(f"the device is not the committed generation: {oracle.first_difference(image, found)}")

    def _points_are_true(self, site, images, counter, wanted):
        """INV-K. A rotten leaf that the device shares with an earlier point is that point's, too."""
        missing = wanted - {each.counter for each in site.volume.sync_points()}
        if missing:
            raise Wrong(f"sync points {missing} are out of reach")
        if oracle.read_direct(self.replica.path_of("device")) != images[counter]:
            return
        copy = self.replica.directory / "copy"
        for each in site.volume.sync_points():
            copy.unlink(missing_ok=True)
            site.volume.copy_out(each.id, str(copy))
            if copy.read_bytes() != images[each.counter]:
                raise Wrong(f"sync point {each.counter} shows something else than that generation")
        copy.unlink(missing_ok=True)


def sectors(content):
    return [content[start : start + 512] for start in range(0, len(content), 512)]


def _repeatable(act):
    """Ids are drawn, and times told, the same way in each attempt: two that leave the same state leave the same bytes."""
    chance = random.Random(act)
    secrets.token_bytes = chance.randbytes
    secrets.token_hex = lambda size: chance.randbytes(size).hex()
    secrets.randbits = chance.getrandbits
    time.time_ns = lambda: NOW_NS
    time.time = lambda: NOW_NS / 1e9
