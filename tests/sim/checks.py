"""A target that is verified and healed while everything else happens to it: rot, a source that only verifies, and an oracle that knows of the rot."""

from qrep._native import disk as records
from qrep._native import hasher
from qrep.protocol import actions as do
from qrep.protocol import messages as say
from sim.disk import SECTOR
from sim.oracle import Oracle
from sim.scenario import LEAF, Scenario
from sim.target import LaneFailure, Target
from sim.world import Process, Violation


class RottenOracle(Oracle):
    """A leaf that rotted may hold, sector by sector, what it should or what the rot made of it: nothing else."""

    def prepare(self):
        self.rot = {}  # leaf -> contents that rot gave it, ever
        self.alarms = self.healed_leaves = 0

    def rotted(self, leaf, content):
        self.rot.setdefault(leaf, []).append(content)

    def device(self, device, what):
        image, kept = self.images[self.chain[-1]], (bytes(device.durable), bytes(device.cache))
        for part in (device.durable, device.cache):
            self._forgive(part, image)
        try:
            super().device(device, what)
        finally:
            device.durable[:], device.cache[:] = kept

    def _forgive(self, content, image):
        for leaf, rotten in self.rot.items():
            for place in range(leaf * self.leaf_size, min((leaf + 1) * self.leaf_size, self.size), SECTOR):
                inside = place - leaf * self.leaf_size
                if any(content[place : place + SECTOR] == part[inside : inside + SECTOR] for part in rotten):
                    content[place : place + SECTOR] = image[place : place + SECTOR]

    def map(self, tag, states, values, who):
        """What is said of granules that rotted may have been read of the rot."""
        states = bytearray(states)
        for leaf in self.rot:
            states[leaf * self.leaf_size // self.granule_size] = records.STATE_UNKNOWN
        super().map(tag, states, values, who)

    def retained(self, target):
        """Before-images that a run took of the rot are what they are."""
        if not self.rot:
            super().retained(target)

    def told(self, piece):
        """The target has said that granules are not what its map says."""
        for granule in piece.whole:
            first = granule * self.granule_size // self.leaf_size
            if not any(first <= leaf < first + self.granule_size // self.leaf_size for leaf in self.rot):
                raise Violation(f"a false alarm: nothing ever rotted in granule {granule}")
            self.alarms += 1

    def healed(self, leaf, device):
        span = slice(leaf * self.leaf_size, min((leaf + 1) * self.leaf_size, self.size))
        if bytes(device.durable[span]) != self.images[self.chain[-1]][span]:
            raise Violation(f"leaf {leaf} was said to be healed, and is not, or not durably")
        self.healed_leaves += 1


class CheckedTarget(Target):
    readers = 0
    pause = 0.05  # seconds, scale: before and after a granule is read

    def mark(self, run, frame):
        """As the real one, which trusts its map for leaves that a run does not touch."""
        try:
            super().mark(run, frame)
        except LaneFailure:
            start = frame.granule * self.geometry.granule_size // LEAF
            if not any(start <= leaf < start + self.geometry.granule_size // LEAF for leaf in self.oracle.rot):
                raise
            self.marked[frame.granule] = 2

    def is_right(self, granule, content):
        """Whether `content` is what the own map says of a granule; None: it says nothing."""
        kind = self.base_states[granule] & records.STATE_MASK
        if self.map_tag != self.machine.record.committed_id or kind == records.STATE_UNKNOWN:
            return None
        if kind == records.STATE_ZERO:
            return not any(content)
        value = self.base_values[granule * 32 : granule * 32 + 32]
        return hasher.subtree(content, granule * self.geometry.granule_size, LEAF) == value

    def _start_check(self, action):
        yield 0
        self.readers += 1
        self.spawn(self.read_beside(action, self.readers))

    def read_beside(self, action, number):
        g = self.geometry
        for granule in range(action.first, g.granules):
            yield self.world.delay(self.pause)
            if number != self.readers:
                return
            try:
                content = self.device.read(granule * g.granule_size, g.granule_bytes(granule))
            except OSError:
                return
            wrong = self.is_right(granule, content) is False
            yield self.world.delay(self.pause)
            message = say.Checked(granule, 1, len(content), [], [granule] if wrong else [], [], 0, granule + 1 == g.granules)
            self.post(self.tell_checked, action.handle, action.mark, message)

    def tell_checked(self, handle, mark, message):
        actions = self.machine.checked(handle, mark, message)
        if any(isinstance(action, do.Reply) and action.message is message for action in actions):
            self.oracle.told(message)
        return actions

    def may_heal(self, leaf, data):
        g, offset = self.geometry, leaf * LEAF
        granule = offset // g.granule_size
        start = granule * g.granule_size
        content = bytearray(self.device.read(start, g.granule_bytes(granule)))
        content[offset - start : offset - start + len(data)] = data
        return self.is_right(granule, content) is True

    def _repair_leaf(self, action):
        healed = self.may_heal(action.leaf, action.data)
        if healed:
            yield self.device.submit(action.leaf * LEAF, action.data)
            yield from self.flush_repair()
            self.oracle.healed(action.leaf, self.device)
        self._reply(action.handle, say.Repaired(action.leaf, healed, "" if healed else "map"))
        yield 0

    def flush_repair(self):
        yield from self.device.flush()

    performers = {**Target.performers, do.StartCheck: _start_check, do.RepairLeaf: _repair_leaf}


class Verifier(Process):
    """A source that verifies, and heals with whatever its volume holds now: also with what is of another generation."""

    def __init__(self, world, scenario):
        super().__init__(world, "verifier")
        self.scenario, self.control = scenario, None
        self.insists_on = None  # a granule

    def main(self):
        scenario, target, g = self.scenario, self.scenario.target, self.scenario.geometry
        connection = scenario.network.connect("verifier control")
        if connection is None or not target.ready:
            self.kill("no connection")
            return
        self.control, life = connection.ends[0], self.life
        self.epoch, self.generation = target.machine.record.max_epoch + 1, None
        self.hello = lambda: say.Hello(1, 1, scenario.controllers[0].job_id, target.volume_id, self.epoch, g.size, g.leaf_size, g.granule_size, 512, False, [])
        self.control.listen(lambda body: self.said(life, body), lambda: self.gone(life))
        self.world.at(self.world.delay(scenario.network.latency), target.accept, connection.ends[1])
        self.send(self.hello())
        yield 60.0
        self.kill("no patience")

    def send(self, message):
        if self.control is not None and self.control.open:
            self.control.send(say.encode(message)[4:])

    def died(self):
        if self.control is not None:
            self.control.close()
            self.control = None

    def gone(self, life):
        if life == self.life:
            self.kill("cut")

    def said(self, life, body):
        if life != self.life or not self.alive:
            return
        message = say.decode(body, "target")
        if isinstance(message, say.Stale):
            self.epoch = message.max_epoch + 1
            self.send(self.hello())
        elif isinstance(message, say.State):
            self.generation = message.committed
            if message.committed == say.NO_ID:
                self.kill("nothing to verify")
                return
            if message.open_attempt:  # it is asked all the same, and must refuse
                self.heal(self.world.random.randrange(self.scenario.geometry.granules) if self.insists_on is None else self.insists_on)
            self.send(say.Check(self.generation, 0, 0, []))
        elif isinstance(message, say.Checked):
            for granule in message.whole:
                self.heal(granule)
            if message.done and not message.whole:
                self.kill("done")
        elif isinstance(message, (say.Nak, say.Error)):
            self.kill(f"refused: {message.code}")

    def heal(self, granule):
        g, volume = self.scenario.geometry, self.scenario.volume
        first = granule * g.granule_size // LEAF
        for leaf in range(first, first + g.granule_leaves(granule)):
            images = [self.scenario.oracle.images[self.generation], volume.content, *volume.snapshots.values()]  # the first: it was kept
            data = bytes(self.world.random.choice(images)[leaf * LEAF : min((leaf + 1) * LEAF, g.size)])
            self.send(say.Repair(self.generation, leaf, data))


class CheckScenario(Scenario):
    """A quarter of what happens is rot, a third verifies, the rest is the mix of Scenario."""

    def __init__(self, seed, *, target_class=CheckedTarget, **options):
        # A sector that is shorn as the power goes leaves a damaged leaf damaged; without them every sector can be accounted for.
        super().__init__(seed, target_class=target_class, focus={"shorn": 0.0}, **options)
        self.oracle.__class__ = RottenOracle
        self.oracle.prepare()
        self.verifier = Verifier(self.world, self)
        self.target.device.latency = self.world.random.choice((0.001, 0.05))
        self.busy = self.world.random.choice((0.05, 0.3))
        self.weights = {fault: weight for fault, weight in self.weights.items() if fault not in ("take_over", "give_up")}

    def fault(self):
        what = self.world.random.random()
        if what < 0.25:
            self.rot()
        elif what < 0.6:
            if not self.verifier.alive:
                self.verifier.start()
            elif self.world.random.random() < 0.5:  # under it a sync point is put back, which may fail, and then the session goes on
                self.target.device.faults.arm("write", self.world.random.choice((1, 2, 3)), False)
                self.rollback()
        else:
            super().fault()

    def rot(self):
        """Of a device that holds a committed generation; under everything that goes on."""
        target, random = self.target, self.world.random
        if not self.oracle.chain:
            return
        leaf = random.randrange(-(-self.geometry.size // LEAF))
        span = slice(leaf * LEAF, min((leaf + 1) * LEAF, self.geometry.size))
        content = random.randbytes(span.stop - span.start)
        under_way = [*((offset, data) for offset, data, *_ in target.device.in_flight.values()), *target.device.pending]
        if any(offset < span.stop and span.start < offset + len(data) for offset, data in under_way):
            return
        self.world.log(f"leaf {leaf} rots")
        target.device.cache[span] = target.device.durable[span] = content
        self.oracle.rotted(leaf, content)

    def heal(self):
        """The medium is put right by somebody else, once nothing is open: what a repair cannot heal is a run's to send (tests/flow)."""
        self.verifier.kill("healed")
        self.world.calm = True
        self.network.down = False
        target = self.target
        target.device.faults.heal()
        for disk in (target.device, target.superblock, *target.undo.values(), target.store):
            disk.faults.heal()
        self.world.run(self.world.now + 300.0, lambda: not any(controller.alive for controller in self.controllers))
        for _ in range(60):
            self.world.run(self.world.now + 5.0)
            if target.ready and target.machine.phase == "idle" and not target.inbox:
                break
        if self.oracle.chain and target.machine.phase == "idle":
            image = self.oracle.images[self.oracle.chain[-1]]
            for leaf in self.oracle.rot:
                span = slice(leaf * LEAF, min((leaf + 1) * LEAF, self.geometry.size))
                target.device.cache[span] = target.device.durable[span] = image[span]
        super().heal()
