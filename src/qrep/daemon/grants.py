"""Who may write to which volume here: the pairs, and those that are written once. Two files with digests, the same in both.

A change is in both files before it counts, the first one decides. At start the newer of the two is what holds, and the other one is made the same:
rot of either costs nothing, and an older copy that came back is outvoted by its sequence number. If neither is what was written the agent does not
start, for nobody can tell then who may write. What holds is in memory: what rots later is found at the next start.
"""

import logging
import os
import threading
import time

import msgspec

from qrep import sealed, store
from qrep.configparse import Problem
from qrep.crashpoint import crashpoint
from qrep.errors import DamagedError, QrepError

NAMES = ("pairs.a", "pairs.b")
FORMAT = 1
SIZE_MAX = 16 << 20
log = logging.getLogger("qrep.agent")


class Pair(msgspec.Struct, forbid_unknown_fields=True):
    """peer: "" for a job of this host; fingerprint: the peer's when the pair was made. size: bytes. keep: of retention.parse_grid."""

    job_id: str
    peer: str
    fingerprint: str
    job: str
    source: str
    volume: str
    size: int
    sync_points: int
    created: float
    keep: str


class Once(msgspec.Struct, forbid_unknown_fields=True):
    """generation, counter: what was made, "" and 0 until the target was given back."""

    job_id: str
    peer: str
    fingerprint: str
    volume_id: str
    generation: str
    counter: int


class Content(msgspec.Struct, forbid_unknown_fields=True):
    """sequence: of the changes."""

    format: int
    sequence: int
    pairs: list[Pair]
    once: list[Once]


class GrantsError(QrepError):
    """The pairs cannot be read or written."""

    code = "pairs"


class Grants:
    """directory: the state's store.Directory. healed: what was wrong with one of the files, and was put right; "": nothing. made_new: there was neither. Thread-safe.

    Rows are dicts with the fields of Pair and Once, copies: changing one changes nothing here. Raises GrantsError if neither file can be believed.
    """

    def __init__(self, directory):
        self.directory = directory
        self._lock = threading.Lock()
        copies, wrong = look(directory)
        if wrong and not copies:
            raise GrantsError(
                f"{directory.path}: who may write to volumes here cannot be told: {'; '.join(wrong)}",
                hint=f"put {' or '.join(NAMES)} back from a copy, or move both away and start the agent: no peer's job may write here then, "
                "and those jobs are deleted and created again where their sources are; no data is lost",
            )
        newest = max(copies.values(), key=lambda content: content["sequence"], default={"sequence": 0, "pairs": [], "once": []})
        self.made_new = not copies
        self._sequence = newest["sequence"]
        self._pairs = {row["job_id"]: row for row in newest["pairs"]}
        self._once = {row["job_id"]: row for row in newest["once"]}
        self.healed = "; ".join(wrong) if self._sequence > 1 else ""  # else: the agent ended while it made the first ones
        if len(copies) < len(NAMES) or any(content["sequence"] != self._sequence for content in copies.values()):
            self._make_same(copies)

    def _make_same(self, copies):
        """A disk that is full just now must not keep an agent from serving those whom one copy names."""
        try:
            self._save(self._pairs, self._once)
        except GrantsError as err:
            if not copies:
                raise
            log.warning("%s; %s holds alone until there is room", err.message, " or ".join(copies))
            self.healed = ""

    def _save(self, pairs, once):
        """Make these what holds: durable, then in memory. Raises GrantsError, and then what held before holds."""
        content = {"format": FORMAT, "sequence": self._sequence + 1, "pairs": list(pairs.values()), "once": list(once.values())}
        data = sealed.dump(content)
        if len(data) > SIZE_MAX:
            raise GrantsError(f"{self.directory.path}: more pairs than {SIZE_MAX >> 20} MiB hold", hint="delete jobs whose copies are made, where their sources are")
        try:
            for name in NAMES:
                self.directory.write(name, data)
                crashpoint("pairs-copy-durable")
        except OSError as err:
            if name == NAMES[0]:
                raise GrantsError(
                    f"{self.directory.path}/{name}: {err.strerror}",
                    hint=f"make room on the filesystem of {self.directory.path}, or see what is wrong with it (dmesg), then try again",
                ) from err
            log.warning("%s/%s: %s; the change stands in %s alone until the next one", self.directory.path, name, err.strerror, NAMES[0])
        self._sequence, self._pairs, self._once = content["sequence"], pairs, once

    # ---- pairs ----

    def add_pair(self, job_id, *, peer, fingerprint, job, source, volume, size, sync_points, keep=""):
        row = {
            "job_id": job_id, "peer": peer, "fingerprint": fingerprint, "job": job, "source": source, "volume": volume, "size": size,
            "sync_points": sync_points, "created": time.time(), "keep": keep,
        }  # fmt: skip
        with self._lock:
            self._save(self._pairs | {job_id: row}, self._once)

    def pair(self, job_id):
        row = self._pairs.get(job_id)
        return row and dict(row)

    def pairs(self, volume=None):
        return sorted((dict(row) for row in self._pairs.values() if volume in (None, row["volume"])), key=lambda row: row["job"])

    def set_pair_retention(self, job_id, sync_points, keep):
        with self._lock:
            if job_id in self._pairs:
                self._save(self._pairs | {job_id: self._pairs[job_id] | {"sync_points": sync_points, "keep": keep}}, self._once)

    def drop_pair(self, job_id):
        with self._lock:
            if job_id in self._pairs:
                self._save(_without(self._pairs, job_id), self._once)

    # ---- pairs that are written to once: generation is "" until the target was given back, and the pair is gone from then on ----

    def add_once(self, job_id, *, peer, fingerprint, volume_id):
        row = {"job_id": job_id, "peer": peer, "fingerprint": fingerprint, "volume_id": volume_id, "generation": "", "counter": 0}
        with self._lock:
            self._save(self._pairs, self._once | {job_id: row})

    def once(self, job_id):
        row = self._once.get(job_id)
        return row and dict(row)

    def all_once(self):
        return sorted((dict(row) for row in self._once.values()), key=lambda row: row["job_id"])

    def finish_once(self, job_id, generation, counter):
        """In one step: what was made is noted, and the pair is gone."""
        with self._lock:
            once = self._once
            if job_id in once:
                once = once | {job_id: once[job_id] | {"generation": generation, "counter": counter}}
            self._save(_without(self._pairs, job_id), once)

    def drop_once(self, job_id):
        with self._lock:
            if job_id in self._once:
                self._save(self._pairs, _without(self._once, job_id))


def _without(rows, job_id):
    return {key: row for key, row in rows.items() if key != job_id}


def look(directory):
    """({name: content of a copy that can be believed}, [what is wrong with the others]). Writes nothing. Raises GrantsError: of another format."""
    copies, wrong, gone = {}, [], []
    for name in NAMES:
        where = f"{directory.path}/{name}"
        try:
            data = directory.read(name, SIZE_MAX)
            if data is None:
                gone.append(f"{where}: it is gone")
            else:
                copies[name] = _checked(sealed.load(data, where), where)
        except DamagedError as err:
            wrong.append(err.message)
        except OSError as err:
            wrong.append(f"{where}: {err.strerror}")
    if len(gone) < len(NAMES):  # both: nothing was written yet
        wrong += gone
    ages = {content["sequence"] for content in copies.values()}
    if len(ages) > 1 and max(ages) - min(ages) > 1:  # one apart: the agent ended between the two
        wrong += [f"{directory.path}/{name}: it is an older one" for name, content in copies.items() if content["sequence"] < max(ages)]
    return copies, wrong


def problems(state_dir):
    """[Problem]: what is wrong with the files of this state directory, whether an agent runs or not."""
    if not os.path.isdir(state_dir):
        return []
    try:
        with store.Directory(state_dir) as directory:
            copies, wrong = look(directory)
    except (QrepError, OSError) as err:  # of another format; or the directory itself is not as it must be
        return [Problem(str(state_dir), "", getattr(err, "message", str(err)), getattr(err, "hint", ""))]
    hint = "the next start of the agent makes it anew of the other one" if copies else f"put {' or '.join(NAMES)} back from a copy: the agent does not start without"
    return [Problem(text.partition(": ")[0], "", text.partition(": ")[2], hint) for text in wrong]


def _checked(content, where):
    """What has the right digest was written by a qrep, perhaps by another version."""
    if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
        raise GrantsError(f"{where} has format {content['format']}; this qrep reads {FORMAT}", hint="use the version of qrep that wrote it")
    try:
        msgspec.convert(content, Content)
    except msgspec.ValidationError as err:
        raise DamagedError(f"{where}: {err}") from err
    return content
