"""One attempt to commit all members of a consistency group: who waits for whom, and when all are asked for. Without threads, sockets or clocks.

Events come in one at a time; each returns a list of actions for the driver (daemon/groups.py, and the simulator). A member is any hashable value.

A member that is prepared says so (agreed); when all are, one question goes to their target node, whose one durable record is the commit point of all
(target/groupcommit.py). Its answer may be lost: then every member connects anew and hears from its volume what became of it, by ids. What may not
happen is that one is given up while that record may exist, or may yet be written: `uncertain`.
"""

from typing import NamedTuple

from qrep.errors import Interrupted, QrepError, Unreachable

TRIES_MAX = 8  # questions that found somebody away, or of which no answer came


class FreezeAll(NamedTuple):
    """All are there: freeze every source at one moment, then frozen(). A failure is told to all of them, which end."""


class Ask(NamedTuple):
    """Ask the target node to commit all, then answered(). members: {member: (epoch, attempt, new)}."""

    members: dict


class Withdraw(NamedTuple):
    """SourceMachine.withdraw(error, abort)."""

    member: object
    error: QrepError
    abort: bool


class Reconnect(NamedTuple):
    """Leave the connection of now, and hear from the target what it holds."""

    member: object
    why: str


class GroupRun:
    """members: those that are to be committed together. Public: committed (somebody knows that all are)."""

    def __init__(self, members):
        self._members = frozenset(members)
        self._there, self._agreed, self._ended = set(), {}, set()
        self._asked = None  # what the last question named; None: no question may be answered with yes any more
        self._asking = False  # its answer is awaited
        self._doom = None  # (error, abort) why this cannot be committed
        self._tries = 0
        self.committed = False

    @property
    def uncertain(self):
        """A record may exist, or come to exist."""
        return self._asked is not None

    def arrived(self, member):
        """A member is about to freeze, for the first time in this attempt."""
        if self._doom is not None:
            return [Withdraw(member, *self._doom)]
        self._there.add(member)
        return [FreezeAll()] if self._there == self._members else []

    def agreed(self, member, ids):
        """A member is prepared and its digests are pending. ids: (epoch, attempt, new)."""
        self._agreed[member] = ids
        if self.uncertain and not self._asking and self._asked.get(member, ids) != ids:
            # It has connected since, and its attempt is still open: the question of then has not been followed and never will be.
            self._asked = None
        if self._doom is not None:
            return [] if self.uncertain else self._withdraw_all()
        return self._ask()

    def left(self, member):
        """A member's connection is over; it connects again, or ends."""
        self._agreed.pop(member, None)
        return []

    def answered(self, error):
        """To the last Ask. error: None: committed. Unreachable: nobody knows. Another QrepError: nothing was committed, and will be by that question."""
        self._asking = False
        if error is None:
            self.committed = True
            return []
        self._tries += 1
        asked = self._asked
        again = isinstance(error, Unreachable)
        if not again:
            self._asked = None
        elif any(self._agreed.get(member, ids) != ids for member, ids in asked.items()):
            self._asked = None  # a member has connected since, and found its attempt open
        if self._tries >= TRIES_MAX or not (again or error.code == "not-prepared"):
            self._doom = self._doom or (error, not again)
        if self._doom is not None and not self.uncertain:
            return self._withdraw_all()
        moved = [member for member, ids in asked.items() if self._agreed.get(member) == ids]
        for member in moved:
            del self._agreed[member]
        return [Reconnect(member, error.message) for member in sorted(moved, key=str)] + self._ask()

    def ended(self, member, error, keep):
        """A member's run is over. error: None: it is committed. keep: its attempt stays open at the target."""
        self._ended.add(member)
        self._agreed.pop(member, None)
        if error is None:
            self.committed = True
            return []
        if self.committed:
            return []
        if self._doom is None:
            self._doom = (_of_another(member, error), not keep)
        # Who is stopped gives nothing up: whether it was committed is found by its next start.
        return self._withdraw_all() if isinstance(error, Interrupted) or not self.uncertain else []

    def _ask(self):
        if self._asking or self._doom is not None or self._agreed.keys() != self._members:
            return []
        self._asking, self._asked = True, dict(self._agreed)
        return [Ask(self._asked)]

    def _withdraw_all(self):
        return [Withdraw(member, *self._doom) for member in sorted(self._members - self._ended, key=str)]


def _of_another(member, error):
    """What the others are told of a member's end."""
    if isinstance(error, Interrupted):
        return Interrupted(f"{member}, of the same group, was stopped; start resumes all of it")
    return QrepError(f"{member}, of the same group, cannot be committed: {error.message}", code="group", hint=error.hint)
