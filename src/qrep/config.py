"""The configuration: one TOML file per object, strictly checked; what the CLI writes is what a person would write.

qrep.toml                       this node
peers/NAME.toml                 hosts that are known by their key
volumes/NAME.toml  jobs/NAME.toml
"""

import contextlib
import difflib
import os
import re
import tomllib
from typing import Annotated, Literal

import msgspec

from qrep import units
from qrep.errors import ConfigError, NotFound, UsageError

FILE_MAX = 1 << 20  # bytes of one configuration file
DEFAULT_PORT = 7414
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")

Connections = Annotated[int, msgspec.Meta(ge=1, le=16)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Hex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}$")]


class _Object(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    pass


class NodeSection(_Object):
    name: str = ""  # "": the host name
    listen: list[str] = msgspec.field(default_factory=lambda: ["0.0.0.0"])
    port: Port = DEFAULT_PORT


class LimitsSection(_Object):
    connections_half_open: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32
    connections: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 256
    jobs_running: Annotated[int, msgspec.Meta(ge=1, le=256)] = 32


class Node(_Object):
    """qrep.toml"""

    node: NodeSection = msgspec.field(default_factory=NodeSection)
    limits: LimitsSection = msgspec.field(default_factory=LimitsSection)


class Peer(_Object):
    """peers/NAME.toml. addresses: each with a port of its own if it is not the default. certificate: PEM."""

    addresses: Annotated[list[str], msgspec.Meta(min_length=1)]
    fingerprint: Annotated[str, msgspec.Meta(pattern=r"^SHA256:[0-9a-f]{2}(:[0-9a-f]{2}){31}$")]
    certificate: str


class Volume(_Object):
    """volumes/NAME.toml. id: random, for life. identity: what the device was when it was added."""

    id: Hex
    device: str
    snapshots: Literal["auto", "reflink", "none"] = "auto"
    undo: str = ""
    undo_space: str = "2x"
    leaf: str = "4K"
    granule: str = "8M"
    accept: list[str] = []
    identity: dict[str, str | int] = {}


class Job(_Object):
    """jobs/NAME.toml. source: a volume here. target: VOLUME or PEER:VOLUME. target_volume: the target volume's id."""

    id: Hex
    source: str
    target: str
    target_volume: Hex
    size: int
    leaf: int
    granule: int
    mode: Literal["async"] = "async"
    initial: Literal["auto", "full", "compare"] = "auto"
    sync_points: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 7
    connections: Connections = 2
    timeout: str = "30s"


KINDS = {"peers": Peer, "volumes": Volume, "jobs": Job}
NODE_FILE = "qrep.toml"


class Problem(msgspec.Struct):
    """One error in one file. place: dotted key, or "line N" where it is not even TOML."""

    file: str
    place: str
    message: str
    hint: str = ""

    def as_dict(self):
        return msgspec.to_builtins(self)

    def __str__(self):
        text = f"{self.file}: {self.place + ': ' if self.place else ''}{self.message}"
        return text + (f"\n  action: {self.hint}" if self.hint else "")


def check_name(kind, name):
    """Raise UsageError unless `name` can name an object: it becomes a file name and part of addresses such as peer:volume."""
    if not isinstance(name, str) or not NAME.match(name):
        raise UsageError(
            f"{name!r} cannot name a {kind.rstrip('s')}",
            hint="use letters, digits, '.', '_' and '-', at most 63, beginning with a letter or digit",
        )


def parse(data, cls, path):
    """(object, []) or (None, problems) of the bytes of one file."""
    try:
        text = data.decode()
        values = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
        line = re.search(r"line (\d+)", str(err))
        return None, [Problem(path, f"line {line[1]}" if line else "", f"not TOML: {err}")]
    problems = list(_unknown_keys(values, cls, path))
    if problems:
        return None, problems
    try:
        value = msgspec.convert(values, cls)
    except msgspec.ValidationError as err:
        message, _, place = str(err).partition(" - at `$")
        return None, [Problem(path, place.rstrip("`").lstrip("."), message)]
    problems = [Problem(path, key, error.message, error.hint) for key, error in _bad_values(value)]
    return (None, problems) if problems else (value, [])


def _unknown_keys(values, cls, path, place=""):
    """All of them at once, each with the key that was probably meant; msgspec would stop at the first."""
    fields = {field.name: field.type for field in msgspec.structs.fields(cls)}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            yield Problem(
                path,
                f"{place}{key}",
                "unknown key",
                f"did you mean {near[0]}?" if near else f"known: {', '.join(fields)}",
            )
        elif isinstance(value, dict) and isinstance(fields[key], type) and issubclass(fields[key], msgspec.Struct):
            yield from _unknown_keys(value, fields[key], path, f"{place}{key}.")


def _bad_values(value):
    """(key, UsageError) of values that have the right type and still mean nothing."""
    checks = []
    if isinstance(value, Volume):
        checks = [
            ("undo_space", lambda: units.parse_space(value.undo_space, 1 << 30)),
            ("leaf", lambda: units.parse_size(value.leaf)),
            ("granule", lambda: units.parse_size(value.granule)),
        ]
    elif isinstance(value, Job):
        checks = [("timeout", lambda: units.parse_duration(value.timeout))]
    for key, check_value in checks:
        try:
            check_value()
        except UsageError as err:
            yield key, err


def _read(path):
    with open(path, "rb") as file:
        data = file.read(FILE_MAX + 1)
    if len(data) > FILE_MAX:
        raise ConfigError(
            f"{path}: larger than {units.format_size(FILE_MAX)}", hint="a configuration file is a page of text"
        )
    return data


class Config:
    """The files below one directory. Loading raises ConfigError with the first problem; `check` finds them all."""

    def __init__(self, directory):
        self.directory = os.path.abspath(directory)

    def path(self, kind, name):
        check_name(kind, name)
        return os.path.join(self.directory, kind, f"{name}.toml")

    def node(self):
        """qrep.toml, or the defaults if there is none."""
        try:
            return self._load(os.path.join(self.directory, NODE_FILE), Node)
        except FileNotFoundError:
            return Node()

    def names(self, kind):
        with contextlib.suppress(FileNotFoundError):
            return sorted(
                entry[:-5] for entry in os.listdir(os.path.join(self.directory, kind)) if entry.endswith(".toml")
            )
        return []

    def load(self, kind, name):
        """One object. Raises NotFound, ConfigError."""
        try:
            return self._load(self.path(kind, name), KINDS[kind])
        except FileNotFoundError:
            near = difflib.get_close_matches(name, self.names(kind), 1)
            noun = kind.rstrip("s")
            raise NotFound(
                f"no {noun} called {name}",
                hint=f"did you mean {near[0]}?" if near else f"qrep {noun} lists them",
                code=f"no-such-{noun}",
            ) from None

    def load_all(self, kind):
        return {name: self.load(kind, name) for name in self.names(kind)}

    def save(self, kind, name, value):
        """Write one object, atomically; 0600 in 0700 directories."""
        import tomli_w

        from qrep import store

        path = self.path(kind, name)
        with store.Directory(os.path.dirname(path)) as directory:
            directory.write(os.path.basename(path), tomli_w.dumps(msgspec.to_builtins(value)).encode())

    def remove(self, kind, name):
        from qrep import store

        path = self.path(kind, name)
        with store.Directory(os.path.dirname(path)) as directory:
            directory.remove(os.path.basename(path))

    @staticmethod
    def _load(path, cls):
        value, problems = parse(_read(path), cls, path)
        if problems:
            first = problems[0]
            raise ConfigError(
                f"{first.file}: {first.place}: {first.message}", hint=first.hint or "qrep check shows every error"
            )
        return value


def check(directory, file=None):
    """Every problem in `file`, or in all files of `directory`: the files themselves, then what they say of each other."""
    config = Config(directory)
    problems = []
    if file is not None:
        path = os.path.abspath(file)
        kind = os.path.basename(os.path.dirname(path))
        cls = KINDS.get(kind, Node)
        return parse(_read(path), cls, path)[1]
    found = {kind: {} for kind in KINDS}
    files = (
        [(os.path.join(config.directory, NODE_FILE), Node, None, None)]
        if os.path.exists(os.path.join(config.directory, NODE_FILE))
        else []
    )
    for kind, cls in KINDS.items():
        for name in config.names(kind):
            path = os.path.join(config.directory, kind, f"{name}.toml")
            if not NAME.match(name):
                problems.append(Problem(path, "", f"{name!r} cannot name a {kind.rstrip('s')}"))
                continue
            files.append((path, cls, kind, name))
    for path, cls, kind, name in files:
        value, wrong = parse(_read(path), cls, path)
        problems += wrong
        if value is not None and kind:
            found[kind][name] = value
    return problems + list(_dangling(config, found))


def _dangling(config, found):
    """References to objects that are not there."""
    for name, job in found["jobs"].items():
        path = config.path("jobs", name)
        peer, _, volume = job.target.rpartition(":")
        for place, kind, wanted in (
            ("source", "volumes", job.source),
            ("target", "peers", peer),
            ("target", "volumes", "" if peer else volume),
        ):
            if wanted and wanted not in config.names(kind):
                near = difflib.get_close_matches(wanted, config.names(kind), 1)
                yield Problem(
                    path, place, f"no {kind.rstrip('s')} called {wanted}", f"did you mean {near[0]}?" if near else ""
                )
    for name, volume in found["volumes"].items():
        for peer in volume.accept:
            if peer not in config.names("peers"):
                yield Problem(
                    config.path("volumes", name), "accept", f"no peer called {peer}", f"qrep peer add {peer} ADDR"
                )
