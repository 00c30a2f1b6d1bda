"""verify --repair: damaged leaves of the target are healed in place with what the source still holds of that very generation.

The source sends a leaf only if its value is the one in its map, the target writes it only if it is the one in its own, so nothing but the
committed content can be written. What cannot be healed so is left to the next run.
"""

import mmap
import os

from qrep import device
from qrep._native import hasher
from qrep.errors import DeviceReadError, QrepError
from qrep.protocol import messages as say
from qrep.rehash import read_range
from qrep.source.verifyreport import value_of

LISTED = 100  # leaves that are named with why they were left


class Repair:
    """verification: Verification, whose session is open. frozen_fd: of the frozen image of the generation, -1 if there is none."""

    def __init__(self, verification, generation, frozen_fd, dry_run):
        self._verification, self._generation, self._dry_run = verification, generation, dry_run
        self._frozen_fd, self._live_fd = frozen_fd, -1
        self.geometry, self._tree = verification.geometry, verification._tree
        self._alignment = verification.request.device.io_alignment
        self._buffer = mmap.mmap(-1, self.geometry.leaf_size)

    def run(self, result):
        """Heal what can be; healed leaves are taken out of `result`'s list for the next run. Returns what people are told."""
        healed, left = [], {}
        self._live_fd = self._open_live()
        try:
            for leaf in sorted(result.differs):
                why = self._heal(leaf)
                if why:
                    left[leaf] = why
                else:
                    healed.append(leaf)
        finally:
            if self._live_fd >= 0:
                os.close(self._live_fd)
        before = result.extents(healed)
        if not self._dry_run:
            for leaf in healed:
                del result.differs[leaf]
            result.device -= set(healed)
        left |= dict.fromkeys(result.stale_map, REASONS["map"])
        rest = set(result.granules) | {offset // self.geometry.granule_size for offset, _ in result.unreadable["target"]}
        return {
            "dry_run": self._dry_run, "healed": before, "healed_leaves": len(healed), "left_leaves": len(left),
            "left": result.extents(left, sorted(rest)),
            "reasons": [{"offset": leaf * self.geometry.leaf_size, "why": why} for leaf, why in list(left.items())[:LISTED]],
        }  # fmt: skip

    def _open_live(self):
        try:
            return device.open_source(self._verification.request.device)
        except (OSError, QrepError):
            return -1

    def _heal(self, leaf):
        """"", or why the leaf is left to the next run."""
        data = self._content(leaf)
        if data is None:
            return "the source does not hold the content of that generation any more"
        if len(data) > say.REPAIR_MAX:
            return "it is too large for a message"
        if self._dry_run:
            return ""
        answer = self._verification.ask(say.Repair(generation=self._generation, leaf=leaf, data=data), say.Repaired)
        return "" if answer.healed else REASONS.get(answer.why, "the target refused it")

    def _content(self, leaf):
        """The bytes of a leaf as they were committed, from the frozen image or, if nobody has changed it since, from the live source; None: gone."""
        offset = leaf * self.geometry.leaf_size
        size = min(self.geometry.leaf_size, self.geometry.size - offset)
        wanted = value_of(self._tree, leaf)
        for descriptor in (self._frozen_fd, self._live_fd):
            if descriptor < 0:
                continue
            try:
                data = bytes(read_range(descriptor, self._buffer, offset, size, self._alignment))
            except DeviceReadError:
                continue
            if hasher.subtree(data, offset, self.geometry.leaf_size) == wanted:
                return data
        return None


REASONS = {
    "map": "the target's own map says something else of it",
    "unknown": "the target's map knows nothing of it",
    "write": "the target's device did not take it",
}
