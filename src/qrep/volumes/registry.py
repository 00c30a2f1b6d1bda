"""Which backend freezes a volume: by its configured word, or the best that works."""

from typing import NamedTuple

from qrep import units
from qrep.errors import UsageError
from qrep.volumes.base import FreezeOptions, SnapshotBackend, SnapshotError
from qrep.volumes.held import Held
from qrep.volumes.lvm import LvmThin
from qrep.volumes.lvm_cow import LvmCow
from qrep.volumes.none import Live
from qrep.volumes.reflink import Reflink

BACKENDS = {backend.name: backend for backend in (LvmThin(), LvmCow(), Reflink(), Live())}  # in the order `auto` prefers them
WORDS = {"auto": tuple(BACKENDS), "lvm": ("lvm-thin", "lvm-cow"), "reflink": ("reflink",), "none": ("none",)}  # which of them a word stands for


class Choice(NamedTuple):
    """A backend, and why this one: for `volume add`, status and events."""

    backend: SnapshotBackend
    reason: str


def choose(kind, device, options=None):
    """The Choice for a DeviceInfo. kind: one of WORDS. options: FreezeOptions. Raises UsageError when that one cannot do it."""
    if kind not in WORDS:
        raise UsageError(f"{kind!r} is no way to take snapshots", hint=f"use one of: {', '.join(WORDS)}")
    tried = []
    for name in WORDS[kind]:
        backend = BACKENDS[name] if options is None else type(BACKENDS[name])(options)
        capability = backend.probe(device)
        if capability.ok:
            return Choice(backend, "; ".join([capability.reason, *tried]) if name == "none" else capability.reason)
        if capability.reason not in (known.partition(": ")[2] for known in tried):
            tried.append(f"not {name}: {capability.reason}")
    reason = "; ".join(text.partition(": ")[2] for text in tried)
    raise UsageError(
        f"{device.path} cannot be frozen by {kind}: {reason}", code="snapshot-unsupported",
        hint="use auto, or none if nobody writes the source while it is replicated",
    )  # fmt: skip


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


def open_frozen(frozen):
    """As SnapshotBackend.open."""
    return by_token(frozen.token).open(frozen)


def release(token):
    """Give a snapshot back; idempotent."""
    by_token(token).release(token)
