"""Several volumes frozen at one moment: all are brought to rest first, then every snapshot is made, then all go on.

Between the last filesystem that comes to rest and the first that goes on nothing changes on any of them; every snapshot lies in between. What is
written to a volume beside any filesystem is not held back: there the commands around the freeze (freeze_before) have to see to it.
"""

import contextlib
import time
from dataclasses import replace
from typing import NamedTuple

from qrep.crashpoint import crashpoint
from qrep.errors import QrepError
from qrep.volumes import quiet


class Wanted(NamedTuple):
    """A volume to freeze. backend: its SnapshotBackend, with the options of the volume. name: of the snapshot."""

    device: object
    backend: object
    name: str


def freeze_all(wanted):
    """Freeze all of `wanted` at one moment; a list of Frozen in their order, all of that moment's time_ns.

    Raises SnapshotError; then no snapshot is left, nothing is frozen, and every command that undoes what was prepared has run. The shortest time
    limit of all volumes holds for all.
    """
    made = []
    try:
        with quiet.together([quiet.Subject(one.device, one.backend.options) for one in wanted]) as consistencies:
            time_ns = time.time_ns()
            for one, consistency in zip(wanted, consistencies, strict=True):
                made.append((one.backend, one.backend.freeze(one.device, one.name, quieted=consistency)))
                crashpoint("together-frozen")
    except BaseException:
        for backend, frozen in made:
            with contextlib.suppress(QrepError):  # it is found as stale by the next run
                backend.release(frozen.token)
        raise
    return [replace(frozen, time_ns=time_ns) for _backend, frozen in made]
