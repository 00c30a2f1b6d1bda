"""Seeded defects that the harness of bad networks must report: each runs a scenario like any other, on a station that bears it."""

import dataclasses
import struct

from chaos.network import PLAIN_PREFACE, Network
from chaos.scenarios import MIB, Scenario
from chaos.station import Station

from qrep._native import hasher

LEAF, GRANULE, HEADER = 4096, MIB, 160
KEY = bytes(range(32))  # agentmain.one_key
FULL, VALUE, PACKED = 1, 2, 8
SCENARIO = Scenario(
    seed=0, number=0, kind="flip", paths=1, both=True, plain=True, connections=1, first=True, compress=False, moment="Hello", part=0.1, what="data",
    direction="up", seconds=1.2, amount=2000, patient=True, rate=8 * MIB,
)  # fmt: skip


class Forger(Network):
    """Flips a bit of a plain frame's data and puts it right: digest, value and tag. To a target that knows only one key it is as if it checked nothing."""

    forged = False

    def _changed(self, connection, flow, data):
        pending = getattr(flow, "pending", None)
        if flow.name != "up" or connection.kind != "data" or connection.up.history[:1] != b"\xf1" or (self.forged and pending is None):
            return super()._changed(connection, flow, data)
        if pending is None:
            flow.pending, flow.preface = bytearray(), PLAIN_PREFACE
        flow.pending += data
        parts, head = [], flow.pending
        if flow.preface:
            taken = min(flow.preface, len(head))
            parts.append(bytes(head[:taken]))
            del head[:taken]
            flow.preface -= taken
        while len(head) >= HEADER:
            (runs,), (size,) = struct.unpack_from("<I", head, 12), struct.unpack_from("<I", head, 48)
            whole = HEADER + 8 * runs + size
            if len(head) < whole:
                break
            parts.append(self._forge(connection, flow, bytes(head[:whole])))
            del head[:whole]
        return parts

    def _forge(self, connection, flow, frame):
        kind, flags = struct.unpack_from("<HI", frame, 6)
        (granule,), (first,) = struct.unpack_from("<Q", frame, 16), struct.unpack_from("<I", frame, 52)
        if self.forged or not self._faults or kind != FULL or flags & PACKED:
            return frame
        self.forged = True
        data = bytearray(frame[HEADER:])
        data[len(data) // 2] ^= 1
        self._note(connection, flow, "flip")
        digest = hasher.subtree(bytes(data), granule * GRANULE + first * LEAF, LEAF)
        head = bytearray(frame[: HEADER - 32])
        head[56:88] = digest
        if flags & VALUE and first == 0 and len(data) == GRANULE:
            head[88:120] = digest
        return bytes(head) + hasher.keyed(KEY, bytes(head)) + bytes(data)


def defects_of_the_target(directory, number):
    """The target takes a frame with a flipped bit; it takes the frames of an older session."""
    with Station(directory, number, canary="one-session", network=Forger) as station:
        station.patience = 0.1
        station.fresh = lambda rng, size: rng.randbytes(size)  # so that it travels in FULL frames
        flipped = station.play(SCENARIO).findings
        stale = station.play(dataclasses.replace(SCENARIO, kind="replay", moment="data", part=0.2, amount=0)).findings
    return {"a flip is taken": (any("not noticed" in each for each in flipped), flipped), "old frames are taken": (any("not refused" in each for each in stale), stale)}


def defects_of_the_source(directory, number):
    """It stays with its path, dead or not; with every connection a descriptor is forgotten."""
    with Station(directory, number, canary="no-other-path,leak") as station:
        station.patience = 0.1
        station.rest()
        other = dataclasses.replace(SCENARIO, kind="refuse", paths=2, both=False, what="all", direction="both", moment="Begin")
        stuck = station.play(other).findings
        held = station.rest(seconds=0)
    return {"no other path is taken": (any("the other path" in each for each in stuck), stuck), "descriptors leak": (any("/dev/null" in each for each in held), held)}


def wrong_leaf(station):
    """One wrong leaf on the target of a scenario that goes well."""
    station.after_commit = station.flip_leaf
    try:
        findings = station.play(dataclasses.replace(SCENARIO, kind="crumble", amount=100, seconds=0.1)).findings
    finally:
        del station.after_commit
    return {"a leaf is wrong": (any("1 leaves differ" in each for each in findings), findings)}


CANARIES = {"defects-of-the-target": defects_of_the_target, "defects-of-the-source": defects_of_the_source}  # each on a station of its own
ON_ANY_STATION = {"wrong-leaf": wrong_leaf}
NAMES = (*CANARIES, *ON_ANY_STATION)
COUNT = 5
