"""Sync points of a target volume: which generations it can go back to, and their names for people.

The undo files say which points exist; `points.json` only decorates them, so losing it loses nothing else (and nothing is thrown away for its age
until new times are known: retention.py).
"""

import logging
import time
from dataclasses import dataclass

from qrep import sealed
from qrep.errors import DamagedError
from qrep.retention import Point
from qrep.settings import is_label

NAME = "points.json"
CONSISTENCIES = ("application", "crash", "fuzzy")
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
    consistency: str = ""  # application, crash, fuzzy; "": not known
    name: str = ""  # that somebody gave it


KINDS = {"counter": int, "fuzzy": bool, "frozen_at_ns": int, "committed_at_ns": int, "consistency": str, "name": str}


def _checked(known):
    """{id in hex: facts} of the file; what is not as record() stored it is left out. Raises ValueError."""
    if not isinstance(known, dict):
        raise ValueError("it is no table of generations")
    return {new: facts for new, facts in known.items() if isinstance(facts, dict) and all(type(value) is KINDS.get(name) for name, value in facts.items())}


class Points:
    """What is known of generations beyond their ids. directory: the volume's store.Directory."""

    def __init__(self, directory):
        self.directory = directory
        self._known = {}
        try:
            known = sealed.read(directory, NAME, SIZE_MAX)
            self._known = {} if known is None else _checked(known)
        except (DamagedError, ValueError) as err:
            log.warning("%s/%s cannot be read and is made anew: %s", directory.path, NAME, err)

    def record(self, new, counter, fuzzy, frozen_at_ns, consistency="", label=""):
        """Remember a committed generation. consistency, label: as a source said them; what is none is left out. Raises OSError; the generation
        stands all the same."""
        self._known[new.hex()] = {
            "counter": counter, "fuzzy": fuzzy, "frozen_at_ns": frozen_at_ns, "committed_at_ns": time.time_ns(),
            "consistency": consistency if consistency in CONSISTENCIES else "", "name": label if is_label(label) else "",
        }  # fmt: skip
        sealed.write(self.directory, NAME, self._known)

    def keep(self, ids):
        """Forget all generations but these, with the next record()."""
        wanted = {new.hex() for new in ids}
        self._known = {name: facts for name, facts in self._known.items() if name in wanted}

    def facts(self, new, counter):
        """A dict as record() stored it, or one that knows the counter only."""
        unknown = {"counter": counter, "fuzzy": False, "frozen_at_ns": 0, "committed_at_ns": 0, "consistency": "", "name": ""}
        found = self._known.get(new.hex())
        return {**unknown, **found} if isinstance(found, dict) else unknown

    def aged(self, ids):
        """[retention.Point] of ids."""
        return [Point(new, self.facts(new, 0)["committed_at_ns"]) for new in ids]

    def list(self, record, ids, undo):
        """The SyncPoints within reach, newest first. record: TargetRecord. ids: newest first, as UndoStore.chain() found them."""
        found = []
        for index, new in enumerate(ids):
            facts = self.facts(new, record.committed_counter - index)
            found.append(
                SyncPoint(
                    new, facts["counter"], index == 0, facts["fuzzy"], facts["frozen_at_ns"], facts["committed_at_ns"],
                    undo.size(new), facts["consistency"], facts["name"],
                )  # fmt: skip
            )
        return found
