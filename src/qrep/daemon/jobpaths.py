"""The paths of one job: which ways lead to its peer, which of them is taken (jobs/paths.py decides), and what is told of them."""

import threading
import time
from typing import NamedTuple

from qrep import units
from qrep.daemon import tls
from qrep.errors import NotFound, Refused, Unreachable
from qrep.jobs.paths import DOWN, UP, Paths
from qrep.jobs.shown import iso
from qrep.settings import AUTO, Path


ALL = Path(source=AUTO, to=AUTO)  # what a job without paths of its own has


class Way(NamedTuple):
    """A path as a person wrote it. source: an address of this host, or auto. to: an address of the peer."""

    source: str
    to: str

    def __str__(self):
        return f"{self.source} -> {self.to}"


def ways_of(path, addresses):
    """The Ways that a settings.Path stands for: `to` auto is each of the peer's addresses."""
    return [Way(path.source, to) for to in (addresses if path.to == AUTO else [path.to])]


def resolved(reach, way):
    """(source address or None, (host, port)), as Reach.connect takes it."""
    return None if way.source == AUTO else way.source.strip("[]"), reach.resolve(way.to)


class JobPaths:
    """node: the Node. settings: config.Job, whose changes are seen at once. peer: its name. Thread-safe; nothing is waited for under the lock."""

    def __init__(self, node, name, settings, peer, clock=time.monotonic):
        self.node, self.name, self.settings, self.peer, self._clock = node, name, settings, peer, clock
        self._lock = threading.RLock()
        self._ways, self._paths = [], None
        self._told_at, self._sources = {}, {}  # Way -> wall clock of its last change, the address that was picked for it
        self._in_use = None  # the Way of the control connection of now

    # ---- what there is ----

    def ways(self):
        """As they are numbered, from 1 on."""
        with self._lock:
            return list(self._look()._ways)

    def way(self, number):
        """The Way of a number that a person gave. Raises NotFound."""
        ways = self.ways()
        if not 1 <= number <= len(ways):
            raise NotFound(f"{self.name} has no path {number}", hint=f"qrep path; {self.name} has {len(ways)}", code="no-such-path")
        return ways[number - 1]

    def _look(self):
        """Take over what was changed; a way that stays keeps what is known of it."""
        addresses = self.node.peers.reach(self.peer).peer.addresses
        # One that stands twice, because of an address that the peer was given later, is one path.
        ways = list(dict.fromkeys(way for path in self.settings.paths or (ALL,) for way in ways_of(path, addresses)))
        preferred = self.settings.preferred_path - 1
        if ways != self._ways:
            before = dict(zip(self._ways, self._paths.paths, strict=True)) if self._paths else {}
            active = self._ways[self._paths.active] if self._paths else None
            self._ways = ways
            self._paths = Paths(len(ways), preferred)
            self._paths.paths = [before.get(way, path) for way, path in zip(ways, self._paths.paths, strict=True)]
            if active in ways:
                self._paths.active = ways.index(active)
        elif preferred != self._paths.preferred and preferred < len(ways):
            self._paths.use(preferred)
        self._paths.hold_first_s = units.parse_duration(self.node.settings.node.path_hold)
        return self

    # ---- for the run ----

    def dial(self):
        """A control channel over the best path that answers. Raises Unreachable when none does, Refused when all that do refuse."""
        reach, errors, refusals = self.node.peers.reach(self.peer), [], []
        with self._lock:
            self._look()
            self._in_use = None
            order = [self._ways[index] for index in self._paths.order(self._clock())]
        for way in order:
            try:
                channel = reach.channel(resolved(reach, way))
            except (Unreachable, Refused) as error:
                self._tell(way, lambda paths, index, now, error=error: paths.failed(index, now, error.message))
                (refusals if isinstance(error, Refused) else errors).append(error)
                continue
            with self._lock:
                self._in_use, self._sources[way] = way, tls.local_address(channel.stream)
            self._tell(way, lambda paths, index, now: paths.taken(index, now))
            return channel
        raise reach.unreachable(errors) if errors else refusals[0]

    def pairs(self, way):
        """The Pairs of a way's connections, by slot; none: as many as the job says, all over the addresses of the way."""
        return next((path.pairs for path in self.settings.paths if Way(path.source, path.to) == way), [])

    def wanted(self):
        """How many data connections the path of the control connection has."""
        way = self._in_use
        return (len(self.pairs(way)) if way is not None else 0) or self.settings.connections

    def data_connection(self, token, slot, bucket=None):
        """A data connection over the path of the control connection, by the addresses of its slot. Raises as Reach.connect, ProtocolError."""
        way = self._in_use
        if way is None:
            raise Unreachable("the path was left meanwhile")
        reach = self.node.peers.reach(self.peer)
        pairs = self.pairs(way)
        if slot < len(pairs):
            way = Way(*pairs[slot].of(way))
        return reach.data_connection(token, bucket, resolved(reach, way))

    def lost(self, why):
        """What went over the present path is lost."""
        with self._lock:
            way, self._in_use = self._in_use, None
        if way is not None:
            self._tell(way, lambda paths, index, now: paths.failed(index, now, why))

    def ended(self):
        """No run is connected any more."""
        with self._lock:
            self._in_use = None

    # ---- for the watch ----

    def watched(self):
        """[Way] to be probed: all but that of a connection whose heartbeat tells more; and whether a run waits for what they say."""
        with self._lock:
            self._look()
            troubled = self._paths.active != self._paths.preferred or any(path.state == DOWN for path in self._paths.paths)
            return [way for way in self._ways if way != self._in_use], troubled

    @property
    def in_use(self):
        return self._in_use

    def probed(self, way, source, reason):
        """reason: why it does not answer, "": it does, and `source` is the address that was picked."""
        with self._lock:
            if source:
                self._sources[way] = source
        if reason:
            self._tell(way, lambda paths, index, now: paths.failed(index, now, reason))
        else:
            self._tell(way, lambda paths, index, now: paths.succeeded(index, now))

    def better(self):
        """Whether a run that goes on should move to a path that ranks higher."""
        with self._lock:
            return self._in_use is not None and self._look()._paths.better(self._clock()) is not None

    def _tell(self, way, event):
        with self._lock:
            if way not in self._look()._ways:
                return  # it was removed meanwhile
            told = event(self._paths, self._ways.index(way), self._clock())
            if any(code != "path-switched" for code, _index, _text in told):
                self._told_at[way] = time.time_ns()
            ways = self._ways
        for code, index, text in told:
            text = f"path {index + 1} ({ways[index]}): {text}" if code != "path-switched" else text
            self.node.events.add(code, text, job=self.name, path=index + 1)

    # ---- for people ----

    def shown(self, connections=()):
        """As the local API shows them (docs/API.md: PATH). connections: of the run that goes on, as SourceLanes tells of them."""
        with self._lock:
            self._look()
            now = self._clock()
            current = self._ways.index(self._in_use) if self._in_use in self._ways else self._paths.current(now)
            return [
                {
                    "job": self.name, "number": index + 1, "from": way.source, "to": way.to, "source": self._source(way),
                    "state": path.state, "active": index == current, "in_use": way == self._in_use,
                    "preferred": index == self._paths.preferred, "since": iso(self._told_at.get(way)), "reason": path.reason,
                    "failures": path.failures, "returns_in_seconds": self._returns_in(index, current, now),
                    "connections": list(connections) if way == self._in_use else [],
                }
                for index, (way, path) in enumerate(zip(self._ways, self._paths.paths, strict=True))
            ]  # fmt: skip

    def _source(self, way):
        return self._sources.get(way) if way.source == AUTO else way.source

    def _returns_in(self, index, current, now):
        left = self._paths.hold_left_s(index, now) if self._paths.paths[index].state == UP and index != current else None
        return None if left is None else round(left, 1)
