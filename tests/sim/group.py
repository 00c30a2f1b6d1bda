"""Several volumes in one world: a consistency group. One agent at each end holds all of them, and dies with all of them.

The machines, disks, networks and oracles are those of the single volume; added are the record that commits all (target/groupcommit.py as disks see it)
and jobs/groups.py, which decides when it is asked for. What must hold beyond what holds of each volume:

INV-G   after recovery, and at the end, the members' generations of one attempt of the group are committed all or none
INV-O   the committed images of all members show one moment: the host writes one number to all volumes at a time
"""

import copy
import errno
from typing import NamedTuple

from qrep._native import wire
from qrep.errors import Interrupted, QrepError, Refused, Unreachable
from qrep.jobs import groups
from qrep.jobs.groups import GroupRun
from qrep.protocol import actions as do
from sim.disk import Disk
from sim.net import Network
from sim.oracle import Oracle
from sim.source import Controller, Volume
from sim.target import Target
from sim.world import Process, Signal, Violation, World

LEAF = 4096
FAULTS = ("kill_sources", "kill_targets", "power_targets", "cut", "partition", "disk_write", "superblock_write", "record_write", "source_bad", "abandon", "stop", "release")
STEPS = 25
LIVENESS = 300.0


class Held(NamedTuple):
    """A target's lock is taken: nothing else happens to it until the holder lets go; then what `then` says."""

    hold: object


class Hold:
    def __init__(self):
        self.taken, self.over = Signal(), Signal()
        self.actions = list


class Member(Target):
    node = None

    def main(self):
        yield from self.node.comes_up()
        yield from super().main()

    def decided(self):
        return (self.node.decided(self.volume_id),)

    def died(self):
        super().died()
        self.node.member_died()

    def _held(self, action):
        yield 0
        action.hold.taken.fire()
        while not action.hold.over.fired:
            yield action.hold.over
        return action.hold.actions()

    def _settle_group(self, action):
        yield from self.node.settle(self.volume_id, action.new)

    performers = {**Target.performers, Held: _held, do.SettleGroup: _settle_group}


class TargetNode(Process):
    """The agent at the target: its volumes live and die with it. records: {id: {volume id: Decided}}, as files are: replaced and removed at once, and
    durable when their directory was flushed."""

    machine = None

    def __init__(self, world, targets):
        super().__init__(world, "target node")
        self.targets = targets
        for target in targets:
            target.node = self
            target.wanted = False
        self.cache, self.durable = {}, {}
        self.disk = Disk(world, "record", 512)
        self.loaded = False

    def main(self):
        yield from self.disk.drained()
        self.records, self.settling = copy.deepcopy(self.cache), False
        self.loaded = True
        while True:
            yield 1e6

    def start(self):
        self.loaded = False
        super().start()
        for target in self.targets:
            target.start()

    def comes_up(self):
        while not self.loaded:
            yield 0.001

    def member_died(self):
        """One volume of an agent that went down by a failed flush, or is out of service: here the agent is started anew for both."""
        self.stop("a member died")

    def stop(self, why):
        if self.alive:
            self.kill(why)
            for target in self.targets:
                target.kill(why)
            self.world.at(0.5, self.revive)

    def revive(self):
        if not self.alive:
            self.start()

    def died(self):
        pass

    def power_cut(self):
        if not self.alive:
            return
        self.kill("power cut")
        for target in self.targets:
            target.power_cut()
        self.disk.power_cut()
        # What a rename or an unlink did, and nobody flushed, may be there or not.
        if self.world.random.random() < 0.5:
            self.durable = copy.deepcopy(self.cache)
        self.cache = copy.deepcopy(self.durable)
        self.world.at(0.5, self.revive)

    @property
    def ready(self):
        return self.alive and all(target.ready for target in self.targets)

    # ---- the record ----

    def decided(self, volume_id):
        return next((members[volume_id] for members in self.records.values() if volume_id in members), None)

    def write(self, name, members):
        """As store.Directory.write and remove: the file, then its directory, is flushed."""
        if self.disk.faults.hits("write"):
            raise OSError(errno.ENOSPC, "no space for the record")
        yield self.world.delay(0.002)
        if members:
            self.records[name] = self.cache[name] = members
        else:
            self.records.pop(name, None)
            self.cache.pop(name, None)
        yield from self.flush_record()

    def flush_record(self):
        yield self.world.delay(0.002)
        self.durable = copy.deepcopy(self.cache)

    def settle(self, volume_id, new):
        while self.settling:
            yield 0.001
        self.settling = True
        try:
            for name, members in list(self.records.items()):
                if volume_id in members and members[volume_id].new == new:
                    yield from self.write(name, {key: value for key, value in members.items() if key != volume_id})
        finally:
            self.settling = False

    def commit(self, name, members, answer):
        """groupcommit.GroupCommits.commit(). members: {target: (epoch, attempt, new)}; answer(error)."""
        holds = {}
        for target in sorted(members, key=lambda target: target.volume_id):
            holds[target] = hold = Hold()
            target.post(lambda hold=hold: [Held(hold)])
            while not hold.taken.fired:
                yield hold.taken
        try:
            decisions = {target.volume_id: self.decision(target, *ids) for target, ids in members.items()}
            yield from self.write_record(name, decisions)
        except (Refused, OSError) as err:
            self.world.log(f"target node: {err}")
            answer(err if isinstance(err, Refused) else QrepError(str(err)))
        else:
            for target, hold in holds.items():
                hold.actions = target.machine.decided
            answer(None)
        for hold in holds.values():
            hold.over.fire()

    def decision(self, target, epoch, attempt, new):
        return target.machine.decision(attempt, new, epoch)

    def write_record(self, name, decisions):
        yield from self.write(name, decisions)


class GroupController(Controller):
    """The run of one member."""

    group = None
    in_group = True

    def __str__(self):
        return self.name

    def _freeze(self, action):
        yield self.world.delay(0.01)
        if self not in self.group.froze:
            self.group.bring(self, action.token)
            while self not in self.group.froze:
                if self in self.group.withdrawn:
                    raise QrepError("another member ended before the group was frozen")
                yield self.world.delay(0.02)
        elif action.token not in self.volume.snapshots:
            raise QrepError("the snapshot of the group is gone")
        token = self.group.froze[self]
        return self.machine.frozen(token, False, self.group.moment)

    def _agree(self, action):
        yield 0
        self.group.tell("agreed", self, tuple(action))

    def _finish(self, action):
        self.group.tell("ended", self, None, False)
        yield from super()._finish(action)

    def _fail(self, action):
        self.group.tell("left", self)
        yield from super()._fail(action)
        if not self.alive:
            self.group.tell("ended", self, action.error, action.keep_open)

    def kill(self, why):
        super().kill(why)
        if why == "no connection":
            self.group.tell("ended", self, Unreachable(why), True)

    def withdraw(self, error, abort):
        self.group.withdrawn.add(self)
        self.post(lambda: self.machine.withdraw(error, abort))

    def reconnect(self, why):
        end, self.control = self.control, None
        if end is not None:
            end.close()
        self.post(lambda: self.machine.disconnected(why) if self.machine.phase == "committing" else [])

    performers = {**Controller.performers, do.Freeze: _freeze, do.Agree: _agree, do.Finish: _finish, do.Fail: _fail}


class Coordinator:
    """daemon/groups.py of the simulation: the group at the source."""

    run_class = GroupRun

    def __init__(self, world, controllers, network, node):
        self.world, self.controllers, self.network, self.node = world, controllers, network, node
        for controller in controllers:
            controller.group = self
        self.life = 0
        self.run = None
        self.sets = []  # {target's oracle: new id} of every question that was asked
        self.froze, self.tokens, self.withdrawn, self.moment = {}, {}, set(), 0

    @property
    def going(self):
        return any(controller.alive for controller in self.controllers)

    def start(self, initial):
        if self.going:
            return
        self.life += 1
        self.run = self.run_class(self.controllers)
        self.froze, self.tokens, self.withdrawn = {}, {}, set()
        for controller in self.controllers:
            controller.run(frozen=True, initial=initial, connections=self.world.random.choice((1, 2)))

    def kill(self):
        self.life += 1
        for controller in self.controllers:
            controller.kill("kill -9")

    def tell(self, event, *arguments):
        for action in getattr(self.run, event)(*arguments):
            self.world.log(f"group {type(action).__name__}")
            match action:
                case groups.Ask():
                    self.ask(action.members)
                case groups.Withdraw():
                    action.member.withdraw(action.error, action.abort)
                case groups.Reconnect():
                    action.member.reconnect(action.why)
                case groups.FreezeAll():
                    self.freeze()

    def bring(self, controller, token):
        self.tokens[controller] = token, controller.machine.record.frozen_at_ns if controller.machine.record else 0
        self.tell("arrived", controller)

    def freeze(self):
        """All at one moment: the same again if all have it, else anew."""
        moments = {moment for _token, moment in self.tokens.values()}
        again = len(moments) == 1 and all(token in controller.volume.snapshots for controller, (token, _) in self.tokens.items())
        self.moment = moments.pop() if again else int(self.world.now * 1e9)
        for controller, (token, _) in self.tokens.items():
            self.froze[controller] = token if again else controller.volume.freeze()
            if not again:
                controller.volume.snapshots.pop(token, None)

    def ask(self, members):
        """A connection of its own, which may break anywhere, or take its time."""
        question = self.world.random.randbytes(16)
        self.sets.append({controller.oracle: ids[2] for controller, ids in members.items()})
        life, world, open_ = self.life, self.world, [True]

        def answered(error):
            if open_[0] and life == self.life:
                open_[0] = False
                self.tell("answered", error)

        def lost():
            answered(Unreachable("the answer did not come"))

        def arrives():
            if self.node.ready and not self.network.down:
                by_target = {controller.target: ids for controller, ids in members.items()}
                self.node.spawn(self.node.commit(question, by_target, lambda error: world.at(world.delay(self.network.latency), back, error)))

        def back(error):
            if not world.chance(0.15) and not self.network.down:
                answered(error)

        wait = world.delay(self.network.latency) + (world.delay(3.0) if world.chance(0.2) else 0)  # a question may be late
        if not world.chance(0.1):
            world.at(wait, arrives)
        world.at(2.0, lost)


class GroupScenario:
    """One seed. The classes: those of a defect. focus: weights ({fault: weight}), busy, superblock_latency, where they are not drawn."""

    def __init__(self, seed, *, coordinator_class=Coordinator, node_class=TargetNode, member_class=Member, controller_class=GroupController, focus=None, trace=False):
        focus = focus or {}
        self.seed, self.world = seed, World(seed, trace=trace)
        random = self.world.random
        self.network = Network(self.world, latency=random.choice((0.001, 0.01, 0.05)), cut_chance=random.choice((0, 0.002, 0.01)))
        self.targets, self.controllers, self.oracles = [], [], []
        for number in range(random.choice((2, 2, 3))):
            size = LEAF * random.choice((4, 8, 9))
            geometry = wire.Geometry(size, LEAF, LEAF * 2)
            oracle, volume = Oracle(self.world, size, LEAF, LEAF * 2), Volume(self.world, size)
            ids = random.randbytes(16), random.randbytes(16)
            target = member_class(self.world, oracle, geometry, volume_id=ids[1], sync_points=random.choice((0, 2)), undo_limit=1 << 30)
            target.superblock.latency = focus.get("superblock_latency") or random.choice((0.001, 0.05))
            controller = controller_class(self.world, oracle, geometry, volume, self.network, target, name=f"source {number}", ids=ids)
            controller.pace = random.choice((1, 1, 5))
            self.targets.append(target)
            self.controllers.append(controller)
            self.oracles.append(oracle)
        self.node = node_class(self.world, self.targets)
        self.group = coordinator_class(self.world, self.controllers, self.network, self.node)
        self.weights = focus.get("weights") or {fault: random.choice((0, 0, 1, 3)) for fault in FAULTS}
        self.initial = random.choice(("auto", "compare"))
        self.busy = focus.get("busy") or random.choice((0.05, 0.1, 0.3))
        self.number = 0

    def play(self):
        self.node.start()
        for _ in range(STEPS):
            self.world.run(self.world.now + self.world.delay(self.busy))
            self.host_writes()
            if self.world.random.random() < 0.5:
                self.group.start(self.initial)
            else:
                self.fault()
            if self.node.ready and not self.group.going and not self.node.records:
                self.all_or_none()
        self.heal()
        return self.world.digest.hexdigest()

    def host_writes(self):
        """One number to all volumes at one moment, and noise."""
        self.number += 1
        for controller in self.controllers:
            volume, leaves = controller.volume, controller.geometry.size // LEAF
            volume.write(0, self.number.to_bytes(8, "little"))
            volume.write(self.world.random.randrange(1, leaves) * LEAF, self.world.random.randbytes(LEAF))

    def fault(self):
        random = self.world.random
        kinds = [kind for kind, weight in self.weights.items() if weight]
        if not kinds:
            return
        kind = random.choices(kinds, [self.weights[kind] for kind in kinds])[0]
        self.world.log(f"fault {kind}")
        target, controller = random.choice(self.targets), random.choice(self.controllers)
        match kind:
            case "kill_sources":
                self.group.kill()
            case "kill_targets":
                self.node.stop("kill -9")
            case "power_targets":
                self.node.power_cut()
            case "cut":
                self.network.cut_some(random.choice((0.3, 1.0)))
            case "partition":
                self.network.down = True
                self.network.cut_some(1.0)
                self.world.at(self.world.delay(1.0), lambda: setattr(self.network, "down", False))
            case "disk_write":
                target.device.faults.arm("write", 1, False)
            case "superblock_write":
                target.superblock.faults.arm("write", random.choice((1, 2, 4)), False)
            case "record_write":
                self.node.disk.faults.arm("write", random.choice((1, 2)), False)
            case "source_bad":
                controller.volume.unreadable.symmetric_difference_update({LEAF})
            case "abandon":
                if target.ready:
                    target.post(lambda: target.machine.abandon() if target.machine.phase in ("idle", "open", "prepared") else [])
            case "stop":
                if controller.alive and controller.machine is not None:
                    controller.withdraw(Interrupted("stopped"), False)
            case "release":
                for one in self.controllers:
                    if not one.alive:
                        one.volume.snapshots.clear()

    def all_or_none(self):
        """INV-G, INV-O: of what is committed now, and can be taken back by nothing."""
        whole = [named for named in self.group.sets if all(named.get(oracle) in oracle.chain for oracle in self.oracles)]
        for oracle in self.oracles:
            for new in oracle.chain:
                if not any(named[oracle] == new for named in whole):
                    raise Violation(f"INV-G: generation {new.hex()[:8]} is committed, and not everything that it was to be committed with")
        numbers = {oracle.images[oracle.chain[-1]][:8] if oracle.chain else None for oracle in self.oracles}
        if len(numbers) > 1:
            raise Violation(f"INV-O: the members show {len(numbers)} moments")

    def heal(self):
        world = self.world
        world.calm = True
        self.network.down = False
        for controller in self.controllers:
            controller.volume.unreadable.clear()
            controller.store.faults.heal()
            controller.pace = 1
        for disk in (self.node.disk, *(disk for target in self.targets for disk in (target.device, target.superblock, *target.undo.values(), target.store))):
            disk.faults.heal()
        world.log("healed")
        world.run(world.now + 300.0, lambda: not self.group.going and self.node.ready and not self.node.records)
        if not self.node.ready or self.node.records:
            raise Violation("INV-L: the target does not come up")
        self.all_or_none()
        goal, deadline = [len(oracle.chain) + 1 for oracle in self.oracles], world.now + LIVENESS
        while any(len(oracle.chain) < count for oracle, count in zip(self.oracles, goal, strict=True)) or self.group.going:
            if world.now >= deadline:
                raise Violation(f"INV-L: the group does not commit within {LIVENESS} s after everything was healed")
            self.group.start(self.initial)
            world.run(min(deadline, world.now + 5.0), lambda: not self.group.going)
        world.run(world.now + 1.0)
        self.all_or_none()
        if self.node.records:
            raise Violation("a record stays when every member is settled")
        for target, oracle in zip(self.targets, self.oracles, strict=True):
            oracle.device(target.device, "INV-E at the end")
            oracle.retained(target)


def play(seed, **classes):
    scenario = GroupScenario(seed, **classes)
    try:
        return scenario.play()
    except Exception as error:
        error.add_note(f"replay: GroupScenario({seed}, trace=True)")
        raise
