"""`kept.json`: the frozen image of the last committed generation, which a source keeps so that the next one need only be compared with it.

    freeze -> remembered as `next` (before Commit is sent) -> committed -> the older one given back, `next` is the kept one

What `next` becomes is decided by the map alone: it is the kept one if the map has its tag. So a kill at any moment leaves each snapshot named
in here, in the run record, or by its job's name for the sweep of stale ones; none leaks, and none is given back that is still of use.
"""

import logging
from typing import NamedTuple

from qrep.crashpoint import crashpoint
from qrep import sealed
from qrep.errors import DamagedError
from qrep.store import Directory

NAME = "kept.json"
SIZE_MAX = 64 << 10
TOKEN_MAX = 8192  # a path and a few words
log = logging.getLogger("qrep.source")


class Entry(NamedTuple):
    """A snapshot and the generation whose content it is."""

    tag: bytes  # 16 bytes: the generation id
    token: str  # for the backend
    trusted: bool = True  # False: hints on top of it were found wrong, and no full scan has agreed with them since
    cursor: int = 0  # where the next run's sample begins
    map: bytes = bytes(32)  # disk.map_digest of the map that describes it: one that a verify has corrected since describes the target, and not this


class Kept:
    """The kept snapshot of one job, below its state directory. release(token): gives one back; may raise, then it is tried again later."""

    def __init__(self, run_directory, release):
        self.directory, self._release = Directory(run_directory), release
        try:
            self.kept, self.next = _load(self.directory)
        except BaseException:
            self.directory.close()
            raise

    def close(self):
        self.directory.close()

    @property
    def tokens(self):
        """What a sweep of stale snapshots must leave alone."""
        return [entry.token for entry in (self.kept, self.next) if entry is not None]

    def of(self, tag):
        """The Entry of generation `tag`, or None."""
        return self.kept if self.kept is not None and self.kept.tag == tag else None

    # ---- its life ----

    def begin(self, wanted, map_tag, pending_tag, in_use):
        """At the start of a run: settle what an earlier process left. wanted: one is to be kept at all. pending_tag: of the pending map, or
        None. in_use: the token of the run record, or ""."""
        last = self.next
        if last is not None and last.tag == map_tag:
            self._promote()
        elif last is not None and (not wanted or last.tag != pending_tag) and last.token != in_use:
            self._release(last.token)
            self._save(self.kept, None)
        if not wanted:
            self.let_go(in_use)

    def remember(self, tag, token, trusted, cursor, map_digest):
        """`token` shows what generation `tag` will hold, if it is committed, and what the map of this digest says. Durable when it returns."""
        before = self.next
        self._save(self.kept, Entry(bytes(tag), token, trusted, cursor, bytes(map_digest)))
        crashpoint("source-kept-remembered")
        if before is not None and before.token != token:
            self._release(before.token)

    def give_back(self, token, map_tag):
        """A run needs `token` no longer: it is the kept one from here on if its generation was committed, else it is released."""
        if self.next is not None and self.next.token == token:
            if self.next.tag == map_tag:
                self._promote()
                return
            self._release(token)
            self._save(self.kept, None)
        elif self.kept is None or self.kept.token != token:
            self._release(token)

    def distrust(self):
        """Hints on top of the kept one were found wrong. Durable when it returns."""
        if self.kept is not None and self.kept.trusted:
            self._save(self.kept._replace(trusted=False), self.next)

    def redescribe(self, tag, before, digest):
        """The map of generation `tag` has another digest than `before`, and says the same: values of zeroes have come into it. A crash between that
        and this costs the hints of one run."""
        kept, following = (
            entry._replace(map=bytes(digest)) if entry is not None and (entry.tag, entry.map) == (tag, bytes(before)) else entry for entry in (self.kept, self.next)
        )
        if (kept, following) != (self.kept, self.next):
            self._save(kept, following)

    def let_go(self, in_use=""):
        """Keep none. in_use: a token that the caller needs still and releases itself."""
        for entry in (self.kept, self.next):
            if entry is not None and entry.token != in_use:
                self._release(entry.token)
        if self.kept is not None or self.next is not None:
            crashpoint("source-kept-let-go")
            self._save(None, None)

    def _promote(self):
        old = self.kept
        if old is not None and old.token != self.next.token:
            self._release(old.token)
        crashpoint("source-kept-old-released")
        self._save(self.next, None)
        crashpoint("source-kept-settled")

    # ---- the file ----

    def _save(self, kept, following):
        if kept is None and following is None:
            self.directory.remove(NAME)
        else:
            entries = {"kept": kept, "next": following}
            fields = {name: entry and entry._replace(tag=entry.tag.hex(), map=entry.map.hex())._asdict() for name, entry in entries.items()}
            sealed.write(self.directory, NAME, fields)
        self.kept, self.next = kept, following


def kept(run_directory):
    """(tag, token) of the frozen image that the source keeps of the last generation it committed, None: there is none. Compare `tag` with the
    generation that is meant: the target may have moved on, or back."""
    with Directory(run_directory) as directory:
        entry, _ = _load(directory)
    return (entry.tag, entry.token) if entry is not None else None


def _load(directory):
    """(kept, next). A damaged file is as none: its snapshots are then found as stale, and the next run scans everything."""
    try:
        fields = sealed.read(directory, NAME, SIZE_MAX)
        if fields is None:
            return None, None
        if not isinstance(fields, dict) or set(fields) != {"kept", "next"}:
            raise ValueError("it has other fields than kept and next")
        return _entry(fields["kept"]), _entry(fields["next"])
    except (DamagedError, KeyError, ValueError, TypeError) as err:
        log.warning("%s/%s is not used: %s", directory.path, NAME, err)
        return None, None


def _entry(fields):
    if fields is None:
        return None
    entry = Entry(**fields)
    tag, digest = bytes.fromhex(entry.tag), bytes.fromhex(fields["map"])
    if len(tag) != 16 or len(digest) != 32 or type(entry.trusted) is not bool or type(entry.cursor) is not int or not 0 <= entry.cursor < 1 << 64:
        raise ValueError("an entry is not what it can be")
    if not isinstance(entry.token, str) or not 0 < len(entry.token) <= TOKEN_MAX:
        raise ValueError("an entry has no token")
    return entry._replace(tag=tag, map=digest)
