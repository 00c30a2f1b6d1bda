"""Which change of role may be made, from what both sides say of themselves: pure decisions, no I/O (docs/ROLES.md).

Every function takes the Standing of this side and of the other one (None: it does not answer) and returns what to do, a word, or raises Refused
with both sides and the way out. Ids are compared for equality only.
"""

from typing import NamedTuple

from qrep.errors import Refused, Unreachable

PRIMARY, REPLICA = "primary", "replica"
SPLIT_BRAIN = "split-brain"


class Standing(NamedTuple):
    """One side of a pair. node: its name, for people. id: T of its superblock, "": it never was a target. same_as: the generation of the other side
    whose content this volume had when it got `id`, "": none is known. common: the last generation that both sides held, when it got `id`.
    allows: it does as the other side asks (may_switch there, or its operator agreed). busy: it is changing its role. returns: its operator agreed to
    take over again."""

    node: str
    role: str
    id: str = ""
    same_as: str = ""
    common: str = ""
    allows: bool = False
    busy: bool = False
    returns: bool = False


def equal(ours, theirs):
    """Whether ids prove that both volumes hold the same: one of them says so of the present generation of the other."""
    return bool(ours.id and theirs.id) and (theirs.same_as == ours.id or ours.same_as == theirs.id)


def promote(job, ours, theirs, *, force=False, other=""):
    """planned: the other side gave up and both hold the same; forced: at what is here; ask: the other side gives up when it is asked.

    other: the name of the other side where it does not answer.
    """
    if ours.role == PRIMARY:
        raise Refused(f"{job}: {ours.node} is primary already", code="already-primary", hint=f"qrep status {job}")
    if not ours.id:
        raise Refused(f"{job}: no generation was ever committed at {ours.node}", code="never-synced", hint="the first run has to end; only then is there something to take over")
    if force:
        return "forced"
    if theirs is None:
        raise Refused(
            f"source {other} does not answer, so nobody can tell whether its writers have stopped", code="source-unreachable",
            hint=f"wait for it; only if it is lost: qrep job promote {job} --force",
        )  # fmt: skip
    if theirs.busy:
        raise Refused(f"{job}: {theirs.node} is changing its role", code="busy", hint="wait for it, then try again")
    if theirs.role == PRIMARY:
        if theirs.allows:
            return "ask"
        raise Refused(
            f"source {theirs.node} answers; a planned switch stops its writers first. --force only if {theirs.node} is lost.", code="source-answers",
            hint=f"on {theirs.node}: qrep job demote {job}",
        )  # fmt: skip
    if equal(ours, theirs):
        return "planned"
    raise Refused(
        f"{job}: {theirs.node} has given up its role, but with other content than {ours.node} holds", code="not-equal",
        hint=f"promote it there: qrep job promote {job} --force; what is chosen wins, the other side's changes are kept as a sync point by the next run",
    )  # fmt: skip


def gave_up(job, ours, theirs, *, other=""):
    """After the other side was asked to give up: raises Refused unless it has, and holds what is here. It may have died in the middle of it."""
    if theirs is None or theirs.role != REPLICA or not equal(ours, theirs):
        raise Refused(
            f"{job}: {other} was asked to give up its role, and has not brought it to an end", code="not-equal",
            hint=f"qrep status {job} on both sides; then qrep job promote {job} again",
        )  # fmt: skip


def demote(job, ours, theirs, *, other=""):
    """last-run: the other side is a replica and gets everything first; overtaken: it is primary, and this side's changes will be kept aside."""
    if ours.role == REPLICA:
        raise Refused(f"{job}: {ours.node} is a replica already", code="already-replica", hint=f"qrep job promote {job} takes it back")
    if theirs is None:
        raise Unreachable(f"{job}: {other} does not answer, so the last run cannot be made", hint="check the link and the agent there")
    return "last-run" if theirs.role == REPLICA else "overtaken"


def failback(job, ours, theirs, *, other=""):
    """run: the other side is a replica; ask: it gives up when it is asked."""
    if ours.role == REPLICA:
        raise Refused(f"{job}: {ours.node} is a replica; failback starts where the primary is", code="not-primary", hint=f"on {other}: qrep job failback {job}")
    if theirs is None:
        raise Unreachable(f"{job}: {other} does not answer", hint="failback needs both sides: check the link and the agent there")
    if theirs.busy:
        raise Refused(f"{job}: {theirs.node} is changing its role", code="busy", hint="wait for it, then try again")
    if theirs.role == REPLICA:
        return "run"
    if theirs.allows:
        return "ask"
    raise split_brain(job, ours.node, theirs.node)


def take_back(job, ours, asked_id, asked_same_as, *, allowed, kept_points=0):
    """The other side says that it gave up at generation `asked_id`, which holds what our `asked_same_as` holds. Raises Refused, else all is well.

    kept_points: earlier sync points here under a floor that our operator set (keep_points, keep_for): taking over drops them, which is not for
    the other side to bring about."""
    if ours.role == PRIMARY:
        raise Refused(f"{job}: {ours.node} is primary already", code="already-primary")
    if not (allowed or ours.returns):
        raise Refused(
            f"{job}: {ours.node} takes over only when its own operator says so", code="not-allowed", hint=f"on {ours.node}: qrep job promote {job}"
        )
    if kept_points:
        raise Refused(
            f"{job}: {ours.node} keeps {kept_points} earlier sync points, which would be lost; its floor (keep_points, keep_for) forbids that to another host",
            code="retention-floor", hint=f"on {ours.node}: qrep job promote {job}",
        )  # fmt: skip
    if not ours.id or asked_same_as != ours.id or not asked_id:
        raise Refused(f"{job}: {ours.node} does not hold what the other side gave up with", code="not-equal", hint=f"qrep job failback {job} brings it there first")


def is_target(ours, theirs):
    """Whether "target" means this side: the replica; of two primaries the one that took over from a replica. None: that does not tell them apart."""
    if theirs is not None and ours.role != theirs.role:  # what they are goes before what they were
        return ours.role == REPLICA
    if theirs is None:
        return True if ours.role == REPLICA else None if ours.common else False
    return bool(ours.common) if bool(ours.common) != bool(theirs.common) else None


def losing_side(job, side, ours, theirs, *, names):
    """here or there: which of the two gives up so that `side` wins. names: {"here": words, "there": words} that may name the sides."""
    winners = [where for where, words in names.items() if side in words]
    if len(winners) != 1:
        known = ", ".join(sorted({word for words in names.values() for word in words}))
        raise Refused(f"{job}: {side!r} is neither side of it", code="no-such-side", hint=f"the sides are: {known}")
    loser = "there" if winners[0] == "here" else "here"
    standing = ours if loser == "here" else theirs
    if standing is None:
        raise Unreachable(f"{job}: the other side does not answer, so it cannot give up", hint="check the link and the agent there")
    winner = theirs if loser == "here" else ours
    if winner is not None and winner.role == REPLICA:
        raise Refused(f"{job}: {winner.node} is a replica and cannot win", code="not-primary", hint=f"there: qrep job promote {job}, or name the other side")
    if loser == "there" and standing.role == PRIMARY and not standing.allows:
        raise Refused(
            f"{job}: {standing.node} gives up its changes only when its own operator says so", code="not-allowed",
            hint=f"on {standing.node}: qrep job resync {job} --authoritative {ours.node}",
        )  # fmt: skip
    return loser


def split_brain(job, here, there):
    """What both sides say of two primaries. The first name is that of whoever speaks."""
    return Refused(
        f"{job}: {here} and {there} are both primary (split brain); nothing was written", code=SPLIT_BRAIN,
        hint=f"where changes are to be given up: qrep job resync {job} --authoritative OTHER-SIDE; or there qrep job demote {job}, here qrep job failback {job}",
    )  # fmt: skip
