"""What may stand in a configuration file: the objects, their types and ranges, and values of the right type that still mean nothing."""

import ipaddress
import os
import re
from typing import Annotated, Literal

import msgspec

from qrep import retention, times, timezone, units, weekly
from qrep.errors import UsageError

DEFAULT_PORT = 7414
AUTO = "auto"
PATH_MAX = 4096
PATHS_MAX = 8  # of a job
ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}(?:%[\w.-]{1,15})?\]|[0-9A-Za-z][0-9A-Za-z._-]{0,252}|[0-9A-Fa-f:.]{2,45})(?::(?P<port>[0-9]{1,5}))?\Z", re.ASCII)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")

CONNECTIONS_MAX = 16  # of a path; protocol/messages.py: CONNECTIONS_MAX
Connections = Annotated[int, msgspec.Meta(ge=1, le=CONNECTIONS_MAX)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Hex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]


class _Object(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    pass


class NodeSection(_Object):
    name: str = ""  # "": the host name
    listen: list[str] = msgspec.field(default_factory=lambda: ["0.0.0.0"])
    port: Port = DEFAULT_PORT
    user: str = ""  # whom the process that faces the network becomes; "": qrep, else nobody
    path_hold: str = "20s"  # jobs/paths.py: how long a better path must have been well before it is returned to
    time_zone: str = ""  # an IANA name, which schedules are read in; "": the system's


class LimitsSection(_Object):
    connections_half_open: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32
    connections: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 256
    jobs_running: Annotated[int, msgspec.Meta(ge=1, le=256)] = 32
    open_generation: str = "24h"  # how long an open generation waits for a run before the target gives it up
    pairs_local: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 256  # jobs whose target is here
    pairs_remote: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 64  # jobs whose target is a peer's
    pairs_per_source: Annotated[int, msgspec.Meta(ge=1, le=256)] = 8  # jobs of one source volume
    rate: str = units.UNLIMITED  # of all jobs of this node together, above the shaping groups


class EventsSection(_Object):
    """How much of the event log is kept: no more than `keep` events, none older than `keep_for`; the newest 1000 always."""

    keep: Annotated[int, msgspec.Meta(ge=1000, le=10_000_000)] = 100_000
    keep_for: str = "90d"

    def seconds(self):
        return units.parse_duration(self.keep_for)


class Hook(_Object):
    """[[hooks]]. events: codes, or levels, which stand for themselves and worse ones. command: an absolute path and its arguments; no shell."""

    events: Annotated[list[str], msgspec.Meta(min_length=1)]
    command: Annotated[list[str], msgspec.Meta(min_length=1, max_length=64)]
    timeout: str = "30s"


class MetricsSection(_Object):
    """file: where the metrics are written for a collector of files; "": nowhere. every: how often."""

    file: str = ""
    every: str = "15s"

    def seconds(self):
        return units.parse_duration(self.every)


class Node(_Object):
    """qrep.toml"""

    node: NodeSection = msgspec.field(default_factory=NodeSection)
    limits: LimitsSection = msgspec.field(default_factory=LimitsSection)
    events: EventsSection = msgspec.field(default_factory=EventsSection)
    hooks: Annotated[list[Hook], msgspec.Meta(max_length=32)] = []
    metrics: MetricsSection = msgspec.field(default_factory=MetricsSection)


class Peer(_Object):
    """peers/NAME.toml. addresses: each with a port of its own if it is not the default. certificate: PEM. trusted: the paths to it are, so
    that data may travel plain; both ends must say so."""

    addresses: Annotated[list[str], msgspec.Meta(min_length=1)]
    fingerprint: Annotated[str, msgspec.Meta(pattern=r"^SHA256:[0-9a-f]{2}(:[0-9a-f]{2}){31}\Z")]
    certificate: str
    trusted: bool = False
    may_switch: bool = False  # it may make this host give up its role in a job of both (docs/ROLES.md)


class Volume(_Object):
    """volumes/NAME.toml. id: random, for life. identity: what the device was when it was added."""

    id: Hex
    device: str
    snapshots: Literal["auto", "lvm", "reflink", "none"] = "auto"
    snapshot_space: str = "20%"  # of a snapshot that needs space of its own (classic LVM)
    freeze_before: list[str] = []  # argv of a command that brings to rest what writes to it
    freeze_after: list[str] = []  # and of the one that undoes that
    freeze_timeout: str = "10s"  # for each of the two, and how long a filesystem is kept frozen at most
    undo: str = ""
    undo_space: str = "2x"
    keep_points: Annotated[int, msgspec.Meta(ge=0, le=retention.POINTS_MAX)] = 0  # the floor of a target: so many sync points stay, whatever a source asks for
    keep_for: str = ""  # and all that are younger than this; "": no age
    open_generation: str = ""  # how long one waits for a run before it is given up; "": as [limits] of the node says
    leaf: str = "4K"
    granule: str = "8M"
    accept: list[str] = []
    identity: dict[str, str | int] = {}


class Shape(_Object):
    """shapes/NAME.toml: a rate that the jobs of a group share, by the hours of the week. hours: weekly.py; none: it is always peak."""

    peak: str
    hours: Annotated[list[str], msgspec.Meta(max_length=64)] = []
    off_peak: str = units.UNLIMITED


class Pair(_Object, kw_only=True):
    """The addresses of one data connection, "": those of its path. from: an address of this host, or auto. to: an address of the peer."""

    source: str = msgspec.field(default="", name="from")
    to: str = ""

    def of(self, way):
        """(from, to) of a connection of a path whose (from, to) are `way`."""
        return self.source or way[0], self.to or way[1]


class Path(_Object, kw_only=True):
    """One way to a job's peer. from: an address of this host, or auto: the system picks. to: an address of the peer, or auto: all it has.

    pairs: one for each data connection, where they are not all alike or not as many as the job says; to auto has none.
    """

    source: str = msgspec.field(default="auto", name="from")
    to: str
    pairs: Annotated[list[Pair], msgspec.Meta(max_length=CONNECTIONS_MAX)] = []


class Job(_Object):
    """jobs/NAME.toml. source: a volume here. target: VOLUME or PEER:VOLUME. target_volume: the target volume's id."""

    id: Hex
    source: str
    target: str
    target_volume: Hex
    size: Annotated[int, msgspec.Meta(ge=512, le=units.MAX_BYTES)]
    leaf: Annotated[int, msgspec.Meta(ge=4096, le=1 << 20)]
    granule: Annotated[int, msgspec.Meta(ge=8192, le=64 << 20)]
    role: Literal["source", "target"] = "source"  # target: its volume was the source and is a replica now; the superblock decides
    whole: bool = True  # False: the first `size` bytes of a larger volume, which was a target
    mode: Literal["async", "copy", "clone"] = "async"  # copy: made once, then the target is given back. clone: jobs/clone.py
    finished: str = ""  # mode copy: the generation that was made, once its target was given back
    moved: str = ""  # in words, the disk that is on its way to another host (jobs/rebuild.py); target is "" until it is there
    initial: Literal["auto", "full", "compare"] = "auto"
    sync_points: Annotated[int, msgspec.Meta(ge=0, le=retention.POINTS_MAX)] = 7
    keep: str = ""  # sync points kept besides, by an age grid: retention.py
    connections: Connections = 2
    timeout: str = "30s"
    paths: Annotated[list[Path], msgspec.Meta(max_length=PATHS_MAX)] = []  # none: to each of the peer's addresses in turn
    preferred_path: Annotated[int, msgspec.Meta(ge=1)] = 1
    shape: str = ""  # the shaping group that it shares a rate with; "": none
    schedule: str = ""  # times.py; "": only when it is started
    missed: Literal["run", "skip"] = "run"  # a time that passed while the agent was down
    verify_schedule: str = ""  # times.py; "": only when it is asked for
    verify_rate: str = ""  # how much a verify may read a second at each end; "": as fast as it goes
    rpo: str = ""  # how old the last sync point may become; "": no matter
    group: str = ""  # the consistency group that it is committed with; "": none
    compress: Literal["auto", "on", "off"] = "auto"  # auto: data travels packed where that is faster; on: whatever gets smaller; local jobs: never
    nice: bool = False  # what runs and verifies read of the source gives way to others who use it
    hints: Literal["auto", "off"] = "auto"  # keep the last generation's snapshot where the backend can tell from it what has changed
    hint_sample: str = "auto"  # of what a hint leaves out, so much is read all the same: a percentage; auto: 1 %, less where little was named

    @property
    def has_target(self):
        """Whether it writes to the volume that `target` names: not while its disk is moved, and not any more once a copy was made."""
        return bool(self.target) and not self.finished


def changed_fields(old, new):
    """The names of the fields in which two objects of one class differ."""
    return [field for field in new.__struct_fields__ if getattr(old, field) != getattr(new, field)]


def check_name(kind, name):
    """Raise UsageError unless `name` can name an object: it becomes a file name and part of addresses such as peer:volume."""
    if not isinstance(name, str) or not NAME.match(name):
        shown = name if not isinstance(name, str) or len(name) <= 80 else f"{name[:77]}..."
        raise UsageError(
            f"{shown!r} cannot name a {kind.rstrip('s')}",
            hint="use letters, digits, '.', '_' and '-', at most 63, beginning with a letter or digit",
        )


def _check_once(job, key):
    """Raise UsageError where a job that is made once has what belongs to one that goes on, or the other way round."""
    if key == "finished":
        if job.finished and (job.mode != "copy" or not re.fullmatch("[0-9a-f]{32}", job.finished)):
            raise UsageError(f"finished = {job.finished[:40]!r} in a job of mode {job.mode}", hint="qrep writes it, for mode copy; leave it away")
    elif job.mode == "copy" and getattr(job, key):
        words = key.replace("_", " ")
        raise UsageError(f"a copy is made once: it has no {words}", hint=f"leave the {words} away; or use --mode async")
    elif job.mode == "clone" and key == "group" and job.group:
        raise UsageError("a clone has no group", hint="leave it away; the job that it is converted to can have one")


def is_label(text):
    """Whether a sync point may bear this name: as of an object, and neither a counter nor a generation id, by which it could be meant as well."""
    return bool(NAME.match(text)) and not text.isdigit() and not re.fullmatch(r"[0-9a-f]{32}", text)


def parse_rpo(text):
    """Seconds, or None for "". Raises UsageError."""
    if not text:
        return None
    seconds = units.parse_duration(text)
    if seconds < 1:
        raise UsageError(f"an rpo of {text}: no sync point is that fresh", hint="write it like 15m or 4h")
    return seconds


def parse_keep_for(text):
    """Seconds, 0 for "". Raises UsageError."""
    return units.parse_duration(text) if text else 0.0


UNDO_SPACE_MIN = 32 << 20  # two segments of disk.h: with less no run can begin


def check_undo_space(text):
    """Raise UsageError unless `text` is a space that a run can begin with; a multiple of the volume always is (managed.py adds to it)."""
    space = units.parse_space(text, 1 << 30)
    if not text.strip().endswith("x") and space < UNDO_SPACE_MIN:
        raise UsageError(
            f"an undo space of {text} is less than {units.exact_size(UNDO_SPACE_MIN)}: no run could begin", hint="write it like 2x, 100G or 32M"
        )


RATE_MIN = 64 << 10


def check_rate(text):
    """Raise UsageError unless `text` is a rate that can be kept: 64 KiB/s or more, or unlimited."""
    rate = units.parse_rate(text)
    if rate is not None and rate < RATE_MIN:
        raise UsageError(f"a rate of {text} is too low to be kept", hint=f"the lowest is {units.format_rate(RATE_MIN)}; or stop the jobs instead")


def check_path(text, what):
    """Raise UsageError unless `text` can be the path of a device or a directory: absolute, one line, short enough to open."""
    if not text.startswith("/") or not text.isprintable() or len(os.fsencode(text)) >= PATH_MAX:
        shown = text if len(text) <= 80 else f"{text[:77]}..."
        raise UsageError(f"{shown!r} cannot be the {what}", hint="write an absolute path, such as /dev/vg0/db")


def check_address(text):
    """Raise UsageError unless `text` is HOST, HOST:PORT or [IPV6]:PORT as a person writes it."""
    match = ADDRESS.match(text) if isinstance(text, str) else None
    if not match or (match["port"] and not 0 < int(match["port"]) < 65536):
        raise UsageError(f"{str(text)[:80]!r} is no address", hint="write it like 10.0.1.2, site-b:7414 or [fe80::1]:7414")


def check_keep_for(text):
    if units.parse_duration(text) < 3600:
        raise UsageError(f"{text!r} is less than an hour", hint="write it like 7d or 90d")


def check_every(text):
    if not 1 <= units.parse_duration(text) <= 3600:
        raise UsageError(f"{text!r} is not from 1s to 1h", hint="write it like 15s")


def _check_absolute(text, what, example):
    try:
        check_path(text, what)
    except UsageError as err:
        raise UsageError(err.message, hint=f"write an absolute path, such as {example}") from err


def check_command(command):
    _check_absolute(command[0], "command of a hook", "/usr/local/sbin/tell")
    if any("\0" in argument for argument in command):
        raise UsageError(f"an argument of {command[0]} holds a NUL", hint="no program can be given one")


def check_hook_timeout(text):
    if not 0 < units.parse_duration(text) <= 3600:
        raise UsageError(f"{text!r} is no time-out for a hook", hint="write it like 30s, at most 1h")


def check_freeze_timeout(text):
    if not 1 <= units.parse_duration(text) <= 600:
        raise UsageError(f"{text!r} is not from 1s to 10m", hint="write it like 10s; what writes to the volume may wait that long")


def check_pairs(path):
    """Raise UsageError unless the pairs of a Path mean something."""
    if path.pairs and path.to == AUTO:
        raise UsageError("pairs of a path to auto, which stands for several paths", hint='write to = "ADDR", or leave the pairs away')
    for pair in path.pairs:
        if pair.source:
            check_source_address(pair.source)
        if pair.to:
            check_address(pair.to)


def check_source_address(text):
    """Raise UsageError unless `text` is auto, or an IP address without a port."""
    try:
        if text != AUTO:
            ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        raise UsageError(f"{text[:80]!r} is no address of a host", hint="write auto, or an address of this host such as 10.0.1.1") from None


def bad_values(value):
    """(key, UsageError) of values that have the right type and still mean nothing."""
    checks = []
    if isinstance(value, Node):
        checks = [("node.listen", lambda text=text: check_address(text)) for text in value.node.listen]
        checks.append(("limits.open_generation", lambda: units.parse_duration(value.limits.open_generation)))
        checks.append(("events.keep_for", lambda: check_keep_for(value.events.keep_for)))
        checks += [
            ("metrics.file", lambda: _check_absolute(value.metrics.file, "file of the metrics", "/var/lib/prometheus/node-exporter/qrep.prom") if value.metrics.file else None),
            ("metrics.every", lambda: check_every(value.metrics.every)),
        ]
        for number, hook in enumerate(value.hooks):
            checks += [
                (f"hooks[{number}].command", lambda hook=hook: check_command(hook.command)),
                (f"hooks[{number}].timeout", lambda hook=hook: check_hook_timeout(hook.timeout)),
            ]
        if value.node.name:
            checks.append(("node.name", lambda: check_name("nodes", value.node.name)))
        if value.node.time_zone:
            checks.append(("node.time_zone", lambda: timezone.load(value.node.time_zone)))
        checks.append(("node.path_hold", lambda: units.parse_duration(value.node.path_hold)))
        checks.append(("limits.rate", lambda: check_rate(value.limits.rate)))
    elif isinstance(value, Shape):
        checks = [
            ("peak", lambda: check_rate(value.peak)),
            ("off_peak", lambda: check_rate(value.off_peak)),
            *(("hours", lambda text=text: weekly.parse([text])) for text in value.hours),
        ]
    elif isinstance(value, Peer):
        checks = [("addresses", lambda text=text: check_address(text)) for text in value.addresses]
    elif isinstance(value, Volume):
        checks = [
            ("device", lambda: check_path(value.device, "device")),
            ("undo", lambda: check_path(value.undo, "undo directory") if value.undo else None),
            ("undo_space", lambda: check_undo_space(value.undo_space)),
            ("keep_for", lambda: parse_keep_for(value.keep_for)),
            ("open_generation", lambda: units.parse_duration(value.open_generation) if value.open_generation else None),
            ("snapshot_space", lambda: units.parse_share(value.snapshot_space, 1 << 30)),
            ("freeze_before", lambda: check_command(value.freeze_before) if value.freeze_before else None),
            ("freeze_after", lambda: check_command(value.freeze_after) if value.freeze_after else None),
            ("freeze_timeout", lambda: check_freeze_timeout(value.freeze_timeout)),
            ("leaf", lambda: _check_power(value.leaf, 4 << 10, 1 << 20)),
            ("granule", lambda: _check_power(value.granule, 8 << 10, 64 << 20)),
            *(("accept", lambda peer=peer: check_name("peers", peer)) for peer in value.accept),
        ]
    elif isinstance(value, Job):
        peer, colon, volume = value.target.rpartition(":")
        checks = [
            ("timeout", lambda: units.parse_duration(value.timeout)),
            *((f"paths[{i}].from", lambda path=path: check_source_address(path.source)) for i, path in enumerate(value.paths)),
            *((f"paths[{i}].to", lambda path=path: check_address(path.to)) for i, path in enumerate(value.paths) if path.to != AUTO),
            *((f"paths[{i}].pairs", lambda path=path: check_pairs(path)) for i, path in enumerate(value.paths)),
            ("schedule", lambda: times.parse(value.schedule)),
            ("verify_schedule", lambda: times.parse(value.verify_schedule)),
            ("verify_rate", lambda: check_rate(value.verify_rate) if value.verify_rate else None),
            ("rpo", lambda: parse_rpo(value.rpo)),
            ("keep", lambda: retention.parse_grid(value.keep)),
            ("hint_sample", lambda: units.parse_sample(value.hint_sample)),
            ("shape", lambda: check_name("shapes", value.shape) if value.shape else None),
            ("group", lambda: check_name("groups", value.group) if value.group else None),
            ("source", lambda: check_name("volumes", value.source)),
            ("target", lambda: check_name("peers", peer) if colon else None),
            ("target", lambda: check_name("volumes", volume) if value.target or not value.moved else None),
            *((key, lambda key=key: _check_once(value, key)) for key in ("schedule", "rpo", "group", "verify_schedule", "finished")),
            ("leaf", lambda: _check_power(value.leaf, 4 << 10, 1 << 20)),
            ("granule", lambda: _check_power(value.granule, 2 * value.leaf, 64 << 20)),
        ]
    for key, check_value in checks:
        try:
            check_value()
        except UsageError as err:
            yield key, err


def _check_power(text, low, high):
    size = units.parse_size(text) if isinstance(text, str) else text
    if size & (size - 1) or not low <= size <= high:
        raise UsageError(f"{text} is not a power of two from {units.exact_size(low)} to {units.exact_size(high)}", hint="write it like 4K, 64K or 8M")
