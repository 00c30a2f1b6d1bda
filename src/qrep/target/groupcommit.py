"""The commit point of a consistency group: one durable record that names what every member's superblock is about to say.

    groups = GroupCommits(state.sub("groups"))
    groups.commit(id, "shop", [(volume, attempt, new, epoch), ...])     # all or none

In this order: every volume's lock; every member prepared, exactly as named; the record, durable: from here on all are committed; each superblock; each
volume out of the record, and the record gone with the last. A crash before the record leaves every attempt as it was, one after it leaves a record that
TargetVolume.open() asks for before it recovers anything. docs/DISK_FORMAT.md has the bytes.
"""

import contextlib
import json
import threading

from qrep._native import hasher
from qrep.crashpoint import crashpoint
from qrep.errors import DamagedError, QrepError, Refused
from qrep.protocol.records import Decided

MAGIC = "qrep group commit 1"
SIZE_MAX = 64 << 10  # bytes of a record
MEMBERS_MAX = 64
LOCK_S = 20.0  # what else a volume does under its lock is short, or the group is not prepared


class GroupCommits:
    """directory: store.Directory of the records, closed by close(). Thread-safe.

    damaged: why records that are there cannot be believed, or None. Then no open generation may be put back or committed, for nobody knows which of
    them are committed: decided() says so.
    """

    def __init__(self, directory):
        self.directory = directory
        self.damaged = None
        self._lock = threading.Lock()
        self._records = {}  # file name -> (group's name, {volume id: Decided}) of records with volumes that are not settled
        directory.sweep()
        for name in directory.names():
            try:
                self._records[name] = _unpack(directory.read(name, SIZE_MAX))
            except (DamagedError, ValueError, KeyError, TypeError) as err:
                text = err.message if isinstance(err, DamagedError) else f"{directory.path}/{name}: {err}"
                self.damaged = f"the record of a group commit is damaged: {text}"

    def close(self):
        self.directory.close()

    def unsettled(self):
        """[(group's name, volume ids)] of commits that have not reached every superblock, for people."""
        with self._lock:
            return [(group, sorted(members)) for group, members in self._records.values()]

    # ---- recovery ----

    def decided(self, volume_id, is_open):
        """The Decided of a volume that is about to be recovered, or None. is_open: an open generation is there. Raises DamagedError where that may be
        committed and nobody can tell."""
        with self._lock:
            for _group, members in self._records.values():
                if volume_id in members:
                    return members[volume_id]
        if self.damaged is not None and is_open:
            raise DamagedError(
                self.damaged, hint=f"put the file back from a copy; or move it away from {self.directory.path}, and what it named is put back to its last sync point"
            )
        return None

    def forget(self, volume_id):
        """A person removes the volume: nothing is brought forward any more. Raises as settle()."""
        self.settle(volume_id, None)

    def settle(self, volume_id, new):
        """The superblock of this volume says what the record did. new: None: whatever that was. Raises OSError, then the record is as it was."""
        with self._lock:
            for name, (group, members) in list(self._records.items()):
                if volume_id not in members or new not in (None, members[volume_id].new):
                    continue
                left = {key: value for key, value in members.items() if key != volume_id}
                crashpoint("group-settle-before")
                if left:
                    self.directory.write(name, _pack(group, left))
                    self._records[name] = (group, left)
                else:
                    self.directory.remove(name)
                    del self._records[name]
                crashpoint("group-settled")

    # ---- the commit ----

    def commit(self, group_id, group, members):
        """Commit every member or none. group_id: 16 bytes, of this attempt of the group alone. group: its name. members: [(TargetVolume, attempt, new,
        epoch)]. Returns the new ids. Raises QrepError before the record, and then nothing has happened; nothing is raised after it."""
        if not 0 < len(members) <= MEMBERS_MAX or len({volume.volume_id for volume, *_ in members}) != len(members):
            raise Refused(f"group {group}: {len(members)} members, or one of them twice", code="group-members")
        if self.damaged is not None:
            raise Refused(self.damaged, code="group-damaged", hint=f"see {self.directory.path}, where the target is")
        with contextlib.ExitStack() as locks:
            for volume, *_ in sorted(members, key=lambda member: member[0].volume_id):  # one order for everybody
                if not volume.lock.acquire(timeout=LOCK_S):
                    raise Refused(f"{volume.name} is busy with {volume.busy or 'something else'}", code="not-prepared")
                locks.callback(volume.lock.release)
            decisions = {volume.volume_id: volume.group_decision(attempt, new, epoch) for volume, attempt, new, epoch in members}
            name = group_id.hex()
            with self._lock:
                if name in self._records:
                    raise Refused(f"group {group}: that commit is under way", code="not-prepared")
                crashpoint("group-record-before")
                try:
                    self.directory.write(name, _pack(group, decisions))  # the commit point of all
                except OSError as err:  # then there is no record
                    raise QrepError(f"{self.directory.path}: {err.strerror}; nothing of group {group} was committed", code="no-space") from err
                self._records[name] = (group, decisions)
            crashpoint("group-record-durable")
            for volume, *_ in members:
                volume.group_decided()
                crashpoint("group-member-committed")
        return [new for _volume, _attempt, new, _epoch in members]


def _pack(group, members):
    body = json.dumps(
        {"group": group, "members": [
            {"volume": one.volume_id.hex(), "attempt": one.attempt, "new": one.new.hex(), "point": list(one.point)} for one in members.values()
        ]}
    ).encode()  # fmt: skip
    return f"{MAGIC} {hasher.hash(body).hex()}\n".encode() + body


def _unpack(data):
    """(group's name, {volume id: Decided}) of a record. Raises ValueError, KeyError, TypeError if it is not one."""
    head, _, body = bytes(data).partition(b"\n")
    if head != f"{MAGIC} {hasher.hash(body).hex()}".encode():
        raise ValueError("it is no record of this version, or its checksum does not fit")
    content = json.loads(body)
    if type(content["group"]) is not str or not 0 < len(content["members"]) <= MEMBERS_MAX:
        raise ValueError("it names no group, or no members")
    members = {}
    for one in content["members"]:
        volume, new = bytes.fromhex(one["volume"]), bytes.fromhex(one["new"])
        if len(volume) != 16 or len(new) != 16 or type(one["attempt"]) is not int or not 0 < one["attempt"] < 1 << 64 or volume in members:
            raise ValueError("a member is not one")
        members[volume] = Decided(volume, one["attempt"], new, tuple(one["point"]))
    return content["group"], members
