"""Several volumes frozen at one moment: all are brought to rest first, then every snapshot is made, then all go on.

Between the last filesystem that comes to rest and the first that goes on nothing changes on any of them; every snapshot lies in between.
"""

import contextlib
import time
from dataclasses import replace
from typing import NamedTuple

from qrep.crashpoint import crashpoint
from qrep.errors import QrepError
from qrep.volumes.base import SnapshotError
from qrep.volumes.quiet import quiet


class Wanted(NamedTuple):
    """A volume to freeze. backend: its SnapshotBackend, with the options of the volume. name: of the snapshot."""

    device: object
    backend: object
    name: str


def freeze_all(wanted):
    """Freeze all of `wanted` at one moment; a list of Frozen in their order, all of that moment's time_ns.

    Raises SnapshotError; then no snapshot is left, nothing is frozen, and every hook that undoes one has run. The shortest time limit of all
    volumes holds for all.
    """
    limit_s = min(one.backend.options.limit_s for one in wanted)
    made, started = [], time.monotonic()
    try:
        with contextlib.ExitStack() as stack:
            rest = [stack.enter_context(quiet(one.device, one.backend.options)) for one in wanted]
            time_ns = time.time_ns()
            for one, consistency in zip(wanted, rest, strict=True):
                made.append((one.backend, one.backend.freeze(one.device, one.name, quieted=consistency)))
                crashpoint("together-frozen")
            if time.monotonic() - started > limit_s:
                names = ", ".join(one.device.path for one in wanted)
                raise SnapshotError(f"{names}: freezing them together took more than {limit_s:g} s", code="snapshot-too-slow", hint="try again when the disks are less busy")
    except BaseException:
        for backend, frozen in made:
            with contextlib.suppress(QrepError):  # it is found as stale by the next run
                backend.release(frozen.token)
        raise
    return [replace(frozen, time_ns=time_ns) for _backend, frozen in made]
