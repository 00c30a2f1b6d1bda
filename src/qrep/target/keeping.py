"""What people do with a target volume's sync points: list, roll back, copy out, delete, say how many are kept."""

import contextlib
import logging
import secrets
from collections import Counter

from qrep import retention
from qrep.digesttree import ZERO_FILL_LIMIT
from qrep.errors import DamagedError, NotFound, QrepError, Refused
from qrep.protocol.actions import RollbackFailed, RolledBack
from qrep.target import rollback
from qrep.target.thinning import Thinning

log = logging.getLogger("qrep.target")


class Keeping(Thinning):
    """Mixed into TargetVolume, whose lock, machine, undo, points, device and policy it uses."""

    out_of_reach = None  # why what lies behind the last sync point within reach is lost, or could not be read, when it was looked at
    _unread = None  # the same, if it could not be read

    def sync_points(self):
        """The points.SyncPoints within reach, newest first; the first is what the device holds."""
        with self.lock:
            self._check_in_service()
            return self.points.list(self.machine.record, self._within_reach(), self.undo)

    def _within_reach(self):
        """Ids, newest first, as the undo files on disk have them now."""
        record = self.machine.record
        chain = self.undo.chain(record.committed_id, record.history)
        self._note(chain)
        self.machine.set_chain(chain.ids)
        return self.machine.chain

    def _note(self, chain):
        """Tell what is out of reach now and was not before."""
        damage = f"sync points behind {chain.ids[-1].hex()} are out of reach: {chain.damage}" if chain.damage else None
        if damage != self.out_of_reach and damage:
            self.tell("points-out-of-reach", damage)
        self.out_of_reach, self._unread = damage, chain.damage if chain.unread else None

    @contextlib.contextmanager
    def pin(self, point):
        """While in use (`with volume.pin(id):`), a sync point is neither pruned nor merged away, whatever is said meanwhile. It may be taken more
        than once, also while a run is open. Those between it and the present one may be merged: keep open what you read, or look anew for the
        way under the lock. Raises NotFound."""
        point = bytes(point)
        with self.lock:
            self._find(point)
            self._pins[point] += 1
        try:
            yield
        finally:
            with self.lock:
                self._pins[point] -= 1
                self._pins += Counter()  # drops what is not positive

    def rollback(self, point, progress=None):
        """Put a sync point back as a new generation. point: its id (16 bytes). progress(bytes). Returns the SyncPoint it became.

        Raises NotFound if it is not retained, Refused while a run is open, QrepError when it could not be done: the device is as before, or (DamagedError)
        the volume is out of service, and is recovered when it is opened anew.
        """
        with self.lock:
            self._check_idle()
            self._find(point)
            self._rollback_result, self._rollback_progress = None, progress
            try:
                self.execute(self.machine.rollback(bytes(point), secrets.token_bytes(16), secrets.randbits(63) | 1))
            finally:
                self._rollback_progress = None
            if self._rollback_result is None:  # it could not be undone either
                self._check_in_service()
            if not isinstance(self._rollback_result, RolledBack):
                failed = self._rollback_result or RollbackFailed("nothing says how it ended")
                raise QrepError(f"{self.name}: the rollback failed and was undone: {failed.reason}", hint=failed.hint, code="rollback-failed")
            return self.sync_points()[0]

    def copy_out(self, point, path, *, overwrite=False, progress=None):
        """Write the content of a sync point to a new image file or another device. Raises as rollback. Returns the bytes gone through."""
        with self.lock:
            self._check_idle()
            self._find(point)
            chain = self.machine.chain
            way = chain[: chain.index(bytes(point))]
            return rollback.copy_out(
                self.undo, chain, way, self.device_fd, path, is_file=self.device.kind == "file", overwrite=overwrite, progress=progress
            )

    def root(self, zeroes=ZERO_FILL_LIMIT):
        """The BLAKE3 of the committed generation (32 bytes), or None while it cannot be told. zeroes: as for DigestMap.root."""
        with self.lock:
            if self.device_fd < 0 or self.machine.phase != "idle" or self.digest_map.tag != self.machine.record.committed_id:
                return None
            return self.digest_map.root(zeroes)

    # ---- retention ----

    def set_policy(self, policy):
        """policy: retention.Policy, from the next commit on. count and grid are what a source asks for; the floor is the target's own."""
        self.policy = policy

    def retention(self):
        """The retention.Plan for what is within reach now, by the policy of now. Changes nothing."""
        with self.lock:
            self._check_in_service()
            return retention.plan(self.points.aged(self._within_reach()), self.policy, frozenset(self._pins))

    def retention_state(self):
        """What the plan depends on, to be compared; None while nothing can be given up because something goes on. Waits for nothing."""
        machine = self.machine
        if machine is None or machine.phase != "idle" or self.device_fd < 0:
            return None
        return machine.record.committed_id, self.policy, tuple(sorted(dict(self._pins)))

    def time_to_note(self):
        """Whether note_time() has something to do. Waits for nothing."""
        return self.points is not None and self.device_fd >= 0 and self.points.time_to_note()

    def note_time(self):
        """Make durable what the ages of sync points go by. It is left for later while something holds the volume. Does not raise."""
        if not self.lock.acquire(blocking=False):
            return
        try:
            if self.time_to_note():
                self.points.note_time()
        except OSError as err:
            log.warning("%s: the time that went by could not be noted: %s", self.name, err)
        finally:
            self.lock.release()

    def retain(self):
        """Give up the oldest sync points, as far as the policy wants none of them. Those in the middle: thin(), later. Does not raise."""
        with self.lock:
            try:
                plan = self.retention()
                if plan.cut:
                    self._check_last()
                    chain = self.machine.chain
                    self.undo.cut(chain, chain.index(plan.cut[0]))
                    self._given_up()
            except (OSError, QrepError) as err:
                log.warning("%s: an undo file that is not needed any more stays: %s", self.name, err)

    def _check_last(self):
        """Before the last sync point within reach is cut off, and with it the way to those behind it that could not be read just now, or are in use."""
        if self._unread is not None:
            raise QrepError(
                f"{self.name}: sync points behind the last one within reach cannot be read now: {self._unread}", code="undo-unread",
                hint=f"see what is wrong with the filesystem of {self.undo.directory.path} (dmesg), then try again",
            )  # fmt: skip
        for point in self._pins:
            if point not in self.machine.chain:
                self._check_not_pinned(point)

    def _check_not_pinned(self, point):
        if self._pins[bytes(point)]:
            raise Refused(f"{self.name}: that sync point is in use", hint="qrep attach lists what is attached", code="point-in-use")

    def set_undo_limit(self, limit):
        """Bytes that all undo files may take; an open generation keeps what it was given."""
        with self.lock:
            self._undo_limit_given = limit
            if self.undo is not None:
                self.undo.set_limit(limit)

    def _find(self, point):
        for found in self.sync_points():
            if found.id == bytes(point):
                return found
        raise NotFound(f"{self.name} does not retain sync point {bytes(point).hex()}", hint="qrep snapshot VOLUME lists those it has")

    def _check_in_service(self):
        if self.machine is None or self.machine.phase == "faulted":
            raise DamagedError(f"{self.name} is out of service: {self.damaged}", hint="see `qrep status`")

    def _check_idle(self):
        self._check_in_service()
        if self.device_fd < 0:  # while this was waited for
            raise Refused(f"{self.name} was closed meanwhile", hint="try again", code="busy")
        if self.lent_to:
            raise Refused(f"{self.name}: {self.lent_to}", code="busy", hint="wait for that")
        if self.machine.phase != "idle":
            raise Refused(
                f"{self.name}: a run is open", code="busy",
                hint="wait for the next run to commit it; or give it up: qrep snapshot rollback VOLUME@POINT",
            )  # fmt: skip
