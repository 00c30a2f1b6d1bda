"""A target volume in service: the claim on its device, recovery, control sessions (its sync points: keeping.py). Drives one TargetMachine.

    volume = TargetVolume(device.inspect("/dev/vg0/copy"), "/var/lib/qrep/targets/ID", volume_id=ID)
    volume.open()                        # claims the device and recovers, without the source
    volume.serve(channel, rendezvous)    # one control session, to its end; call it from a thread per session
"""

import itertools
import logging
import os
import threading
import time
from collections import Counter

from qrep import devicesafety
from qrep._native import disk, wire
from qrep.crashpoint import crashpoint
from qrep.digestmap import NO_ID
from qrep.errors import DamagedError, ProtocolError, QrepError, Refused, TimedOut
from qrep.protocol import messages as say
from qrep.protocol.messages import PRIMARY, REPLICA
from qrep.protocol.records import OPEN_RUN, TargetRecord
from qrep.protocol.target_machine import TargetMachine
from qrep.protocol.transport import Disconnected, refuse
from qrep.retention import Policy
from qrep.store import Directory
from qrep.target.driver import TargetDriver
from qrep.target.keeping import Keeping
from qrep.target.member import Member
from qrep.target.points import Points
from qrep.target.pulse import Pulse
from qrep.target.superblock import SuperblockFile
from qrep.target.undostore import Chain, UndoStore, undo_directory
from qrep.target.view import Epoch

log = logging.getLogger("qrep.target")
CHECKPOINT_BYTES = 2 << 30  # how much an interrupted first run may have to send again
CHECKPOINT_SECONDS = 10.0
TICK_S = 1.0
HELLO_S = 30.0  # for the first message
SILENCE_S = 10.0  # a source says something every second
EXPEL_S = 2.0  # for what is going on to end, before a peer is cut off without a word
STEPS = (say.Hello, say.Begin, say.Resume, say.Prepare, say.Commit)  # that lead to a commit


class TargetVolume(Keeping, TargetDriver, Member):
    """device: DeviceInfo. directory: of this volume's state. volume_id: 16 bytes.

    leaf_size, granule_size: until a first source brings its own. undo_directory: a place for undo files elsewhere.
    undo_limit: bytes, None for twice the volume. sync_points: how many earlier generations stay within reach, or a whole retention.Policy.
    overwrite: a device that carries a signature and is not ours may be overwritten. source: DeviceInfo of a source on this host,
    which must not be the same storage. claim_wait: seconds to wait for the writes of a dead process (R1). groups: GroupCommits of this node.
    primary: it is opened to be given up by its host, and what it carries is its own. claimed: the exclusive descriptor, of who had it checked and
    read already; taken over.
    """

    def __init__(self, device, directory, *, volume_id, leaf_size=4096, granule_size=8 << 20, undo_directory=None, undo_limit=None,
                 sync_points=7, overwrite=False, source=None, claim_wait=30, groups=None, primary=False, claimed=-1):  # fmt: skip
        self.device, self.volume_id, self.name = device, bytes(volume_id), device.path
        self.geometry = None  # valid from open() on
        self.damaged = None  # why it is out of service
        self.recovered = False  # open() took an unfinished generation back
        self.lock, self.groups = threading.RLock(), groups
        self.device_fd = claimed
        self.rendezvous = None
        self._directory_path, self._undo_path, self._undo_limit_given = directory, undo_directory, undo_limit
        self._shape = (leaf_size, granule_size)
        self.policy = sync_points if isinstance(sync_points, Policy) else Policy(count=sync_points)
        self._pins = Counter()  # sync points in use: id -> how often
        self._merging = threading.Lock()
        self._overwrite, self._source, self._claim_wait = overwrite, source, claim_wait
        self._primary = primary
        self._handles = itertools.count(1)
        self._channels, self._lost, self._reasons = {}, [], {}
        self._attempt = self._checkpoint = self._rollback_result = None
        self.epoch = None  # view.Epoch of the list of undo files, valid from open() on
        self._rollback_progress = None
        self.observer = None  # called with (code, text, **data) of what people are to know
        self.on_commit = lambda volume: None  # called under the lock when a generation is the committed one and what else is kept is settled; does not raise
        self.restoring = None  # (bytes put back, of how many) while before-images are put back
        self._left_at = time.monotonic()  # when the last session ended
        self.busy = ""  # the action that is being carried out: what a Beat says
        self._key = self._tokens = None
        self._saved_at, self._saved_bytes = 0.0, 0
        self._session_epoch = 0
        self.moved = Counter()  # by what the lanes count, over all sessions that have ended since this volume was opened
        self.machine = self.directory = self.digest_map = self.undo = self.points = self.superblock = None

    # ---- life ----

    def open(self, ready=None):
        """Claim the device and bring it to its last committed sync point, without the source.

        ready(): called when the device is claimed and what has to be put back is known: from then on status() tells of it, and sessions may be
        served, which wait until it is done.

        A volume whose own records are damaged opens, too, but is out of service: `damaged` says why, and sessions are refused.
        Raises Refused when the device is in use or may not be overwritten. Close it whatever happens.
        """
        self.directory, self.epoch = Directory(self._directory_path), Epoch()
        self.directory.sweep()
        self.superblock = SuperblockFile(self.directory)
        try:
            block = self.superblock.load()
        except DamagedError as err:
            block, self.damaged = None, f"{err.message}; {err.hint}"
        if self.damaged is None and self.device_fd < 0:
            leaf_size = block.leaf_size if block else self._shape[0]
            size = block.size if block and block.committed_id != NO_ID else self._usable_size()
            self._check_target(size, leaf_size, known=block is not None or self._primary)
        # R1: recovery begins by taking the claim; it is granted when the last write of a dead predecessor has landed.
        if self.device_fd < 0:
            self.device_fd = devicesafety.claim(self.device, wait_seconds=self._claim_wait)
        crashpoint("target-claimed")
        record = self._record(block) if self.damaged is None else None
        shape = (record.size, record.leaf_size, record.granule_size) if record else (self._usable_size(), *self._shape)
        self.geometry = wire.Geometry(*shape)
        self.digest_map = self._open_map()
        committed = block is not None and block.committed_id != NO_ID
        below = undo_directory(self.directory, self._undo_path, self.volume_id, committed)
        self.undo = UndoStore(below, self.volume_id, self.geometry, self._undo_limit_given)
        self.points = Points(self.directory)
        record = self._unless_outdated(record)
        if record is not None and record.committed_id != NO_ID and not record.open_attempt:
            record = self._reopened(record)
        chain = self.undo.chain(record.committed_id, record.history) if record is not None else Chain(())
        self._note(chain)
        self.machine = TargetMachine(record, capacity=self.device.size, sector_size=self.device.io_alignment, chain=chain.ids)
        content = None
        if record is not None and record.open_attempt and record.committed_id == NO_ID:
            content = self.digest_map.read_checkpoint(record.open_new_id)
        actions = self._start_machine(record, content is not None)
        if self.machine.phase == "open":
            self._take_up(content)
        with self.lock:
            if ready is not None:
                ready()
            self.execute(actions)
        self.recovered = bool(record and record.open_attempt) and self.machine.phase == "idle" and self.machine.record.committed_id != record.open_new_id
        return self

    def _unless_outdated(self, record):
        """The record, None if it is older than what the device holds: putting back what lies on top of it would mix generations."""
        later = self.undo.of_later_version() if record is not None else None
        if later is not None:
            self.damaged = f"{later.message}; {later.hint}"
            return None
        newer = self.undo.newer(record.committed_id) if record is not None and record.committed_id != NO_ID else None
        if newer is None:
            return record
        self.damaged = (
            f"{self.superblock.path} says that generation {record.committed_id.hex()} is committed, but {newer.hex()} was committed on top of it; "
            "the target was left alone; put the newer superblock back, or remove the volume and replicate it anew"
        )
        return None

    def _check_target(self, size, leaf_size, known):
        """Refuse what may not be written. A known volume may still be held by a process that is being buried: that is waited for."""
        deadline = time.monotonic() + (self._claim_wait if known else 0)
        while True:
            try:
                devicesafety.check_target(
                    self.device, source=self._source, size_needed=size, overwrite=self._overwrite, known=known, leaf_size=leaf_size
                )
                return
            except Refused as err:
                if err.code != "target-in-use" or time.monotonic() >= deadline:
                    raise
            time.sleep(0.05)

    def _usable_size(self):
        return self.device.size // 512 * 512

    def _record(self, block):
        """The TargetRecord of the superblock, made now if there is none. Raises Refused for the superblock of another volume."""
        if block is None:
            leaf_size, granule_size = self._shape
            record = TargetRecord(self.volume_id, self._usable_size(), leaf_size, granule_size, role=PRIMARY if self._primary else REPLICA)
            self.superblock.write(disk.Superblock(**{name: getattr(record, name) for name in record.__struct_fields__}))
            return record
        if block.volume_id != self.volume_id:
            raise Refused(f"{self.directory.path} belongs to another volume", code="wrong-volume", hint="name this volume's own directory")
        if block.role == PRIMARY and block.committed_id == NO_ID and not self._primary:  # it was to give up and did not: it never was a target
            self.superblock.write(block.replace(role=REPLICA))
            block = self.superblock.block
        return TargetRecord(**{name: getattr(block, name) for name in TargetRecord.__struct_fields__})

    def _reopened(self, record):
        """The slot that said `open` may have rotted, and the older slot knows nothing of the attempt; its undo file does."""
        header = self.undo.unfinished(record.committed_id)
        if header is None:
            return record
        log.warning("%s: an undo file of an attempt on top of the committed generation is there: it is put back", self.name)
        return record.opened(OPEN_RUN, header.new_id, header.attempt)

    def close(self):
        """Drain, end all sessions, and give the device back. What is open stays open; the next open() recovers it."""
        self.end_checks()
        if self._attempt is not None and self._attempt.lanes is not None:
            self._attempt.lanes.stop()
        with self.lock:
            if self.machine is not None and self.machine.phase not in ("down", "faulted") and self.machine.session is not None:
                self.execute(self.machine.disconnected(self.machine.session))
            for channel in self._channels.values():
                channel.close()
            self._channels.clear()
            self._end_attempt()
            if self.epoch is not None:
                self.epoch.end()
            if self.device_fd >= 0:
                os.close(self.device_fd)
                self.device_fd = -1
            for part in (self.superblock, self.digest_map, self.undo and self.undo.directory, self.directory):
                if part is not None:
                    part.close()

    def __enter__(self):
        return self.open()

    def __exit__(self, *exception):
        self.close()

    # ---- control sessions ----

    def serve(self, channel, rendezvous, hello=None, refusal=lambda: None):
        """Serve one control session to its end, in this thread. Several may be there; the one with the newest epoch counts.

        channel: a transport.Channel whose peer is a source; closed when this returns. rendezvous: where data connections are
        delivered. hello: the first message, if the caller has read it. refusal(): the QrepError that a peer is told that may not write here any
        more, else None; asked before each step that leads to a commit. Does not raise for what a peer does. Returns why the session was closed
        from here, None if the peer ended it.
        """
        handle, pulse = next(self._handles), Pulse(channel, self._beat)
        try:
            message = hello or channel.receive(HELLO_S)
        except QrepError as err:
            log.info("%s: session %d: %s", self.name, handle, err)
            pulse.end()
            refuse(channel, err)
            return None
        self._make_way(message)  # before the lock is asked for: the older session may hold it
        with self.lock:
            if self.device_fd >= 0:  # else it was closed meanwhile
                self.rendezvous = rendezvous
                self._channels[handle] = channel
                self.execute(self.machine.connected(handle))
        listening = time.monotonic()
        try:
            while handle in self._channels:
                if message is None:
                    try:
                        message = channel.receive(TICK_S)
                    except TimedOut:
                        # While we were busy nobody listened: silence is counted from when we do.
                        if time.monotonic() - max(channel.heard, listening) > SILENCE_S:
                            raise Disconnected(f"nothing was heard from the source for {SILENCE_S:g} s") from None
                        self._tick(handle)
                        continue
                refused = refusal() if isinstance(message, STEPS) else None  # without the lock, which whoever is asked may wait for
                if refused is None:
                    self._make_way(message)
                with self.lock:
                    if handle in self._channels:
                        self._count_connections()
                        self.execute(self.machine.message(handle, message) if refused is None else self.machine.expel(handle, refused))
                        if isinstance(message, say.Hello) and self.machine.session == handle:
                            self._session_epoch = message.epoch
                message, listening = None, time.monotonic()
        except ProtocolError as err:
            with self.lock:
                if handle in self._channels:
                    self.execute(self.machine.expel(handle, err))
        except Disconnected as err:
            log.info("%s: session %d: %s", self.name, handle, err)
            with self.lock:
                if self._channels.pop(handle, None) is not None and self.device_fd >= 0:
                    self.execute(self.machine.disconnected(handle))
        except Exception as err:  # a bug of ours
            log.exception("%s: session %d", self.name, handle)
            with self.lock:
                if self.device_fd >= 0:
                    self.execute(self.machine.broken(f"internal error: {err!r}"))
        finally:
            pulse.end()
            channel.close()
            with self.lock:
                self._channels.pop(handle, None)
                self._session_ended()
                self._left_at = time.monotonic()
        return self._reasons.pop(handle, None)

    def expel(self, channel, error):
        """End the session of a peer that may not go on, which is told error (QrepError). What is open stays open, as for a lost connection. From any
        thread; no more of it is written when this returns."""
        attempt = self._attempt
        handle = next((handle for handle, other in list(self._channels.items()) if other is channel), None)
        if handle is not None and handle == self.machine.session and attempt is not None and attempt.lanes is not None:
            attempt.lanes.stop()
        if handle is None or not self.lock.acquire(timeout=EXPEL_S):
            channel.close()  # it is only beginning, or the lock is held until its lanes have ended
            return
        try:
            if handle in self._channels:
                self.execute(self.machine.expel(handle, error))
        finally:
            self.lock.release()

    def _beat(self):
        """What a Beat says now; waits for nothing."""
        attempt, busy = self._attempt, self.busy
        run = attempt.run if attempt is not None else None
        counters = run.counters() if run is not None else {}
        return say.Beat(busy=busy, **{name: counters.get(name, 0) for name in ("received", "written", "undo")})

    def _count_connections(self):
        lanes = self._attempt.lanes if self._attempt is not None else None
        if lanes is not None:
            self.machine.connections_ended(lanes.ended())

    def _make_way(self, message):
        """A newer session ends the waiting of the older one, which holds the lock while its last writes come in, or while its path takes no
        more of what is said to it."""
        attempt, machine = self._attempt, self.machine
        if isinstance(message, say.Hello) and message.epoch > self._session_epoch and machine is not None and machine.supersedes(message):
            lanes = attempt.lanes if attempt is not None else None
            if lanes is not None:
                lanes.stop()
            older = self._channels.get(machine.session)
            if older is not None:
                older.close()

    def _tick(self, handle):
        """Now and then while nothing is said: the checkpoint of a first run."""
        with self.lock:
            attempt = self._attempt
            if handle != self.machine.session or attempt is None or attempt.run is None:
                return
            counters = attempt.run.counters()
            due = counters["written"] - self._saved_bytes >= CHECKPOINT_BYTES or time.monotonic() - self._saved_at >= CHECKPOINT_SECONDS
            if due:
                self.execute(self.machine.checkpoint_due())

    def _restart_checkpoint_clock(self):
        run = self._attempt.run if self._attempt is not None else None
        self._saved_at, self._saved_bytes = time.monotonic(), run.counters()["written"] if run is not None else 0

    def tell(self, code, text, **data):
        log.info("%s: %s: %s", self.name, code, text)
        if self.observer is not None:
            self.observer(code, text, **data)

    @property
    def attempt(self):
        """The driver.Attempt that is open, or None."""
        return self._attempt

    def has_open_generation(self):
        return self.machine is not None and self.machine.phase in ("open", "prepared")

    def alone_s(self):
        """For how long the open generation has been without a session, in seconds; None if there is none, or nothing to go back to."""
        if not self.has_open_generation() or self.machine.session is not None or self.machine.record.committed_id == NO_ID:
            return None
        return time.monotonic() - self._left_at

    def abandon(self, why, *, alone=True):
        """Give up the open generation: back to the last committed one. why: in words. alone: not while a session is there, which raises
        Refused. Returns whether one was open."""
        with self.lock:
            if self.device_fd < 0 or not self.has_open_generation():  # closed: the next open() goes back
                return False
            if alone and self.machine.session is not None:
                raise Refused(f"{self.name}: a run is going on", code="busy", hint="wait for it, or stop it where its source is")
            self.execute(self.machine.abandon(why))
            return True

    # ---- what people see ----

    def status(self):
        """Facts for people, as a dict of JSON types; does not wait for what is going on."""
        record = self.machine.record if self.machine else None
        attempt = self._attempt
        run = attempt.run if attempt is not None else None
        counters = run.counters() if run is not None else {}
        known = record is not None and self.digest_map is not None and self.digest_map.tag == record.committed_id
        root = self.digest_map.root_value if known else None
        facts = self.points.facts(record.committed_id, record.committed_counter) if record and self.points else {}
        committed = record is not None and record.committed_id != NO_ID
        return {
            "device": self.device.path,
            "phase": self.machine.phase if self.machine else "down",
            "role": {1: "replica", 2: "primary"}.get(record.role) if record else None,
            "size": record.size if record else None,
            "leaf_size": record.leaf_size if record else None,
            "granule_size": record.granule_size if record else None,
            "committed_id": record.committed_id.hex() if committed else None,
            "committed_counter": record.committed_counter if committed else 0,
            "last_sync_point_ns": (facts.get("frozen_at_ns") or facts.get("committed_at_ns") or None) if committed else None,
            "fuzzy": facts.get("fuzzy") if committed else False,
            "open": record is not None and record.open_attempt != 0,
            "root": root.hex() if root else None,
            "sync_points": max(0, len(self.machine.chain) - 1) if record else 0,
            "out_of_reach": self.out_of_reach,
            "undo_used": self.undo.used() if self.undo and self.undo.directory.descriptor >= 0 else 0,
            "undo_limit": self.undo.limit if self.undo else None,
            "map": self.digest_map.reason if self.digest_map else "",
            "damaged": self.damaged,
            "restoring": self.restoring,
            "held": _held(attempt),
            "session": {name: counters.get(name, 0) for name in ("received", "written", "undo")} if run is not None else None,
        }


def _held(attempt):
    """What a run that ended left out: {"source": [{offset, size}], "target": ...}, or None."""
    action = attempt.held if attempt is not None else None
    if action is None:
        return None
    ends = (("source", action.unreadable), ("target", action.unwritten))
    return {name: [{"offset": place.offset, "size": place.size} for place in places] for name, places in ends}
