"""Sync points of a target volume: which generations it can go back to, and their names for people.

The undo files and the superblock say which points exist; `points.json` only decorates them, so losing it loses nothing else.
"""

import json
import logging
import time
from dataclasses import dataclass

from qrep.errors import DamagedError

NAME = "points.json"
SIZE_MAX = 1 << 20
log = logging.getLogger("qrep.target")


@dataclass(frozen=True)
class SyncPoint:
    """One generation the target can show. Times: CLOCK_REALTIME ns, 0 unknown. undo_bytes: what keeping the one before it costs."""

    id: bytes
    counter: int
    current: bool
    fuzzy: bool
    frozen_at_ns: int
    committed_at_ns: int
    undo_bytes: int


class Points:
    """What is known of generations beyond their ids. directory: the volume's store.Directory."""

    def __init__(self, directory):
        self.directory = directory
        self._known = {}
        try:
            data = directory.read(NAME, SIZE_MAX)
            self._known = dict(json.loads(data)) if data is not None else {}
        except (DamagedError, ValueError) as err:
            log.warning("%s/%s cannot be read and is made anew: %s", directory.path, NAME, err)

    def record(self, new, counter, fuzzy, frozen_at_ns):
        """Remember a committed generation. Raises OSError; the generation stands all the same."""
        self._known[new.hex()] = {
            "counter": counter, "fuzzy": fuzzy, "frozen_at_ns": frozen_at_ns, "committed_at_ns": time.time_ns(),
        }  # fmt: skip
        self.directory.write(NAME, json.dumps(self._known, indent=1).encode())

    def keep(self, ids):
        """Forget all generations but these, with the next record()."""
        wanted = {new.hex() for new in ids}
        self._known = {name: facts for name, facts in self._known.items() if name in wanted}

    def facts(self, new, counter):
        """A dict as record() stored it, or one that knows the counter only."""
        unknown = {"counter": counter, "fuzzy": False, "frozen_at_ns": 0, "committed_at_ns": 0}
        found = self._known.get(new.hex())
        return {**unknown, **found} if isinstance(found, dict) else unknown

    def list(self, record, undo, count):
        """The SyncPoints within reach, newest first. record: TargetRecord. undo: UndoStore. count: how many undo files are kept."""
        if not any(record.committed_id):
            return []
        chain, found = record.chain(count + 1), []
        for index, new in enumerate(chain):
            if index:
                try:
                    way = undo.header(chain[index - 1])
                except DamagedError as err:
                    log.warning("sync points from generation %d on back are out of reach: %s", record.committed_counter - index, err.message)
                    break
                if way is None or way.base_id != new:
                    break
            facts = self.facts(new, record.committed_counter - index)
            found.append(
                SyncPoint(
                    new, facts["counter"], index == 0, facts["fuzzy"], facts["frozen_at_ns"], facts["committed_at_ns"],
                    undo.size(new),
                )  # fmt: skip
            )
        return found
