"""What the metadata of a thin pool say of its volumes: which blocks differ between two, and which one has at all. Nothing is read but them.

Asked through thin_delta and thin_dump, of a metadata snapshot (thinreader.py) or, where the pool is not active, not at all.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.parsers import expat

from qrep.extents import Extent
from qrep.volumes import lvmtools
from qrep.volumes.base import SnapshotError

READER = Path(__file__).with_name("thinreader.py")
LIMIT_S = 60.0  # a pool of 100 TiB in blocks of 64 KiB has some GiB of metadata
SECTOR = 512
WHY = {
    3: "the metadata snapshot of pool {} is held by another program; if none runs: dmsetup message {}-tpool 0 release_metadata_snap",
    4: "the metadata of pool {} are being read by another run", 5: "reading the metadata of pool {} took more than %g s" % LIMIT_S,
}  # fmt: skip


def differences(pool, old_id, new_id, size):
    """Extents in which two thin volumes of a pool (LogicalVolume) may differ; size: of both, bytes. Raises SnapshotError."""
    words = ["--metadata-snap", "--thin1", str(old_id), "--thin2", str(new_id)]
    return _ask(pool, "thin_delta", words, size, {"different": ("begin", "length"), "left_only": ("begin", "length"), "right_only": ("begin", "length")})


def mapped(pool, thin_id, size):
    """Extents of a thin volume that have blocks; the rest is zeroes if it has no external origin. Raises SnapshotError."""
    words = ["--metadata-snap", "--dev-id", str(thin_id)]
    return _ask(pool, "thin_dump", words, size, {"single_mapping": ("origin_block", ""), "range_mapping": ("origin_begin", "length")}, thin_id)


def _ask(pool, tool, words, size, elements, thin_id=None):
    for name in (tool, "dmsetup"):
        if not lvmtools.which(name):
            raise SnapshotError(f"{name} is not installed", hint="apt install thin-provisioning-tools", code="lvm")
    metadata = f"{pool.path}_tmeta"
    name = f"{pool.path}-tpool".rpartition("/")[2]
    with tempfile.TemporaryFile() as out:
        command = [sys.executable, "-IS", str(READER), str(LIMIT_S), lvmtools.which("dmsetup"), name, metadata, lvmtools.which(tool), *words]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, start_new_session=True, timeout=LIMIT_S + 60, check=False,
        )  # fmt: skip
        if done.returncode in WHY:
            raise SnapshotError(WHY[done.returncode].format(pool.full_name, name.removesuffix("-tpool")), code="thin-metadata")
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise SnapshotError(f"{tool}: {said[-1] if said else f'exit {done.returncode}'}", code="thin-metadata")
        out.seek(0)
        return extents_of(out, size, elements, thin_id)


def extents_of(file, size, elements, thin_id=None):
    """Read the XML of thin_delta or thin_dump. elements: {name: (attribute of the first block, of the count or "": one)}. thin_id: of the one
    volume that is to be in it, with all of its blocks: of an id that there is not thin_dump shows nothing and succeeds, and some versions of it
    show what volumes share by reference only. Raises SnapshotError."""
    found, block, whole, blocks, devices = [], 0, False, 0, []

    def begin(name, attributes):
        nonlocal block, blocks
        if name == "superblock":
            block = int(attributes["data_block_size"]) * SECTOR
        elif name == "device":
            devices.append((int(attributes["dev_id"]), int(attributes["mapped_blocks"])))
        elif name in elements:
            first, count = elements[name]
            offset, length = int(attributes[first]) * block, (int(attributes[count]) if count else 1) * block
            if block <= 0 or length <= 0 or offset < (found[-1].end if found else 0):
                raise ValueError(f"{name} at {offset}")
            blocks += length // block
            if offset >= size:
                return
            length = min(length, size - offset)
            if found and found[-1].end == offset:
                found[-1] = Extent(found[-1].offset, found[-1].size + length)
            else:
                found.append(Extent(offset, length))

    def end(name):
        nonlocal whole
        whole |= name == "superblock"

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = begin, end
    try:
        parser.ParseFile(file)
    except (expat.ExpatError, ValueError, KeyError) as err:
        raise SnapshotError(f"what the thin tools say cannot be read: {err}", code="thin-metadata") from err
    if not whole:
        raise SnapshotError("what the thin tools say ends early", code="thin-metadata")
    if thin_id is not None and devices != [(thin_id, blocks)]:
        raise SnapshotError(f"what the thin tools say of volume {thin_id} is not all of it: {blocks} blocks, {devices}", code="thin-metadata")
    return found
