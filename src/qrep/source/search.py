"""The pass over a frozen source that sends nothing: which granules differ from what the target has just read of itself."""

import array

from qrep._native.connection import Connection
from qrep._native.disk import STATE_HASHED, STATE_MASK
from qrep._native.source_lane import SourceRun
from qrep import mapvalues
from qrep.digesttree import DIGEST_SIZE
from qrep.source.lanes import SourceLanes


class Nowhere:
    """A data connection of a lane that sends nothing."""

    def __init__(self):
        self.native = Connection.none()

    def interrupt(self):
        """The run's stop() is heard by the lane itself."""

    def close(self):
        """Nothing is open."""


class Search:
    """Runs from the start on. base: work.Base of fresh digests. holes: of work.holes_of(). leaves_fd: its pages go into the slots that `base` does not name.

    on_end(lanes): called once, from another thread, when all lanes have ended; then read failure() and take_over(). nice: as of SourceRun.
    """

    def __init__(self, base, geometry, source_fd, holes, sector_size, leaves_fd, lanes, slots, on_end, nice=None):
        self._base, self._geometry = base, geometry
        self._work = array.array("Q", (granule for granule in base.without_page() if holes is None or not holes[granule]))
        self.bytes = sum(geometry.granule_bytes(granule) for granule in self._work)
        self.run = SourceRun(
            geometry, attempt=0, session=0, key=bytes(32), sector_size=sector_size, base_states=bytes(base.states),
            base_values=base.values, fresh_values=mapvalues.copied(base.states, base.values), leaves_fd=leaves_fd, work=self._work, slots=slots,
            nice=nice,
        )  # fmt: skip
        self.lanes = SourceLanes(self.run, source_fd, [None] * lanes, lambda token, slot: Nowhere(), on_end)

    def take_over(self):
        """Note in the base what is the same here, with the page just written for it. Returns the granules whose data differs, ascending.

        What cannot be read is neither: the lanes of the run itself will meet it again.
        """
        base, states, values, different = self._base, self.run.fresh_states, self.run.fresh_values, []
        for granule in self._work:
            if states[granule] & STATE_MASK != STATE_HASHED:
                continue
            span = slice(granule * DIGEST_SIZE, (granule + 1) * DIGEST_SIZE)
            if values[span] == base.values[span]:
                base.states[granule], base.same[granule] = states[granule], 1
            else:
                different.append(granule)
        return different
