"""Sync points of a target volume: which generations it can go back to, and their names for people.

The undo files say which points exist; `points.json` only decorates them, so losing it loses nothing else. What it says of their ages decides which go
(ages.py): if that is lost they are as old as the first look at them afterwards, and a floor and the reach of a grid begin anew for them.
"""

import logging
import time
from dataclasses import dataclass

from qrep import sealed
from qrep.errors import DamagedError
from qrep.retention import POINTS_MAX, Point
from qrep.settings import is_label
from qrep.target.ages import Ages

NAME = "points.json"
AGES = "ages"  # beside the ids in it
CONSISTENCIES = ("application", "crash", "fuzzy")
SIZE_MAX = 1 << 20
log = logging.getLogger("qrep.target")


@dataclass(frozen=True)
class SyncPoint:
    """One generation the target can show. Times: CLOCK_REALTIME ns, 0 unknown. undo_bytes: what keeping the one before it costs."""

    id: bytes
    counter: int
    current: bool
    fuzzy: bool | None  # None: not known
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
        self._known, self._ages = {}, Ages()
        self.damage = None  # why what was noted before open() is lost
        try:
            known = sealed.read(directory, NAME, SIZE_MAX)
            self._known = {} if known is None else _checked(known)
            self._ages = Ages(known.get(AGES) if known else None)
        except (DamagedError, ValueError) as err:
            self.damage = f"{directory.path}/{NAME} cannot be read and is made anew: {err}"
            log.warning("%s", self.damage)

    def record(self, new, counter, fuzzy, frozen_at_ns, consistency="", label=""):
        """Remember a committed generation. fuzzy None: not known. consistency, label: as a source said them; what is none is left out. Raises OSError;
        the generation stands all the same."""
        self._known[new.hex()] = {
            "counter": counter, **({} if fuzzy is None else {"fuzzy": fuzzy}), "frozen_at_ns": frozen_at_ns, "committed_at_ns": time.time_ns(),
            "consistency": consistency if consistency in CONSISTENCIES else "", "name": label if is_label(label) else "",
        }  # fmt: skip
        self._ages.commit(new.hex())
        self._write()

    def _write(self):
        sealed.write(self.directory, NAME, self._known | {AGES: self._ages.as_dict()})
        self._ages.noted()

    def time_to_note(self):
        """Whether note_time() is due: for how long points were kept, or that some of no known age were seen, is to outlast a host that goes off."""
        return self._ages.due()

    def note_time(self):
        """Raises OSError."""
        self._ages.go_on()
        self._write()

    def keep(self, ids, behind=False):
        """Forget all generations but these, with the next record(). ids: newest first. behind: nor those before the last of them, as many as there can be."""
        wanted = {new.hex() for new in ids}
        if behind:
            end = self.facts(ids[-1], 0)["counter"]
            earlier = sorted((facts.get("counter", 0), name) for name, facts in self._known.items() if facts.get("counter", 0) < end)
            wanted |= {name for _counter, name in earlier[-POINTS_MAX:]}
        self._known = {name: facts for name, facts in self._known.items() if name in wanted}
        self._ages.keep(wanted)

    def facts(self, new, counter):
        """A dict as record() stored it, or one that knows the counter only."""
        unknown = {"counter": counter, "fuzzy": None, "frozen_at_ns": 0, "committed_at_ns": 0, "consistency": "", "name": ""}
        found = self._known.get(new.hex())
        return {**unknown, **found} if isinstance(found, dict) else unknown

    def aged(self, ids):
        """[retention.Point] of ids, newest first. Raises OSError."""
        return [Point(new, age.time_ns, age.kept_ns, age.sure) for new, age in zip(ids, self._ages.of([new.hex() for new in ids]), strict=True)]

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
