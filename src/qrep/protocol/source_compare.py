"""Where the source's map does not describe what the target holds: fresh digests of the target, then the leaf pages of the granules that differ.

Digests come for all granules, 32 bytes each. A granule that differs would travel whole, because which of its leaves differ is not known; so the
frozen image is looked through once, nothing is sent, and the target is asked for the pages of exactly those granules. All of this is over
before Begin: while a generation is open the target's device does not hold the committed one.
"""

from qrep._native.disk import STATE_HASHED, STATE_MASK
from qrep.errors import ProtocolError
from qrep.protocol import actions as do
from qrep.protocol import messages as say
from qrep.protocol.messages import GRANULES_PER_SCAN, NO_ID

DIGEST_SIZE = 32
PAGES_BYTES = 4 << 20  # of pages asked for at a time: what waits here while the driver stores them


class SourceCompare:
    """Mixin of SourceMachine: the phases comparing, searching and fetching."""

    def _would_compare(self):
        """The map does not describe what the target holds, and the target is to be asked instead of sent everything."""
        if self._map_tag == self._committed and self._committed != NO_ID:
            return False
        return self._initial == "compare" or (self._initial == "auto" and self._committed != NO_ID)

    def _compare(self):
        self._go("comparing")
        self._has_data = False
        return [self._scan(0)]

    def _scan(self, first):
        self._scan_first, self._scan_count = first, min(GRANULES_PER_SCAN, self._granules - first)
        return do.Send(say.ScanTarget(first, self._scan_count))

    def _on_digests(self, message):
        if message.first != self._scan_first or len(message.states) != self._scan_count:
            raise ProtocolError(f"digests of granules from {message.first} on were not asked for")
        self._has_data = self._has_data or any(state & STATE_MASK == STATE_HASHED for state in set(message.states))
        following = message.first + self._scan_count
        store = do.StoreDigests(message.first, message.states, message.values)
        if following < self._granules:
            return [store, self._scan(following)]
        self._to_search = self._has_data  # a target without data has no pages: everything there is travels anyway
        return [store, *self._freeze()]

    def _search(self):
        """The image is frozen and noted: look for what differs."""
        self._go("searching")
        self._to_search, self._lanes = False, True
        return [do.FindDifferences()]

    def differences_found(self, granules):
        """The pass over the image has ended. granules: ascending, those whose leaf pages would spare something."""
        self._take("differences_found")
        self._lanes = False
        self._wanted, self._next_wanted = granules, 0
        return self._fetch()

    def _fetch(self):
        """Ask for the next pages; when all are there, open the generation."""
        _, leaf_size, granule_size, _ = self._shape
        count = min(say.LEAF_PAGES_MAX, max(1, PAGES_BYTES // (granule_size // leaf_size * DIGEST_SIZE)))
        self._asked = self._wanted[self._next_wanted : self._next_wanted + count]
        self._next_wanted += len(self._asked)
        if not self._asked:
            self._wanted = []
            self._go("starting")
            return [self._begin()]
        self._go("fetching")
        return [do.Send(say.GetLeaves(self._asked))]

    def _on_leaves(self, message):
        if message.granule != self._asked[0] or len(message.page) != self._page_size(message.granule):
            raise ProtocolError(f"leaf values of granule {message.granule} were not asked for, or not so many")
        self._asked = self._asked[1:]
        store = do.StoreLeaves(message.granule, message.page)
        return [store] if self._asked else [store, *self._fetch()]

    def _page_size(self, granule):
        size, leaf_size, granule_size, _ = self._shape
        return -(-min(granule_size, size - granule * granule_size) // leaf_size) * DIGEST_SIZE
