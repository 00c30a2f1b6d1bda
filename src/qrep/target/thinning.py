"""Giving sync points up: the oldest by removing its undo file, one in the middle by merging the files around it (undomerge.py)."""

import itertools

from qrep.errors import Refused
from qrep.protocol.actions import WriteSuperblock
from qrep.target.undomerge import Merge


class Thinning:
    """Mixed into TargetVolume. A merge is made without the volume's lock, which runs and people need; only its last step takes it."""

    def delete_point(self, point, progress=None):
        """Give up any sync point but the present one. progress(bytes read, of how many). Returns the bytes of undo that came free.

        Raises NotFound; Refused for the present one, one in use, or while a run or another merge goes on; DamagedError when an undo file cannot be
        believed, UndoSpaceError when there is no room for the merged one. Then nothing is changed.
        """
        point = bytes(point)
        with self.lock:
            self._check_idle()
            self._find(point)
            self._check_not_pinned(point)
            chain, before = self.machine.chain, self.undo.used()
            at = chain.index(point)
            if at == 0:
                raise Refused(f"{self.name} holds that sync point now", hint="only earlier ones can be deleted", code="current-point")
            if at == len(chain) - 1:
                self._check_last()
                self.undo.cut(chain, at)
                self._given_up()
                return before - self.undo.used()
        self._merge(chain[at - 1 : at + 2], progress)
        return before - self.undo.used()

    def cost_of_deleting(self, point):
        """(bytes of undo read and written, whether files are merged) of delete_point(). Raises NotFound."""
        with self.lock:
            self._find(point)
            chain = self.machine.chain
            at = chain.index(bytes(point))
            merged = 0 < at < len(chain) - 1
            return (self.undo.size(chain[at - 1]) + self.undo.size(chain[at]) if merged else 0), merged

    def thin(self, stopped=lambda: False):
        """Give up what the policy does not want, at the end and in the middle. stopped(): asked between two steps. Returns how many went.

        Raises as delete_point; what was done until then stays done.
        """
        gone = 0
        while not stopped():
            with self.lock:
                self._check_idle()
                before = len(self.machine.chain)
                self.retain()
                gone += before - len(self.machine.chain)
                unwanted, chain = set(self.retention().merge), self.machine.chain
            if not unwanted:
                break
            first = next(i for i, new in enumerate(chain) if new in unwanted)
            last = next(i for i in range(first, len(chain)) if chain[i] not in unwanted)
            self._merge(chain[first - 1 : last + 1])
            gone += last - first
        return gone

    def _merge(self, ids, progress=None):
        if not self._merging.acquire(blocking=False):
            raise Refused(f"{self.name}: its undo is being merged", hint="wait for that to end (qrep status), and try again", code="busy")
        try:
            with self.lock:
                self._check_idle()
                merge = Merge(self.undo, ids, progress and (lambda done: progress(done, merge.needed)))
                merge.check_room()
                self.undo.reserved = merge.needed
            merge.build()
            try:
                with self.lock:
                    self._check_unchanged(ids)
                    if ids[0] == self.machine.record.committed_id:
                        # The older slot of the superblock may still say `open` and name the way back as it was: from now on both say what is.
                        self.execute([WriteSuperblock(self.machine.record)])
                    merge.finish()
                    self._given_up()
            except BaseException:
                merge.drop()
                raise
        finally:
            self.undo.reserved = 0
            self._merging.release()

    def _check_unchanged(self, ids):
        """A commit, a rollback, a prune or a pin may have come while the new file was made."""
        self._check_in_service()
        if self.device_fd < 0:
            raise Refused(f"{self.name} was closed meanwhile", hint="try again", code="busy")
        pairs = set(itertools.pairwise(self._within_reach()))
        if not all(pair in pairs for pair in itertools.pairwise(ids)):
            raise Refused(f"{self.name}: its sync points changed meanwhile", hint="qrep snapshot VOLUME lists them; try again", code="busy")
        for new in ids[1:-1]:
            self._check_not_pinned(new)

    def _given_up(self):
        """Views look anew, and the machine knows what is left."""
        self.epoch.change()
        self._within_reach()
        self.points.keep(self.machine.chain, behind=self.out_of_reach is not None)
