"""What a tree of files says, as one digest: two attempts that leave the same state need not both be recovered and gone on with.

What is told apart by nothing but the pace of two threads is not told apart here: in how many batches before-images were logged.
"""

import dataclasses

import blake3
import oracle

from qrep._native import disk
from qrep.target.undostore import COPY_OFFSET, SEGMENT


def digest(tree, superblock=None):
    """superblock: oracle.Superblock, whose words count instead of the bytes of its file."""
    found = blake3.blake3(repr(superblock).encode())
    for name, (size, pieces) in sorted(tree.files.items()):
        found.update(f"{name}\0{size}\0".encode())
        if name.endswith(".undo"):
            found.update(_undo(tree, name, size).encode())
        elif superblock is None or name != "target/superblock":
            for offset, data in pieces:
                found.update(f"{offset}\0{len(data)}\0".encode())
                found.update(data)
    return found.digest()


def _undo(tree, name, size):
    """Header, before-images by their place, whether the number of batches that it tells is that of those that are there; all bytes, if it is damaged."""
    try:
        header = disk.UndoHeader.unpack(tree.read(name, 0, disk.UNDO_HEADER_SIZE))
    except (disk.RecordDamaged, TypeError):
        return repr(tree.files[name])
    images, count = {}, 0
    for offset, data in tree.files[name][1]:
        if offset < SEGMENT:
            continue
        scanned = disk.scan_undo_segment(bytearray(data[: SEGMENT - offset % SEGMENT]), offset, header.size, header.base_id, header.attempt)
        count += len(scanned.batches)
        if scanned.damaged is not None or offset % SEGMENT:
            return repr(tree.files[name])
        for batch in sorted(scanned.batches, key=lambda batch: batch.sequence):
            payload = batch.payload_position - offset
            for extent in batch.extents:
                for place in range(extent.offset, extent.offset + extent.size, 512):
                    known = data[payload : payload + 512] if extent.kind == disk.UNDO_DATA else None
                    payload += 512 if known is not None else 0
                    images.setdefault(place, blake3.blake3(known).hexdigest() if known is not None else "zero")
    try:
        told = disk.UndoHeader.unpack(tree.read(name, COPY_OFFSET, disk.UNDO_HEADER_SIZE)).batches == count
    except (disk.RecordDamaged, TypeError):
        told = None
    return repr((header.base_id, header.new_id, header.attempt, header.size, told, sorted(images.items())))


def meaning(place):
    """The superblock, without what says nothing of what the device holds: its sequence, and the epochs of sessions."""
    return dataclasses.replace(oracle.superblock(place), sequence=0, max_epoch=0)
