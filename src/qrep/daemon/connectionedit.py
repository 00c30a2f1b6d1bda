"""What a person does to the data connections of a job's path: adds one, removes one, sees them. A run that goes on over it follows at once."""

from qrep.daemon.jobpaths import Way
from qrep.daemon.pathedit import check_ours
from qrep.errors import NotFound, Refused
from qrep.settings import CONNECTIONS_MAX, Pair, check_address

LOCAL = ("local-job", "a job whose target is on this host has one path, and its connections no addresses")


def listed(node, name=None):
    """[CONNECTION] of one job or all, by job, path and number: those that are configured, and what a run that goes on knows of its own."""
    runners = node.jobs.all() if name is None else [(name, node.jobs.get(name))]
    return [one for _name, runner in runners for number in range(1, _paths(runner) + 1) for one in of_path(runner, number)]


def of_path(runner, number):
    """[CONNECTION] of path `number`, from 1."""
    way, in_use = _way(runner, number)
    known = (runner.progress() or {}).get("connections") or () if in_use else ()
    going, leaving = {one["number"]: one for one in known if one["number"]}, [one for one in known if not one["number"]]
    idle = {"state": "idle", "sent": 0, "rate_bytes_per_s": None, "text": None}
    pairs = dict(enumerate(pairs_of(runner, number), 1))
    return [
        {"job": runner.name, "path": number, "number": place} | _addresses(way, pairs.get(place, Pair())) | (going.get(place) or idle)
        for place in sorted(pairs.keys() | going.keys())
    ] + [{"job": runner.name, "path": number, "from": None, "to": None} | one for one in leaving]  # fmt: skip


def pairs_of(runner, number):
    """A Pair for each connection of path `number`."""
    way, _ = _way(runner, number)
    return (runner.paths.pairs(way) if way is not None else []) or [Pair() for _ in range(runner.settings.connections)]


def add(node, name, number, source=None, to=None, dry_run=False):
    """One more connection, after the others. source, to: its own addresses; None: those of the path. Returns the CONNECTION; `reason`: why
    its addresses do not answer now, "" if they do."""
    runner = node.jobs.get(name)
    way, _ = _way(runner, number)
    pairs = pairs_of(runner, number)
    if len(pairs) >= CONNECTIONS_MAX:
        raise Refused(f"{name}/{number} has {CONNECTIONS_MAX} connections, which is the limit", hint=f"qrep connection remove {name}/{number}/M", code="too-many-connections")
    pair = Pair(source=source or "", to=to or "")
    if way is None and (source or to):
        raise Refused(LOCAL[1], hint="leave --from and --to away", code=LOCAL[0])
    if source:
        check_ours(source)
    if to:
        check_address(to)
    reason = node.path_watch.probe(runner.paths.peer, Way(*pair.of(way)))[1] if source or to else ""
    if not dry_run:
        node.jobs.set_pairs(name, number, [*pairs, pair])
        shown = _addresses(way, pair)
        node.events.add("connection-added", _words(number, len(pairs) + 1, shown), job=name, path=number, connection=len(pairs) + 1)
    return {"job": name, "path": number, "number": len(pairs) + 1, "connections": len(pairs) + 1, "reason": reason} | _addresses(way, pair)


def remove(node, name, number, place, dry_run=False):
    """One connection less: it finishes what it has taken; those behind it move up. Returns the CONNECTION that goes."""
    runner = node.jobs.get(name)
    way, _ = _way(runner, number)
    pairs = pairs_of(runner, number)
    if not 1 <= place <= len(pairs):
        raise NotFound(f"{name}/{number} has no connection {place}", hint=f"qrep connection lists them; {name}/{number} has {len(pairs)}", code="no-such-connection")
    if len(pairs) == 1:
        raise Refused(f"{name}/{number}/{place} is the last connection of its path", hint=f"qrep connection add {name}/{number} first", code="last-connection")
    pair = pairs[place - 1]
    if not dry_run:
        node.jobs.set_pairs(name, number, pairs[: place - 1] + pairs[place:], removed=place - 1)
        node.events.add("connection-removed", _words(number, place, _addresses(way, pair)), job=name, path=number, connection=place)
    return {"job": name, "path": number, "number": place, "connections": len(pairs) - 1} | _addresses(way, pair)


def _words(number, place, addresses):
    route = f": {addresses['from']} -> {addresses['to']}" if addresses["from"] else ""
    return f"connection {place} of path {number}{route}"


def _paths(runner):
    return len(runner.paths.ways()) if runner.paths is not None else 1


def _way(runner, number):
    """(Way or None for a job of this host, whether a run goes on over it). Raises NotFound."""
    if runner.paths is None:
        if number != 1:
            raise NotFound(f"{runner.name} has no path {number}", hint=LOCAL[1], code="no-such-path")
        return None, runner.is_going
    way = runner.paths.way(number)
    return way, runner.paths.in_use == way


def _addresses(way, pair):
    return {"from": None, "to": None} if way is None else dict(zip(("from", "to"), pair.of(way), strict=True))
