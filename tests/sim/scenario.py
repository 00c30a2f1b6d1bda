"""What happens in one seed: a small volume, its host, one or two controllers, and faults whose intensity the seed draws."""

from qrep._native import wire
from qrep.errors import QrepError
from qrep.states import TARGET
from sim.net import Network
from sim.oracle import Oracle
from sim.source import Controller, Volume
from sim.target import Target
from sim.world import Violation, World

LEAF = 4096
FAULTS = (
    "kill_source", "kill_target", "power_target", "power_source", "cut", "partition", "disk_read", "disk_write", "disk_flush", "undo_write",
    "undo_flush", "superblock_write", "state_full", "source_read", "source_bad", "target_bad", "rollback", "abandon", "second", "stop", "release", "resize",
    "snapshot_full",
)  # fmt: skip
STEPS = 35
LIVENESS = 120.0  # virtual seconds after healing within which a run must commit


class Scenario:
    """One seed.

    focus: what of the mix is fixed instead of drawn: weights ({fault: weight}), controllers, pace, frozen, busy, contents, hot, lies, latency,
    checkpoint_every, superblock_latency, shorn.
    """

    def __init__(self, seed, *, target_class=Target, controller_class=Controller, focus=None, trace=False):
        focus = focus or {}
        self.seed = seed
        self.world = world = World(seed, trace=trace)
        random = world.random
        granule = LEAF * random.choice((2, 4, 4))
        size = granule * random.randint(2, 4) + random.choice((0, 512, LEAF, LEAF + 512))
        self.geometry = geometry = wire.Geometry(size, LEAF, granule)
        self.oracle = Oracle(world, size, LEAF, granule)
        self.network = Network(world, latency=focus.get("latency") or random.choice((0.001, 0.01, 0.05)), cut_chance=random.choice((0, 0.002, 0.01)))
        self.volume = Volume(world, size)
        ids = random.randbytes(16), random.randbytes(16)
        undo_limit = random.choice((1 << 30, 1 << 30, 120_000))
        self.target = target_class(world, self.oracle, geometry, volume_id=ids[1], sync_points=random.choice((0, 1, 3, 7)), undo_limit=undo_limit)
        self.target.sync_points = focus.get("sync_points", self.target.sync_points)
        names = ["source", "other"][: focus.get("controllers") or random.choice((1, 1, 2))]
        self.controllers = [
            controller_class(world, self.oracle, geometry, self.volume, self.network, self.target, name=name, ids=ids) for name in names
        ]
        # Swarm: each seed has its own mix, so that rare combinations are met often by some.
        self.target.device.shorn = focus.get("shorn", 0.03)
        self.target.superblock.latency = focus.get("superblock_latency") or random.choice((0.001, 0.03))
        self.weights = focus.get("weights") or {fault: random.choice((0, 0, 1, 3)) for fault in FAULTS}
        pace = focus.get("pace") or random.choice((1, 1, 5, 20, 60))  # slow lanes: runs that last long enough to be interrupted again and again
        for controller in self.controllers:
            controller.pace = pace
            controller.hold = random.random() < 0.8
        self.target.lies = focus.get("lies", random.choice((0, 0, 0.02)))
        self.target.checkpoint_every = focus.get("checkpoint_every", 0.3)
        self.frozen = focus.get("frozen", random.choice((0.0, 0.5, 1.0)))
        self.initial = random.choice(("auto", "auto", "compare", "full"))
        self.hot = focus.get("hot", 0.4)
        self.busy = focus.get("busy") or random.choice((0.05, 0.3, 1.0))  # seconds between what happens, scale
        if "weights" not in focus:
            self.weights |= {fault: random.choice((0, 0, 1, 3)) for fault in ("take_over", "give_up")}
        self.few_contents = [bytes(LEAF), *(random.randbytes(LEAF) for _ in range(focus.get("contents", 2)))]  # contents return: "changed and changed back"

    def play(self):
        """Everything of this seed. Raises Violation; returns the digest of the event log."""
        self.target.start()
        for _ in range(STEPS):
            self.world.run(self.world.now + self.world.delay(self.busy))
            self.host_writes()
            self.host_writes(self.target.host_writes_here)
            if self.world.random.random() < 0.5:
                self.start_run()
            else:
                self.fault()
        self.heal()
        return self.world.digest.hexdigest()

    def host_writes(self, write=None):
        random = self.world.random
        for _ in range(random.choice((0, 1, 1, 3))):
            leaf = random.randrange(2 if random.random() < self.hot else -(-self.geometry.size // LEAF))  # some leaves are hot
            offset = leaf * LEAF
            data = random.choice(self.few_contents) if random.random() < 0.8 else random.randbytes(LEAF)
            (write or self.volume.write)(offset, data[: self.geometry.size - offset])

    def start_run(self, controller=None, *, frozen=None):
        random = self.world.random
        controller = controller or random.choice(self.controllers)
        frozen = random.random() < self.frozen if frozen is None else frozen
        controller.run(frozen=frozen, initial=self.initial, connections=random.choice((1, 1, 2, 4)))

    def fault(self):
        random, target = self.world.random, self.target
        kinds = [kind for kind, weight in self.weights.items() if weight]
        if not kinds:
            return
        kind = random.choices(kinds, [self.weights[kind] for kind in kinds])[0]
        controller = random.choice(self.controllers)
        self.world.log(f"fault {kind}")
        count, sticky = random.choice((1, 1, 2, 5)), random.random() < 0.2
        match kind:
            case "kill_source":
                controller.kill("kill -9")
            case "kill_target":
                target.kill("kill -9")
            case "power_target":
                target.power_cut()
            case "power_source":
                controller.power_cut()
            case "cut":
                self.network.cut_some(random.choice((0.3, 1.0)))
            case "partition":
                self.network.down = True
                self.network.cut_some(1.0)
                self.world.at(self.world.delay(1.0), self._join_again)
            case "disk_read" | "disk_write" | "disk_flush":
                target.device.faults.arm(kind[5:], count, sticky and kind != "disk_flush")
            case "undo_write" | "undo_flush":
                for file in target.undo.values():
                    file.faults.arm(kind[5:], count, False)
            case "superblock_write":
                target.superblock.faults.arm("write", count, False)
            case "state_full":
                random.choice((controller.store, target.store)).faults.arm("write", count, sticky)
            case "source_read":
                self.volume.bad_reads = count
            case "source_bad" | "target_bad":
                places = self.volume.unreadable if kind == "source_bad" else target.device.unwritable
                if places and random.random() < 0.4:
                    places.clear()
                else:
                    places.add(random.randrange(self.geometry.size // LEAF) * LEAF)
            case "merge":
                target.merge_some()
            case "rollback":
                self.rollback()
            case "take_over":
                target.take_over(random.randbytes(16))
            case "give_up":
                target.give_up(random.randbytes(16))
            case "abandon":
                if target.ready:
                    target.post(lambda: target.machine.abandon() if "abandon" in self._events() else [])
            case "second":
                self.start_run(self.controllers[-1])
            case "stop":
                if controller.alive and controller.machine is not None:
                    controller.post(lambda: controller.machine.stop() if controller.machine.phase not in ("done", "failed", "degraded") else [])
            case "snapshot_full":
                if controller.alive and controller.machine is not None:
                    controller.post(lambda: controller.machine.snapshot_lost(QrepError("the snapshot's space is nearly full")))
            case "resize":
                if controller.alive and controller.machine is not None:
                    controller.resize(random.choice((1, 1, 2, 3, 5, 16)))
            case "release":
                self.volume.snapshots = {token: image for token, image in self.volume.snapshots.items() if self._in_use(token)}

    def _give_up_at_last(self):
        """Two primaries never agree by themselves: the operator names the losing side, here the target."""
        target = self.target
        self.world.run(self.world.now + 30.0, lambda: target.has_taken_over)
        target.give_up(self.world.random.randbytes(16))
        if not self.world.run(self.world.now + 30.0, lambda: target.ready and not target.is_primary() and target.machine.phase != "mapping"):
            raise Violation("INV-L: a primary volume cannot be given up after everything was healed")

    def _in_use(self, token):
        """A snapshot that a lane reads cannot vanish under it; one that only waits for a resume may."""
        return any(
            c.keeps(token) or (c.alive and c.machine is not None and c.machine.record and c.machine.record.snapshot == token) for c in self.controllers
        )

    def _events(self):
        return TARGET[self.target.machine.phase]

    def _join_again(self):
        self.network.down = False

    def rollback(self):
        target = self.target
        if not target.ready:
            return
        random = self.world.random
        new, attempt = random.randbytes(16), random.getrandbits(64) or 1

        def go():
            chain = target.machine.chain
            if target.machine.phase != "idle" or len(chain) < 2:
                return []
            return target.machine.rollback(random.choice(chain[1:]), new, attempt)

        target.post(go)

    def heal(self):
        """INV-L: faults stop, then a run of the first controller must commit; then everything is looked at once more."""
        world = self.world
        world.calm = True
        self.network.down, self.volume.bad_reads = False, 0
        self.volume.unreadable.clear()
        self.target.device.unwritable.clear()
        for disk in (self.target.device, self.target.superblock, *self.target.undo.values(), self.target.store, *(c.store for c in self.controllers)):
            disk.faults.heal()
        world.log("healed")
        for controller in self.controllers:
            controller.pace = 1
        first = self.controllers[0]
        world.run(world.now + 300.0, lambda: not any(controller.alive for controller in self.controllers))
        goal, deadline = self.oracle.committed_runs() + 1, world.now + LIVENESS
        while self.oracle.committed_runs() < goal or first.alive:
            if world.now >= deadline:
                raise Violation(f"INV-L: no commit within {LIVENESS} s after everything was healed")
            if self.target.is_primary():
                self._give_up_at_last()
            if not first.alive:
                self.start_run(first, frozen=True)
            world.run(min(deadline, world.now + 5.0), lambda: not first.alive)
        world.run(world.now + 1.0)
        self.oracle.device(self.target.device, "INV-E at the end")
        self.oracle.retained(self.target)
        self.oracle.map(first.map_tag, first.states, first.values, "the source at the end")


def play(seed, **classes):
    """Run one seed. Raises an exception that names it."""
    scenario = Scenario(seed, **classes)
    try:
        return scenario.play()
    except Exception as error:
        error.add_note(f"replay: PYTHONPATH=tests python -m sim {seed}")
        raise
