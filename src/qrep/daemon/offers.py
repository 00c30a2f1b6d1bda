"""Volumes of this host that are offered to a job as its clone (target/offer.py): the conversation with the job's source.

Until the last word nothing is kept of it but the claim on the device, so whatever dies leaves things as they were. Adopted is in three steps, each
durable: the map of what was read, the pair, the superblock. A pair without a superblock is not served; the next offer goes on from there.
"""

import contextlib
import time

from qrep import devicesafety, units
from qrep._native import wire
from qrep.crashpoint import crashpoint
from qrep.daemon import asks
from qrep.daemon.pairs import wanted_of
from qrep.errors import ProtocolError, QrepError, Refused, TimedOut
from qrep.protocol import messages as say
from qrep.protocol.transport import Disconnected
from qrep.target.pulse import Pulse

SILENCE_S = 10.0  # a source says something every second
IDLE_S = 600.0  # without a question: a source judges an answer in moments, and nobody holds a device here by saying only that it is there


class Offers:
    """node: the Node."""

    def __init__(self, node):
        self.node = node

    def serve(self, channel, offer, peer, source=None):
        """One conversation to its end. offer: say.Offer. peer: the host that asks, None: this one, and source is the DeviceInfo of its volume.
        What it is refused with is told; raised as well where a peer asked."""
        with contextlib.closing(channel), Conversation(self.node, channel, offer, peer, source) as conversation:
            try:
                conversation.run()
            except Disconnected:
                return
            except QrepError as error:
                with contextlib.suppress(Disconnected):
                    channel.send(say.Error(code=error.code, message=error.message, hint=error.hint))
                if peer:
                    raise


class Conversation:
    def __init__(self, node, channel, offer, peer, source):
        self.node, self.channel, self.offer, self.peer, self._source = node, channel, offer, peer, source
        self.busy = "opening"
        self._device = self._volume = None
        self._adopted = False
        self._pulse = Pulse(channel, lambda: say.Beat(busy=self.busy, received=0, written=0, undo=0))

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self._pulse.end()
        if self._device is not None:
            self._device.close(forget=not self._adopted)

    def run(self):
        offer, version = self.offer, say.common_version(self.offer.version_min, self.offer.version_max)
        if version is None:
            raise Refused("the two hosts speak different versions of the protocol", code="version", hint="bring both to versions that overlap")
        volume, question = self._volume_of(offer)
        if volume.is_replica():
            self._say_adopted(version, volume, question)
            return
        info = volume.inspect()
        # But for what it carries, which is looked at now. An offer that has just ended may hold it for a moment.
        volume.check_target(source=self._source, size=offer.size, leaf=offer.leaf_size, overwrite=True, known=False, wait_seconds=2 * devicesafety.OPEN_S)
        from qrep.target.offer import OfferedDevice

        self._volume = volume
        geometry = wire.Geometry(offer.size, offer.leaf_size, offer.granule_size)
        self._device = OfferedDevice(info, volume.directory, volume_id=bytes.fromhex(volume.settings.id), geometry=geometry)
        self.busy = ""
        self.channel.send(say.Offered(version, self._device.volume_id, info.size, say.NO_ID, 0))
        self._converse(question)

    def _converse(self, question):
        """Until it is adopted or given up. Raises Refused when the source only holds it."""
        asked = time.monotonic()
        while not self._adopted:
            message = self._hear()
            waits = isinstance(message, say.Ping)
            self.node.pairs.check_accepted(self.node.volumes.get(self._volume.name), self.peer)
            if waits and time.monotonic() - asked > IDLE_S:
                raise Refused(f"nothing was asked of {self._name(self._volume)} for {IDLE_S:g} s: it is let go", code="idle", hint="begin again")
            if not self._answer(message, question):
                return
            if not waits:
                asked = time.monotonic()  # when it was answered

    def _volume_of(self, offer):
        """(ManagedVolume, what would make the pair), if this host's administrator lets the peer write there, and nobody else does."""
        source = f"{self.peer}:{offer.source}" if self.peer else offer.source
        question = asks.CreatePair(
            job_id=offer.job_id.hex(), job=offer.job, source=source, volume=offer.volume, size=offer.size, leaf=offer.leaf_size,
            granule=offer.granule_size, sync_points=offer.sync_points, keep=offer.keep, overwrite=True, check_only=True, once=False,
        )  # fmt: skip
        if offer.granule_size & (offer.granule_size - 1) or offer.leaf_size & (offer.leaf_size - 1) or offer.granule_size < 2 * offer.leaf_size:
            raise ProtocolError("leaf and granule are not powers of two, or not a granule of many leaves")
        return self.node.pairs.offered(question, self.peer), question

    def _say_adopted(self, version, volume, question):
        """It is this very job's already, and its source has not heard of it."""
        pair = self.node.grants.pair(question.job_id)
        if pair is None or pair["volume"] != volume.name or pair["peer"] != (self.peer or "") or not self.node.pairs.lives(pair):
            raise Refused(
                f"{self._name(volume)} has sync points of another job",
                hint=f"there: qrep volume remove {volume.name}, and add it again, if they are not needed", code="has-sync-points",
            )  # fmt: skip
        status = volume.replica().status()
        self.channel.send(
            say.Offered(version, bytes.fromhex(volume.settings.id), volume.inspect().size, bytes.fromhex(status["committed_id"]), status["committed_counter"])
        )

    def _name(self, volume):
        return f"{self.node.name}:{volume.name}" if self.peer else volume.name

    def _hear(self):
        try:
            return self.channel.receive(SILENCE_S)
        except TimedOut:
            raise Disconnected(f"nothing was heard from the source for {SILENCE_S:g} s") from None

    def _answer(self, message, question):
        """Whether the conversation goes on."""
        device, self.busy = self._device, type(message).__name__
        try:
            match message:
                case say.Ping():
                    self.channel.send(say.Pong())
                case say.Sample():
                    self.channel.send(say.Sampled(device.sample(message.leaves)))
                case say.ScanTarget():
                    states, values = device.scan(message.first, message.count)
                    self.channel.send(say.Digests(message.first, bytes(states), bytes(values)))
                case say.GetLeaves():
                    for granule, page in device.leaves(message.granules):
                        self.channel.send(say.Leaves(granule, bytes(page)))
                case say.Adopt():
                    self._adopt(message, question)
                    self.channel.send(say.Adopted(message.generation))
                case say.Abort():
                    self.node.events.add("clone-refused", message.reason, volume=self._volume.name, job=self.offer.job)
                    return False
                case _:
                    raise ProtocolError(f"a {type(message).__name__} may not come while a volume is offered")
        finally:
            self.busy = ""
        return True

    def _adopt(self, message, question):
        volume, device = self._volume, self._device
        with volume.lock:
            if self.node.volumes.get(volume.name) is not volume or volume.is_replica():
                raise Refused(f"{self._name(volume)} was removed or became a replica meanwhile", code="busy", hint="try again")
            self.node.pairs.offered(question, self.peer)  # as it is now
            device.write_map(message.generation, message.counter)
            self.node.pairs.note(question, self.peer)
            crashpoint("rebuild-pair-durable")
            device.write_superblock(message.generation, message.counter, message.frozen_at_ns, message.fuzzy)
            self._adopted = True
            volume.open_target(wanted=wanted_of(question), claimed=device.take_claim())
        self.node.events.add(
            "clone-adopted", f"it holds generation {message.counter} of job {self.offer.job} of {self.peer or 'this host'}, "
            f"{units.format_size(self.offer.size)}, read as a whole", volume=volume.name, job=self.offer.job, generation=message.generation.hex(),
        )  # fmt: skip
