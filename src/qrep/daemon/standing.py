"""`standing.json` of a volume: what its last change of role was about (docs/ROLES.md). Written before the superblock's sector that decides, and
believed only with that sector."""

import os
from typing import Annotated, Literal

import msgspec

from qrep import sealed
from qrep.errors import DamagedError
from qrep.settings import Hex
from qrep.store import Directory

NAME = "standing.json"
SIZE_MAX = 16 << 10
MaybeHex = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{32})?\Z")]


class StandingFile(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """id: the generation id that the change gives the volume. job_id, job, peer ("": this host), other (the other volume's name), other_id: the pair.

    same_as: generation of the other side with the same content then, "": none. common: the last generation of this side that both held, or, of a side
    that gave up, the generation that its map of the other side described. changed: bytes written here since then, None: not known.
    returns: it may be made primary again by the other side's giving up. accepted: the peer was put among those the volume accepts by this.
    done: pair, job and map follow it. before: what was said of the volume before, until this is done.
    """

    id: Hex
    role: Literal["primary", "replica"]
    job_id: Hex
    job: str
    peer: str
    other: str
    other_id: MaybeHex
    why: str
    at: float
    size: int
    leaf: int
    granule: int
    sync_points: int
    keep: str = ""
    same_as: MaybeHex = ""
    common: MaybeHex = ""
    changed: int | None = None
    returns: bool = False
    accepted: bool = False
    done: bool = False
    before: dict | None = None

    def replace(self, **fields):
        return msgspec.structs.replace(self, **fields)


def load(directory):
    """The StandingFile in a volume's state directory, or None. Raises DamagedError."""
    if not os.path.exists(os.path.join(directory, NAME)):
        return None
    hint = (
        "put the file back from a copy; the superblock beside it says which role the volume has. Without one: delete its job where the source is, "
        "qrep volume remove it, add it again, and create the job again"
    )
    try:
        with Directory(directory) as place:
            file = msgspec.convert(sealed.read(place, NAME, SIZE_MAX), StandingFile)
        if file.before is not None:
            msgspec.convert(file.before, StandingFile)
        return file
    except DamagedError as err:
        raise DamagedError(err.message, hint=hint) from err
    except msgspec.ValidationError as err:
        raise DamagedError(f"{directory}/{NAME}: {err}", hint=hint) from err


def save(directory, standing):
    """Atomic and durable."""
    with Directory(directory) as place:
        sealed.write(place, NAME, msgspec.to_builtins(standing))


def take_back(directory, standing):
    """The superblock does not say what this one was written for: what was said before holds again."""
    if standing.before is not None:
        save(directory, msgspec.convert(standing.before, StandingFile))
        return
    with Directory(directory) as place:
        place.remove(NAME)
