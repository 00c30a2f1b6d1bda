"""Which backend freezes a volume: by its configured word, or the best that works."""

from typing import NamedTuple

from qrep import units
from qrep.errors import UsageError
from qrep.volumes.base import FreezeOptions, SnapshotBackend, SnapshotError
from qrep.volumes.held import Held
from qrep.volumes.none import Live
from qrep.volumes.reflink import Reflink

BACKENDS = {backend.name: backend for backend in (Reflink(), Live())}  # in the order `auto` prefers them
KINDS = ("auto", *BACKENDS)


class Choice(NamedTuple):
    """A backend, and why this one: for `volume add`, status and events."""

    backend: SnapshotBackend
    reason: str


def choose(kind, device, options=None):
    """The Choice for a DeviceInfo. kind: `auto` or a backend's name. options: FreezeOptions. Raises UsageError when that one cannot do it."""
    choice = _choose(kind, device)
    return choice if options is None else Choice(type(choice.backend)(options), choice.reason)


def _choose(kind, device):
    if kind not in KINDS:
        raise UsageError(f"{kind!r} is no way to take snapshots", hint=f"use one of: {', '.join(KINDS)}")
    if kind != "auto":
        capability = BACKENDS[kind].probe(device)
        if not capability.ok:
            raise UsageError(
                f"{device.path} cannot be frozen by {kind}: {capability.reason}",
                code="snapshot-unsupported",
                hint="use auto, or none if nobody writes the source while it is replicated",
            )
        return Choice(BACKENDS[kind], capability.reason)
    tried = []
    for backend in BACKENDS.values():
        capability = backend.probe(device)
        if capability.ok:
            return Choice(backend, "; ".join([capability.reason, *tried]))
        tried.append(f"not {backend.name}: {capability.reason}")
    raise SnapshotError(f"{device.path} cannot be read at all: {'; '.join(tried)}")


def options_of(settings):
    """The FreezeOptions of a settings.Volume."""
    limit_s = units.parse_duration(settings.freeze_timeout)
    return FreezeOptions(tuple(settings.freeze_before), tuple(settings.freeze_after), limit_s, settings.snapshot_space)


def of_volume(settings, device):
    """The Choice for a volume, brought to rest as its settings.Volume says."""
    return choose(settings.snapshots, device, options_of(settings))


def by_token(token):
    """The backend that made a token. Raises SnapshotError when none of them did."""
    name = token.partition(":")[0]
    if name == Held.name:
        return Held()
    if name not in BACKENDS:
        raise SnapshotError(f"{token!r} is no snapshot of this version of qrep", code="snapshot-token")
    return BACKENDS[name]


def find(token):
    """The Frozen of a stored token, None if it is not there any more or was live."""
    return by_token(token).find(token)


def release(token):
    """Give a snapshot back; idempotent."""
    by_token(token).release(token)
