"""Two sites whose volume changes hands while agents are killed, stopped and cut off: what each side may be and hold is known after every step.

    with RoleStation(directory) as station:
        station.play(seed, number, repeat).findings
"""

import contextlib
import dataclasses
import os
import random
import signal
import threading
import time
import traceback

import oracle
from agents import CommandFailed
from chaos import content
from chaos.network import Fault, Network
from chaos.station import ADDRESSES, AGENT_PORT, RELAY_PORT, SOON_S, Said, Station, wait

from qrep.errors import QrepError

MIB = 1 << 20
PRIMARY, REPLICA = "primary", "replica"
SITES = ("site-a", "site-b")
# Where an agent is killed: {command: {whose agent: points}}; the site that it is given at, or the other one.
RUN = {"here": ("source-send", "source-frame-sent", "map-pending-durable", "map-fold-before"), "there": ("target-reply", "target-drained", "target-write-done", "superblock-write-before", "superblock-write-durable")}
GIVE_UP = ("role-give-up-before", "role-mapped", "role-given-up", "role-pair-written", "role-job-written", "role-done-before")
TAKE_OVER = ("role-take-over-before", "superblock-write-before", "superblock-write-durable", "role-taken-over", "role-pair-written", "role-job-written", "role-done-before")
POINTS = {
    "run": RUN, "demote": {"here": (*RUN["here"], *GIVE_UP, *GIVE_UP), "there": RUN["there"]}, "promote": {"here": TAKE_OVER, "there": GIVE_UP},
    "failback": {"here": (*RUN["here"], *GIVE_UP), "there": (*RUN["there"], *TAKE_OVER)}, "resync": {"here": (*GIVE_UP, *RUN["there"]), "there": RUN["here"]},
}  # fmt: skip
MESSAGES = ("Hello", "Begin", "Began", "Prepare", "Prepared", "Commit", "Committed")
KINDS = ("ping-pong", "lost", "split", "restore", "random", "killed", "cut", "both at once", "zombie in a run", "zombie")
REFUSAL_EXITS = (3, 4, 5, 7)  # of commands that are refused, or find nobody
# What a command is refused with where the roles do not allow it; anything else is a finding.
CODES = frozenset({
    "already-primary", "already-replica", "busy", "not-primary", "not-source", "not-equal", "not-allowed", "source-answers", "split-brain", "source-unreachable", "peer-unreachable",
    "unreachable", "no-such-point", "interrupted-there", "give-up-failed", "not-pinned", "stale", "interrupted", "disconnected", "never-synced", "no-such-pair", "no-such-job", "point-in-use",
})  # fmt: skip


@dataclasses.dataclass
class Played:
    scenario: str
    findings: list = dataclasses.field(default_factory=list)
    commands: int = 0
    refused: int = 0
    kills: int = 0
    seconds: float = 0.0
    log: str = ""


class RoleStation(Station):
    peer_port, size = RELAY_PORT, 3 * MIB

    def _lay(self, undo):
        super()._lay(undo)
        here = ADDRESSES[0][0]
        self.back = undo.enter_context(Network(self.spaces[0], [((here, RELAY_PORT), (here, AGENT_PORT))]))

    # ---- what there is ----

    @property
    def agents(self):
        return dict(zip(SITES, (self.a, self.b), strict=True))

    @property
    def device(self):
        return dict(zip(SITES, (self.source, self.target), strict=True))

    @staticmethod
    def other(site):
        return SITES[1 - SITES.index(site)]

    def block(self, site):
        """The superblock of a site's volume, None: it never was a target."""
        directory = self.agents[site].state / "targets"
        found = list(directory.iterdir()) if directory.exists() else []
        return oracle.superblock(found[0]) if found else None

    def role_of(self, site):
        """As the superblock says it, which alone decides."""
        block = self.block(site)
        return REPLICA if block is not None and block.role == 1 else PRIMARY

    # ---- one scenario ----

    def play(self, seed, number, repeat=0):
        kind = KINDS[number % len(KINDS)]
        self.rng = random.Random(f"{seed}-{number}-{repeat}-roles")
        played = self.played_now = Played(f"{number}.{repeat}: {kind} (seed {seed})")
        self.network.random, began = random.Random(f"{seed}-{number}-{repeat}-network"), time.monotonic()
        self.said_so_far = []
        self._log_began = {agent.name: len(agent.log) for agent in (self.a, self.b)}
        try:
            self._begin()
            getattr(self, "_play_" + kind.replace(" ", "_").replace("-", "_"))()
            self.converge()
        except (Said, oracle.Wrong, oracle.Forbidden, QrepError, CommandFailed) as err:
            played.findings.append(f"{type(err).__name__}: {err}; after {', '.join(self.said_so_far[-8:])}")
        except Exception:  # whatever it is, it is this scenario's
            played.findings.append(f"{traceback.format_exc()[-1500:]}; after {', '.join(self.said_so_far[-8:])}")
        finally:
            self._mend()
            if played.findings:
                played.log = "\n".join(f"---- {agent.name} ----\n{agent.log[self._log_began[agent.name] :][-6000:]}" for agent in (self.a, self.b))
        try:
            self._end()
        except (Said, QrepError, CommandFailed) as err:
            played.findings.append(f"{type(err).__name__}: {err}")
        self.played += 1
        played.seconds = time.monotonic() - began
        return played

    def _begin(self):
        self._write(self.source, first := content.fresh(self.rng, self.size))
        self._write(self.target, self.rng.randbytes(self.size))
        switch = self.rng.random() < 0.4
        if switch != getattr(self, "_may_switch", False):
            for agent, other in ((self.a, "site-b"), (self.b, "site-a")):
                agent.qrep("peer", "set", other, "--may-switch" if switch else "--no-may-switch")
        self._may_switch = switch
        self.a.qrep("volume", "add", "db", self.source, "--granule", "512K", "--snapshots", "none")
        self.b.qrep("volume", "add", "db", self.target, "--accept", "site-a", "--undo-space", "8x")
        self.a.qrep("job", "create", "db", "--source", "db", "--target", "site-b:db", "--timeout", "30s")
        self.role = {"site-a": PRIMARY, "site-b": REPLICA}
        self.image = {"site-a": first, "site-b": None}
        self.points = {site: {} for site in SITES}  # counter -> content
        self.ids = {site: [] for site in SITES}
        self.anew = set()  # sites whose chain may have begun anew since it was looked at
        self.forced = False  # whether two primaries were asked for
        self.run("site-a")

    # ---- commands, and what they must do ----

    def command(self, site, verb, **body):
        """(error, answer) of a command as its API has it: error None where it was done. Any thread."""
        self.played_now.commands += 1
        client = self.agents[site].client()
        try:
            for task in client.task(client.post(f"/jobs/db/{verb}", body, timeout=60)):
                state = task
        except QrepError as err:
            return {"code": err.code, "exit": err.exit_code, "message": err.message}, None
        return (None, state.get("result")) if state["state"] == "done" else (state["error"], None)

    def tell(self, text):
        self.said_so_far.append(text)

    def done(self, site, verb, what=None, **body):
        error, answer = self.command(site, verb, **body)
        self.tell(f"{site} {what or verb}: {error['code'] if error else 'done'}")
        if error is not None:
            raise Said(f"{verb} on {site} must be done, but: {error}")
        return answer

    def refused(self, site, verb, *codes, **body):
        error, _answer = self.command(site, verb, **body)
        self.tell(f"{site} {verb}: {error['code'] if error else 'done'}")
        if error is None:
            raise Said(f"{verb} on {site} was done, where it must be refused")
        self.is_a_refusal(verb, error, codes)
        self.check()
        return error

    def is_a_refusal(self, verb, error, codes=()):
        self.played_now.refused += 1
        if error["code"] not in (codes or CODES) or error["exit"] not in REFUSAL_EXITS:
            raise Said(f"{verb} was refused with {error}")

    def start(self, site):
        """(error, report) of a run to its end."""
        self.played_now.commands += 1
        code, answer, _err = self.agents[site].call("start", "db", "--wait")
        if code:
            return (answer["error"] if "error" in answer else answer["db"]["error"] if "error" in answer.get("db", {}) else answer), None
        return None, answer["db"]

    def run(self, site):
        """A run that must be done: the other side holds what this one does."""
        error, _report = self.start(site)
        self.tell(f"{site} runs: {error['code'] if error else 'done'}")
        if error is not None:
            raise Said(f"a run of {site} must be done, but: {error}")
        self.copied(site)
        self.check()

    def copied(self, site):
        to = self.other(site)
        self.image[to] = self.image[site]
        self.points[to][self.block(to).counter] = self.image[site]

    def run_is_refused(self, site):
        error, _report = self.start(site)
        self.tell(f"{site} runs: {error['code'] if error else 'done'}")
        if error is None:
            raise Said(f"a run of {site} was done, where it must be refused")
        self.is_a_refusal("start", error)
        self.check()

    def change(self, site):
        """Its host writes to a primary volume."""
        assert self.role[site] == PRIMARY
        self.image[site] = content.changed(self.rng, self.image[site])
        self._write(self.device[site], self.image[site])

    def took_role(self, site, role):
        self.role[site], self.points[site] = role, {}
        self.anew.add(site)
        if role == REPLICA:
            self.points[site][self.block(site).counter] = self.image[site]

    def demote(self, site):
        last_run = self.role[self.other(site)] == REPLICA
        self.done(site, "demote")
        if last_run:
            self.copied(site)
        self.took_role(site, REPLICA)
        self.check()

    def promote(self, site):
        """Of two replicas that hold the same: planned."""
        self.done(site, "promote")
        if self.image[site] != self.image[self.other(site)]:
            raise Said("a planned switch between two that hold different contents")
        self.took_role(site, PRIMARY)
        self.check()

    def force(self, site, verb="promote"):
        self.forced = True
        self.done(site, verb, **({"force": True} if verb == "promote" else {}))
        self.took_role(site, PRIMARY)
        self.check()

    # ---- what must hold ----

    def check(self):
        """Roles and contents are exactly those that the commands so far lead to; every id is new; nobody told what must not be."""
        for site, agent in self.agents.items():
            if self.role_of(site) != self.role[site]:
                raise Said(f"{site} is {self.role_of(site)}, and must be {self.role[site]}")
            told, block = agent.qrep("volume", "show", "db")["role"], self.block(site)
            never = block is None or block.committed_id == oracle.NO_ID  # it never was a replica; at most one was to be made of it
            if told != self.role[site] and not (told is None and never):
                raise Said(f"{site} says that it is {told}; its superblock says {self.role[site]}")
            if self.image[site] is not None:
                images = oracle.Images()
                images.keep("now", self.image[site])
                images.are_on(self.device[site], "now")
            self._chain(site)
        self._nothing_forbidden()
        if not self.forced and list(self.role.values()).count(PRIMARY) > 1:
            raise Said("two primaries, which nobody asked for")

    def _chain(self, site):
        """INV-M: a new id was never there before; a commit is on top of the one before, a change of role begins anew."""
        block, seen = self.block(site), self.ids[site]
        if block is None or block.committed_id == oracle.NO_ID:
            return
        if seen and block.committed_id == seen[-1][0]:
            return
        if any(block.committed_id == each for each, _counter in seen):
            raise Said(f"{site}: generation {block.committed_id.hex()} comes a second time")
        if seen and block.history and seen[-1][0] not in block.history and site not in self.anew:
            raise Said(f"{site}: its history does not know the generation before")
        if seen and block.counter <= seen[-1][1]:
            raise Said(f"{site}: its counter went from {seen[-1][1]} to {block.counter}")
        self.anew.discard(site)
        seen.append((block.committed_id, block.counter))
        if block.role == 1 and self.image[site] is not None:
            (directory,) = (self.agents[site].state / "targets").iterdir()
            oracle.map_is_true(directory / "map", block.committed_id, self.image[site])

    def _nothing_forbidden(self):
        for agent in (self.a, self.b):
            if agent.process.poll() is not None:
                raise Said(f"{agent.name} ended with {agent.process.returncode}")
            oracle.nothing_forbidden(agent.log, self._events(agent), ("split-brain",))

    # ---- after a command that was interrupted ----

    def settle(self, before, contents):
        """Agents are there, the network is well: roles are what they are, if they may be that; the content of a primary is what its host left, that of a
        replica one of `contents`, unless it has something open. before: {site: role}."""
        self._mend()
        for agent in (self.a, self.b):
            if agent.process.poll() is not None:
                agent.process.wait()
                agent.start()
                self.played_now.kills += 1
                wait(lambda agent=agent: agent.call("status")[0] in (0, 3), SOON_S, "the agent answers")
        wait(self._idle, SOON_S + 30, "both sides have nothing to do")
        for site in SITES:
            self.role[site] = self.role_of(site)
            found = oracle.read_direct(self.device[site])
            if self.role[site] == PRIMARY and before[site] == PRIMARY and found != self.image[site] and found not in contents:
                raise Said(f"the primary volume of {site} was written")
            block = self.block(site)
            if self.role[site] == PRIMARY or block is None or block.open_id == oracle.NO_ID:
                if found not in contents:
                    raise Said(f"{site}, {self.role[site]}, holds no generation that there was")
                self.image[site] = found
            else:
                self.image[site] = None  # until it is complete, or taken back
        if list(self.role.values()).count(PRIMARY) > 1 and not self.forced:
            raise Said("two primaries, which nobody asked for")
        self._nothing_forbidden()
        for site in SITES:
            self.points[site] = {}
            self.anew.add(site)
            self._chain(site)

    def _idle(self):
        for agent in (self.a, self.b):
            code, answer, _err = agent.call("status", "db")
            if code == 0 or code == 3:
                job = answer["jobs"][0] if answer["jobs"] else None
                if job and (job["progress"] is not None or job["state"] in ("syncing", "waiting")):
                    return False
        return True

    def _mend(self):
        self.network.heal()
        self.back.heal()
        for agent in (self.a, self.b):
            if agent.process.poll() is None:
                agent.process.send_signal(signal.SIGCONT)
                with contextlib.suppress(OSError):
                    agent.go_on()
                    agent.crash_at("")

    def converge(self):
        """Whatever they are now, documented commands make one primary with an equal replica of them; and a run goes on from there."""
        roles = [self.role[site] for site in SITES]
        if roles == [PRIMARY, PRIMARY]:
            loser = self.rng.choice(SITES)
            for agent in SITES:
                self.run_is_refused(agent)
            self.resync(loser)
        elif roles == [REPLICA, REPLICA]:
            self._one_of_two_replicas()
        (winner,) = (site for site in SITES if self.role[site] == PRIMARY)
        self.change(winner)
        self._run_in_time(winner)

    def _run_in_time(self, site):
        """What was interrupted may still be on its way: a run that is told that it is busy is asked for again."""
        deadline = time.monotonic() + SOON_S
        while True:
            error, _report = self.start(site)
            if error is None:
                break
            if error["code"] != "busy" or time.monotonic() > deadline:
                raise Said(f"a run of {site} must be done, but: {error}")
            time.sleep(0.3)
        self.tell(f"{site} runs")
        self.copied(site)
        self.check()

    def resync(self, loser):
        """Given at the losing side, it brings the winner's content there."""
        winner = self.other(loser)
        self.done(loser, "resync", authoritative=winner)
        self.role[loser] = REPLICA
        wait(lambda: self._idle() and self.block(loser).open_id == oracle.NO_ID and oracle.read_direct(self.device[loser]) == self.image[winner], SOON_S, "the run after a resync")
        self.took_role(loser, REPLICA)
        self.copied(winner)
        self.check()

    def _one_of_two_replicas(self):
        first = self.rng.choice(SITES)
        for site in (first, self.other(first)):
            error, _answer = self.command(site, "promote")
            self.tell(f"{site} promote: {error['code'] if error else 'done'}")
            if error is None:
                break
            self.is_a_refusal("promote", error)
        else:
            site = next(each for each in (first, self.other(first)) if self.image[each] is not None)
            self.done(site, "promote", force=True)
        if self.image[site] is None:  # what was open was taken back
            self.image[site] = oracle.read_direct(self.device[site])
        self.took_role(site, PRIMARY)

    def _end(self):
        """Everything is forgotten, whatever it was."""
        for agent in (self.a, self.b):
            if agent.process.poll() is not None:
                agent.start()
            self._seen[agent.name] = max((event["id"] for event in agent.events()), default=-1)
        wait(self._idle, SOON_S, "both sides have nothing to do")
        if all(agent.qrep("volume") for agent in (self.a, self.b)) and [self.role_of(site) for site in SITES] == [REPLICA, REPLICA]:
            self.command(SITES[0], "promote", force=True)  # a job is deleted where its source is
        deadline = time.monotonic() + SOON_S
        while True:
            codes = []
            for agent in (self.a, self.b):
                if agent.qrep("job"):
                    codes.append(agent.run_command("job", "delete", "db", "-y")[0])
            for agent in (self.a, self.b):
                if agent.qrep("volume"):
                    codes.append(agent.run_command("volume", "remove", "db", "-y"))
            if not any(agent.qrep("volume") or agent.qrep("job") for agent in (self.a, self.b)):
                return
            if time.monotonic() > deadline:
                raise Said(f"the pair cannot be forgotten: {codes}")
            time.sleep(0.3)

    # ---- the kinds ----

    def the_primary(self):
        (site,) = (site for site in SITES if self.role[site] == PRIMARY)
        return site

    def _switch(self, site, to):
        """Planned, from site to to; its one command where hosts allow that, else two."""
        if self._may_switch and self.rng.random() < 0.5:
            self.done(to, "promote", "promote (asks)")
            self.image[to] = self.image[site]
            self.took_role(site, REPLICA)
            self.took_role(to, PRIMARY)
            self.check()
        else:
            if not self._may_switch:
                self.refused(to, "promote", "source-answers")
            self.demote(site)
            self.run_is_refused(site)
            if self.rng.random() < 0.3:
                self.promote(site)  # it takes back what it gave up
                self.change(site)
                self.run(site)
                self.demote(site)
            self.promote(to)

    def _play_ping_pong(self):
        for _turn in range(self.rng.randint(2, 3)):
            site = self.the_primary()
            self.change(site)
            self._switch(site, self.other(site))
            self.change(self.other(site))
            if self.rng.random() < 0.6:
                self.run(self.other(site))

    def _lose(self, site):
        """The primary's agent is killed after its host wrote something that was not replicated; the other side takes over."""
        to = self.other(site)
        self.change(site)
        self.agents[site].kill()
        self.played_now.kills += 1
        error, _answer = self.command(to, "promote")
        if error is None or error["code"] != "source-unreachable":
            raise Said(f"promote without its source: {error}")
        self.tell(f"{to} promote: source-unreachable")
        self.forced = True
        self.done(to, "promote", "promote --force", force=True)
        self.took_role(to, PRIMARY)
        self.change(to)
        self.agents[site].start()
        self.check()

    def _play_lost(self):
        site = self.rng.choice(SITES)
        if self.the_primary() != site:
            self._switch(self.the_primary(), site)
        self._lose(site)
        to = self.other(site)
        for each in SITES:
            self.run_is_refused(each)
        if not self._may_switch:
            self.refused(to, "failback", "split-brain")
        self.demote(site)
        swap = self.rng.random() < 0.6
        self.done(to, "failback", swap=swap)
        self.image[site] = self.image[to]
        if swap:
            self.took_role(to, REPLICA)
            self.took_role(site, PRIMARY)
        self.check()

    def _play_split(self):
        site = self.rng.choice(SITES)
        if self.the_primary() == site:
            self._switch(site, self.other(site))
        self.force(site, "split")
        for each in SITES:
            if self.rng.random() < 0.8:
                self.change(each)
        for each in SITES:
            self.run_is_refused(each)
            self.refused(each, "promote", "already-primary")
        loser = self.rng.choice(SITES)
        if self.rng.random() < 0.5:
            self.refused(loser, "resync", "no-such-side", authoritative="nobody")
        if not self._may_switch:
            self.refused(self.other(loser), "resync", "not-allowed", authoritative=self.other(loser))
        self.resync(loser)

    def _play_restore(self):
        site = self.rng.choice(SITES)
        if self.the_primary() != site:
            self._switch(self.the_primary(), site)
        to = self.other(site)
        for _turn in range(self.rng.randint(1, 2)):
            self.change(site)
            self.run(site)
        for _turn in range(self.rng.randint(1, 2)):
            if self.rng.random() < 0.7:
                self.change(site)
            current = self.block(to).counter
            choices = sorted(counter for counter in self.points[to] if counter != current)
            point = self.rng.choice(choices)
            self.refused(site, "restore", "no-such-point", point="4711")
            self.done(site, "restore", f"restore @{point}", point=str(point), discard=self.rng.random() < 0.5)
            self.image[site] = self.image[to] = self.points[to][point]
            self.points[to] = {counter: content for counter, content in self.points[to].items() if counter <= current} | {self.block(to).counter: self.image[to]}
            self.check()
            self.change(site)
            self.run(site)

    def _step(self, interrupt=None):
        """One command at random; where what it leads to is certain it is checked, and where it is interrupted it is settled."""
        roles = tuple(self.role[site] for site in SITES)
        site = self.rng.choice(SITES)
        to = self.other(site)
        verb, body = self.rng.choice((("promote", {}), ("demote", {}), ("failback", {}), ("run", {}), ("resync", {"authoritative": self.rng.choice(SITES)})))
        if self.rng.random() < 0.75:  # what can be done as things are
            site, verb, body = self._fitting(roles)
            to = self.other(site)
        self.forced = self.forced or bool(body.get("force"))
        if interrupt is None:
            error = self.start(site)[0] if verb == "run" else self.command(site, verb, **body)[0]
        else:
            error = interrupt(site, verb, lambda: self.start_quietly(site) if verb == "run" else self.command(site, verb, **body)[0])
        self.tell(f"{site} {verb} {body or ''}: {error['code'] if error else 'done'}")
        if error is not None and interrupt is None:
            self.is_a_refusal(verb, error)
        contents = [each for each in self.image.values() if each is not None]
        before = dict(self.role)
        self.settle(before, contents + self.kept)
        if error is None:
            self._must_have_led_to(verb, body, site, to, before)
        elif interrupt is None and verb != "failback" and self.role != before:
            raise Said(f"{verb} was refused, and changed the roles")
        self.kept = (self.kept + contents)[-8:]

    def _fitting(self, roles):
        if roles.count(PRIMARY) == 2:
            site = self.rng.choice(SITES)
            return self.rng.choice(((site, "resync", {"authoritative": self.other(site)}), (site, "demote", {})))
        if roles.count(PRIMARY) == 0:
            return self.rng.choice(SITES), "promote", {}
        site = SITES[roles.index(PRIMARY)]
        choices = [(site, "run", {}), (site, "demote", {}), (site, "demote", {}), (site, "failback", {})]
        choices += [(self.other(site), "promote", {})] * (2 * self._may_switch) + [(self.other(site), "promote", {"force": True})]
        return self.rng.choice(choices)

    def _must_have_led_to(self, verb, body, site, to, before):
        wanted = {
            "promote": {site: PRIMARY}, "demote": {site: REPLICA}, "failback": {site: REPLICA, to: PRIMARY}, "run": before,
            "resync": {body.get("authoritative"): PRIMARY, self.other(body["authoritative"]): REPLICA} if verb == "resync" else {},
        }[verb]  # fmt: skip
        wrong = {each: self.role[each] for each, role in wanted.items() if self.role[each] != role}
        if wrong:
            raise Said(f"{verb} on {site} was done, and {wrong}")
        if verb in ("run", "failback") and self.image[SITES[0]] != self.image[SITES[1]]:
            raise Said(f"{verb} on {site} was done, and both sides differ")
        if verb == "promote" and not body and self.image[SITES[0]] != self.image[SITES[1]]:
            raise Said("a planned switch between two that hold different contents")

    def start_quietly(self, site):
        """A run by its API, so that another thread may wait for it."""
        self.played_now.commands += 1
        client = self.agents[site].client()
        try:
            (task,) = client.post("/start", {"jobs": ["db"]}).values()
            for state in client.task(task):
                last = state
        except QrepError as err:
            return {"code": err.code, "exit": err.exit_code, "message": err.message}
        return None if last["state"] == "done" else last["error"]

    def _random(self, interrupts):
        self.kept = []
        for _turn in range(self.rng.randint(3, 5)):
            for site in SITES:
                if self.role[site] == PRIMARY and self.image[site] is not None and self.rng.random() < 0.6:
                    self.change(site)
            self._step(self.rng.choice(interrupts))

    def _play_random(self):
        self._random((None,))

    def _play_killed(self):
        self._random((None, self._kill_in, self._kill_in))

    def _play_cut(self):
        self._random((None, self._cut_in, self._cut_in))

    def _kill_in(self, site, verb, command):
        """One of the two agents dies at a crash point of the command."""
        where = self.rng.choice(("here", "there"))
        point, victim = self.rng.choice(POINTS[verb][where]), self.agents[site if where == "here" else self.other(site)]
        victim.crash_at(point)
        kills = self.played_now.kills
        error = self._in_a_thread(command, victim)
        self.tell(f"{victim.name} was to die at {point}, and {'did' if self.played_now.kills > kills else 'did not yet'}")
        return error

    def _in_a_thread(self, command, victim=None):
        """Its error; a command whose agent dies, or whose other side does, is not waited for longer than it takes to notice."""
        answers = []
        thread = threading.Thread(target=lambda: answers.append(command()), name="command")
        thread.start()
        deadline = time.monotonic() + SOON_S
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(0.05)
            if victim is not None and victim.process.poll() is not None:
                victim.process.wait()
                victim.start()
                self.played_now.kills += 1
                victim = None
        if thread.is_alive():
            self._mend()
            thread.join(SOON_S)
        if not answers:
            raise Said("a command did not come to an end")
        return answers[0]

    def _cut_in(self, site, verb, command):
        """The network between the two goes, in both directions, at a message of theirs, for a moment or until it is noticed."""
        agent, message = self.agents[self.rng.choice(SITES)], self.rng.choice(MESSAGES)
        kind, seconds = self.rng.choice(("rst", "cut", "stall")), self.rng.choice((0.2, 0.8))
        agent.hold(message)

        def cut():
            if agent.reached(3):
                for network in (self.network, self.back):
                    network.begin(Fault(kind))
                agent.go_on()
                time.sleep(seconds)
                for network in (self.network, self.back):
                    network.heal()

        cutter = threading.Thread(target=cut, name="cutter")
        cutter.start()
        try:
            return self._in_a_thread(command)
        finally:
            cutter.join()
            agent.go_on()
            self.tell(f"{kind} at {message} of {agent.name}")

    def _play_both_at_once(self):
        """Operators of both sides give commands at the same moment: at most one takes over at a time, and nothing is lost."""
        for _turn in range(self.rng.randint(1, 2)):
            site = self.the_primary()
            self.change(site)
            if self.rng.random() < 0.7:
                self.demote(site)
                verbs = ("promote", "promote")
            else:
                verbs = self.rng.choice((("promote", "demote"), ("demote", "promote")))
            contents = list(self.image.values())
            errors, threads = {}, []
            for each, verb in zip(SITES, verbs, strict=True):
                threads.append(threading.Thread(target=lambda each=each, verb=verb: errors.__setitem__(each, self.command(each, verb)[0])))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(SOON_S)
            self.tell(f"{' and '.join(verbs)} at once: {({each: error and error['code'] for each, error in errors.items()})}")
            for each, error in errors.items():
                if error:
                    self.is_a_refusal("a command at the same moment as another", error)
            # Where hosts may switch each other, the later one may have taken it over again.
            if verbs == ("promote", "promote") and not any(errors.values()) and not self._may_switch:
                raise Said("both sides took over")
            self.settle(dict(self.role), contents)
            if [self.role[each] for each in SITES] == [REPLICA, REPLICA]:
                self._one_of_two_replicas()
            self.run(self.the_primary())

    def _zombie(self, message):
        """The leader is stopped, at a message of its run or with nothing to do; the other side takes over and is written; then the leader goes on."""
        site = self.rng.choice(SITES)
        if self.the_primary() != site:
            self._switch(self.the_primary(), site)
        to, leader = self.other(site), self.agents[site]
        old = self.image[to]
        self.change(site)
        if message:
            leader.hold(message)
            leader.qrep("start", "db")
            if not leader.reached(SOON_S):
                raise Said(f"no {message} in a run")
        stopped = leader.pids() if self.rng.random() < 0.8 else [leader.process.pid]  # the whole host; or only who decides, and the front goes on
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            self.forced = True
            self.done(to, "promote", "promote --force", force=True)
            self.image[to] = old  # what was open is taken back
            self.took_role(to, PRIMARY)
            self.change(to)
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
            if message:
                leader.go_on()
        wait(self._idle, SOON_S + 30, "the old leader has nothing to do any more")
        self.check()
        for each in SITES:
            self.run_is_refused(each)

    def _play_zombie_in_a_run(self):
        self._zombie(self.rng.choice(("Hello", "Begin", "Prepare", "Commit")))

    def _play_zombie(self):
        self._zombie("")
        if self.rng.random() < 0.5:
            site = self.rng.choice(SITES)
            self.resync(site)


def main(seed, *numbers):
    """cd tests && python -m chaos.roles SEED NUMBER[.REPEAT]..."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="qrep-test-", dir="/dev/shm") as directory, RoleStation(directory) as station:
        for text in numbers:
            number, _, repeat = text.partition(".")
            played = station.play(int(seed), int(number), int(repeat or 0))
            print(f"{played.scenario}: {played.seconds:.1f} s, {played.commands} commands, {played.refused} refused, {played.kills} kills")
            print("   ", "; ".join(station.said_so_far))
            print(*played.findings, played.log, sep="\n", flush=True)


if __name__ == "__main__":
    import sys

    main(*sys.argv[1:])
