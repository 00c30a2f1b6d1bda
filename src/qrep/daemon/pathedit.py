"""What a person does to the paths of a job: adds one, prefers one, removes one. All of it is possible while a run goes on."""

import socket

import msgspec

from qrep.daemon.jobpaths import Way, ways_of
from qrep.errors import Refused, Unreachable, UsageError
from qrep.settings import AUTO, PATHS_MAX, Path, check_address, check_source_address


def check_ours(source):
    """Raise UsageError unless `source` is auto, or an address of this host."""
    check_source_address(source)
    if source == AUTO:
        return
    host, _, scope = source.strip("[]").partition("%")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        address = (host, 0) if family == socket.AF_INET else (host, 0, 0, socket.if_nametoindex(scope) if scope else 0)
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(address)
    except OSError as err:
        raise UsageError(
            f"{source} is no address of this host", hint="`ip -brief address` lists them; or --from auto", code="not-our-address"
        ) from err


def check_way(source, to):
    check_ours(source)
    if to != AUTO:
        check_address(to)


def paths_of(runner):
    """The JobPaths of a job. Raises Refused for one whose target is on this host."""
    if runner.paths is None:
        raise Refused(f"the target of {runner.name} is on this host: no path leads there", hint="paths are for jobs of peers", code="local-job")
    return runner.paths


def add(node, name, source, to, dry_run=False):
    """One more path, after the others; those that followed from the peer's addresses are written down with it. Returns it as it is shown."""
    runner = node.jobs.get(name)
    paths = paths_of(runner)
    check_way(source, to)
    before = paths.ways()
    more = ways_of(Path(source=source, to=to), node.peers.reach(paths.peer).peer.addresses)
    known = [way for way in more if way in before]
    if known:
        raise Refused(f"{name} has the path {known[0]} already: {before.index(known[0]) + 1}", hint=f"qrep path show {name}/{before.index(known[0]) + 1}", code="path-known")
    if len(before) + len(more) > PATHS_MAX:
        raise Refused(f"{name} has {len(before)} paths; {PATHS_MAX} is the limit", hint=f"qrep path remove {name}/N", code="too-many-paths")
    answers = [(way, *node.path_watch.probe(paths.peer, way)) for way in more]
    if not dry_run:
        node.jobs.set_paths(name, [*before, *more], runner.settings.preferred_path)
        for number, (way, picked, reason) in enumerate(answers, len(before) + 1):
            node.events.add("path-added", f"path {number}: {way}", job=name, path=number)
            paths.probed(way, picked, reason)
    return [
        {"job": name, "number": number, "from": way.source, "to": way.to, "source": picked, "reason": reason}
        for number, (way, picked, reason) in enumerate(answers, len(before) + 1)
    ]  # fmt: skip


def use(node, name, number, dry_run=False):
    """Prefer a path from now on, and move a run that goes on there at once. Raises Unreachable when it does not answer: nothing is changed."""
    runner = node.jobs.get(name)
    paths = paths_of(runner)
    way = paths.way(number)
    source, reason = node.path_watch.probe(paths.peer, way)
    paths.probed(way, source, reason)
    if reason:
        raise Unreachable(f"path {number} of {name} does not answer: {reason}", hint="check the link; nothing was changed", code="path-down")
    moves = runner.is_going and paths.in_use not in (None, way)
    if not dry_run:
        node.jobs.set_paths(name, None, number)
        node.events.add("path-preferred", f"path {number}: {way}", job=name, path=number)
        if moves:
            runner.move(f"path {number} was asked for", at_once=True)
    return {"job": name, "number": number, "from": way.source, "to": way.to, "source": source, "moves": moves}


def remove(node, name, number):
    """One path less. A run that goes on over it moves to another one first thing."""
    runner = node.jobs.get(name)
    paths = paths_of(runner)
    gone, before = paths.way(number), paths.ways()
    if len(before) < 2:
        raise Refused(f"{name} has no other path than {gone}", hint=f"qrep path add {name} --to ADDR first", code="last-path")
    preferred = runner.settings.preferred_path
    node.jobs.set_paths(name, [way for way in before if way != gone], 1 if preferred == number else preferred - (preferred > number))
    node.events.add("path-removed", f"path {number}: {gone}", job=name, path=number)
    if runner.is_going and paths.in_use == gone:
        runner.move(f"path {number} was removed", at_once=True)
    return {"job": name, "number": number, "from": gone.source, "to": gone.to}


def written(ways, pairs):
    """Ways as a job's settings write them down. pairs: a callable that has the Pairs of a way."""
    return [{"from": way.source, "to": way.to, "pairs": msgspec.to_builtins(pairs(way))} for way in map(Way._make, ways)]
