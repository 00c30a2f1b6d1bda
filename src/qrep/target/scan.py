"""Reading the target's own device afresh: digests for the handshake, leaf pages, and the root.

What is offered to a source as the content of the target comes from reads of this moment, never from a list kept earlier.
"""

import array
import mmap
import os
import threading

from qrep import digesttree, mapvalues
from qrep._native import hasher
from qrep._native.connection import Connection
from qrep._native.disk import STATE_ZERO
from qrep._native.source_lane import WORK_HOLE, SourceRun
from qrep.errors import DeviceReadError
from qrep.extents import data_extents, granules_of
from qrep.rehash import read_granule

LANES = 2
PROGRESS_EVERY_S = 1.0


def scan(device_fd, digest_map, sector_size, first, count, progress=None):
    """Read and hash granules [first, first + count) with lanes that send nothing. Returns (states, values) of those. progress(bytes_read): called now and then from this thread.

    Raises DeviceReadError with the extents that could not be read.
    """
    work = array.array("Q", _work(device_fd, digest_map.geometry, first, count))
    end = first + count
    if all(item & WORK_HOLE for item in work):
        return bytes([STATE_ZERO]) * count, bytes(count * digesttree.DIGEST_SIZE)
    run = SourceRun(
        digest_map.geometry, attempt=0, session=0, key=bytes(32), sector_size=sector_size, base_states=digest_map.states,
        base_values=digest_map.values, fresh_values=mapvalues.copied(digest_map.states, digest_map.values), work=work,
    )  # fmt: skip
    lanes = [
        threading.Thread(target=run.lane, args=(device_fd, Connection.none(), index), name=f"scan-{index}", daemon=True)
        for index in range(min(LANES, count))
    ]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        while lane.is_alive():
            lane.join(PROGRESS_EVERY_S)
            if progress:
                progress(run.counters()["read"])
    check_readable(run)
    return run.fresh_states[first:end], run.fresh_values[first * digesttree.DIGEST_SIZE : end * digesttree.DIGEST_SIZE]


def _work(device_fd, geometry, first, count):
    """The granules to read; those that are holes of an image file at this moment need not be."""
    start, end = first * geometry.granule_size, min((first + count) * geometry.granule_size, geometry.size)
    data = set(granules_of(data_extents(device_fd, end, start), geometry.granule_size))
    return (granule if granule in data else granule | WORK_HOLE for granule in range(first, first + count))


def check_readable(run):
    """Raise DeviceReadError unless a scan could read everything."""
    extents, failure = run.bad_extents(), run.failure()
    if extents:
        offset, size, error = extents[0]
        more = f" and {len(extents) - 1} more places" if len(extents) > 1 else ""
        raise DeviceReadError(f"{size} bytes at {offset} cannot be read: {os.strerror(error)}{more}", extents=extents)
    if failure is not None:
        kind, error, _, granule = failure
        raise DeviceReadError(f"the device cannot be scanned: {kind}, granule {granule}: {os.strerror(error)}")


def leaf_pages(device_fd, geometry, sector_size, granules):
    """Yield (granule, leaf values) of each granule, freshly read and hashed."""
    buffer = mmap.mmap(-1, geometry.granule_size)
    for granule in granules:
        data = read_granule(device_fd, geometry, granule, buffer, sector_size)
        page = bytearray(geometry.granule_leaves(granule) * digesttree.DIGEST_SIZE)
        hasher.subtree(data, granule * geometry.granule_size, geometry.leaf_size, page)
        yield granule, page
