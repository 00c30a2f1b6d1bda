"""Seeded defects for the replay: logs that a device or a qrep without one of its rules would have left, and recoveries that leave something out.

Each must be reported at one of its points, through the very code that checks the real recording.
"""

import dataclasses

import oracle
import pytest

from qrep._native import undo
from qrep.target.undostore import UndoStore
from replay.recording import ALL, NONE
from replay.replayer import Point

POINTS_MOST = 24


def window(recording):
    """(begun, acknowledged, writes to the device between) of the second generation: the first with before-images."""
    begun, acked = recording.during(2)
    return begun, acked, [write for write in recording.devices["data"].writes if begun < write.queued < acked]


def covering(recording):
    """Of each write to the device: the last flush of the state device that had ended when it was asked for."""
    _begun, _acked, writes = window(recording)
    flushes = recording.devices["state"].flushes
    return {write.queued: max((flush for flush in flushes if flush[1] < write.queued), key=lambda flush: flush[1]) for write in writes}


def spread(times, data, state):
    times = sorted(set(times))
    return [Point(time, data, state) for time in times[:: -(-len(times) // POINTS_MOST)]]


def undo_flush_dropped(recording, _patch):
    """The undo store's device ignores the flushes that cover the writes to the target."""
    cover = covering(recording)
    other = recording.but(state=recording.devices["state"].without(set(cover.values())))
    return other, spread([queued + 1 for queued in cover], ALL, NONE)


def device_flush_dropped(recording, _patch):
    """Nothing of the target's device was flushed before the commit."""
    begun, acked, _writes = window(recording)
    device = recording.devices["data"]
    return recording.but(data=device.without([flush for flush in device.flushes if begun < flush[0] < acked])), [Point(acked + 1, NONE, ALL)]


def written_too_early(recording, _patch):
    """The target is written when the undo flush begins, not when it has ended."""
    cover, device = covering(recording), recording.devices["data"]
    writes = [
        dataclasses.replace(write, queued=cover[write.queued][0], done=cover[write.queued][0]) if write.queued in cover else dataclasses.replace(write)
        for write in device.writes
    ]
    return recording.but(data=device.but(writes, device.flushes)), spread([flush[0] + 1 for flush in cover.values()], ALL, NONE)


def acknowledged_too_early(recording, _patch):
    """The source is told when the device is flushed, before the superblock is."""
    begun, acked, _writes = window(recording)
    flushed = max(done for queued, done in recording.devices["data"].flushes if begun < queued < acked)
    marks = sorted((flushed, text) if text == "acked 2" else (time, text) for time, text in recording.marks)
    return recording.but(marks=marks), [Point(flushed + 1, ALL, ALL)]


def nothing_put_back(recording, patch):
    """Recovery forgets the open attempt and puts nothing back."""
    patch.setattr(UndoStore, "restore", lambda *_arguments, **_options: 0)
    return recording, spread([write.done + 1 for write in window(recording)[2]], ALL, ALL)


def a_batch_left_out(recording, patch):
    """Recovery leaves out one batch of before-images."""
    order = undo.restore_order
    patch.setattr("qrep._native.undo.restore_order", lambda places: order(places)[1:])
    return recording, spread([write.done + 1 for write in window(recording)[2]], ALL, ALL)


CANARIES = (undo_flush_dropped, device_flush_dropped, written_too_early, acknowledged_too_early, nothing_put_back, a_batch_left_out)


def caught(replayer, seed_it):
    """Whether the replay reports it."""
    with pytest.MonkeyPatch.context() as patch:
        other, points = seed_it(replayer.recording, patch)
        for point in points:
            try:
                replayer.check(point, other)
            except oracle.Wrong:
                return True
    return False
