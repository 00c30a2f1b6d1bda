"""The configuration: one TOML file per object, strictly checked; what the CLI writes is what a person would write.

qrep.toml                       this node
peers/NAME.toml                 hosts that are known by their key
volumes/NAME.toml  shapes/NAME.toml  jobs/NAME.toml
"""

import contextlib
import difflib
import errno
import os
import re
import stat
import tomllib

import msgspec

from qrep import units
from qrep.errors import ConfigError, NotFound
from qrep.settings import DEFAULT_PORT, NAME, Job, Node, Peer, Shape, Volume, bad_values, check_address, check_name, check_path

FILE_MAX = 1 << 20  # bytes of one configuration file

__all__ = [
    "DEFAULT_PORT", "KINDS", "NAME", "Config", "Job", "Node", "Peer", "Problem", "Shape", "Volume", "check", "check_address", "check_name", "check_path", "parse",
]  # fmt: skip

KINDS = {"peers": Peer, "volumes": Volume, "shapes": Shape, "jobs": Job}
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


def parse(data, cls, path):
    """(object, []) or (None, problems) of the bytes of one file."""
    try:
        text = data.decode()
        values = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
        line = re.search(r"line (\d+)", str(err))
        return None, [Problem(path, f"line {line[1]}" if line else "", f"not TOML: {err}")]
    except (RecursionError, ValueError) as err:  # tables in tables in tables; an integer of 5000 digits
        return None, [Problem(path, "", f"not TOML that anyone means: {str(err) or 'nested too deeply'}")]
    problems = list(_unknown_keys(values, cls, path))
    if problems:
        return None, problems
    try:
        value = msgspec.convert(values, cls)
    except msgspec.ValidationError as err:
        message, _, place = str(err).partition(" - at `$")
        return None, [Problem(path, place.rstrip("`").lstrip("."), message)]
    problems = [Problem(path, key, error.message, error.hint) for key, error in bad_values(value)]
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


def _read(path):
    """The bytes of one file, which must be a file: a link would be silently replaced by the next save. Raises ConfigError, OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as err:
        if err.errno != errno.ELOOP:
            raise
        raise ConfigError(f"{path}: a symbolic link", hint="put the file itself there") from err
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError(f"{path}: not a regular file", hint="put a file there, or remove it")
    with open(descriptor, "rb") as file:
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
        return _look(path, cls)[1]
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
        value, wrong = _look(path, cls)
        problems += wrong
        if value is not None and kind:
            found[kind][name] = value
    return problems + list(_dangling(config, found))


def _look(path, cls):
    """parse(), with what keeps the file from being read as one more problem."""
    try:
        return parse(_read(path), cls, path)
    except ConfigError as err:
        return None, [Problem(path, "", err.message.removeprefix(f"{path}: "), err.hint)]
    except OSError as err:
        return None, [Problem(path, "", f"cannot be read: {err.strerror}")]


def _dangling(config, found):
    """References to objects that are not there."""
    for name, job in found["jobs"].items():
        path = config.path("jobs", name)
        peer, _, volume = job.target.rpartition(":")
        for place, kind, wanted in (
            ("source", "volumes", job.source),
            ("target", "peers", peer),
            ("target", "volumes", "" if peer else volume),
            ("shape", "shapes", job.shape),
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
