"""`run.json`: what a source remembers of its open attempt, replaced atomically; durable before the target hears of the attempt."""

import logging

from qrep import sealed
from qrep.errors import DamagedError
from qrep.protocol.records import RunRecord
from qrep.store import Directory

NAME = "run.json"
SIZE_MAX = 64 << 10
_KINDS = dict(RunRecord.__annotations__)  # int, bytes, str or bool by name
log = logging.getLogger("qrep.source")


class RunFile:
    """The run record of one job, below its state directory."""

    def __init__(self, directory):
        self.directory = Directory(directory)

    def load(self):
        """The RunRecord, or None. A damaged one is as none: the attempt is then given up, and its snapshot is found as stale."""
        try:
            fields = sealed.read(self.directory, NAME, SIZE_MAX)
            return None if fields is None else RunRecord(**_decode(fields))
        except (DamagedError, ValueError, KeyError, TypeError) as err:
            log.warning("%s/%s is not used: %s", self.directory.path, NAME, err)
            return None

    @classmethod
    def read(cls, directory):
        """As load(), of the job in this state directory."""
        file = cls(directory)
        try:
            return file.load()
        finally:
            file.close()

    def save(self, record):
        fields = {name: getattr(record, name) for name in _KINDS}
        sealed.write(self.directory, NAME, {name: value.hex() if isinstance(value, bytes) else value for name, value in fields.items()})

    def clear(self):
        self.directory.remove(NAME)

    def close(self):
        self.directory.close()


def _decode(fields):
    """The fields of a RunRecord from JSON, checked. Raises ValueError, KeyError or TypeError."""
    if set(fields) != set(_KINDS):
        raise ValueError(f"it has the fields {', '.join(sorted(fields))}")
    found = {}
    for name, kind in _KINDS.items():
        value = bytes.fromhex(fields[name]) if kind is bytes else fields[name]
        if type(value) is not kind or (kind is bytes and len(value) != 16) or (kind is int and not 0 <= value < 1 << 64):
            raise ValueError(f"{name} is not what it can be")
        found[name] = value
    return found
