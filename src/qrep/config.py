"""The configuration: one TOML file per object, strictly checked; what the CLI writes is what a person would write.

qrep.toml                       this node
peers/NAME.toml                 hosts that are known by their key
volumes/NAME.toml  shapes/NAME.toml  jobs/NAME.toml
"""

import contextlib
import difflib
import errno
import os
import stat

import msgspec

from qrep import units
from qrep.configparse import Problem, parse
from qrep.errors import ConfigError, NotFound
from qrep.settings import DEFAULT_PORT, NAME, Job, Node, Peer, Shape, Volume, check_address, check_name, check_path

FILE_MAX = 1 << 20  # bytes of one configuration file

__all__ = [
    "DEFAULT_PORT", "KINDS", "NAME", "Config", "Job", "Node", "Peer", "Problem", "Shape", "Volume", "check_address", "check_name", "check_path", "parse",
]  # fmt: skip

KINDS = {"peers": Peer, "volumes": Volume, "shapes": Shape, "jobs": Job}
NODE_FILE = "qrep.toml"


def read(path):
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
    """The files below one directory. Loading raises ConfigError with the first problem; configcheck.py finds them all."""

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
        value, problems = parse(read(path), cls, path)
        if problems:
            first = problems[0]
            raise ConfigError(first.one_line(), hint=first.hint or "qrep check shows every error")
        return value
