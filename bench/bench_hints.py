"""What a run reads of a sparse image on XFS of which little has changed: bytes read for each byte changed (required: at most 1.2), and the time it takes.

Full size: an image of 100 GiB with 1 GiB of data of which 100 MiB change, in runs of 1 MiB, of 64 KiB and as single blocks at random places; and 100 MiB
written to holes. The target is an image beside it; after the last run what the source holds is compared with it byte by byte.
"""

import os
import random
import subprocess
import time
from pathlib import Path

import pytest
from flow.harness import JOB, VOLUME
from measure import FULL, MIB, add_row, figure_row, fill_file

from qrep import device
from qrep.copy import LocalTarget, local_request
from qrep.extents import data_extents
from qrep.source.flow import Run
from qrep.target.volume import TargetVolume
from qrep.volumes.reflink import Reflink

SIZE, DATA, CHANGED = (100 << 30, 1 << 30, 100 * MIB) if FULL else (256 * MIB, 32 * MIB, 8 * MIB)
LEAF = 4096
PATTERNS = {"runs of 1 MiB": MIB, "runs of 64 KiB": 64 << 10, "single blocks": LEAF}


class Hinted:
    """An image, its replica, and what the last run of it said."""

    def __init__(self, directory):
        self.source, self.target, self.state = directory / "source.img", directory / "target.img", directory / "state"
        for path in (self.source, self.target):
            path.touch()
            os.truncate(path, SIZE)
        self.random = random.Random(1)
        self.volume = TargetVolume(device.inspect(str(self.target)), self.state / "target", volume_id=VOLUME, leaf_size=LEAF, granule_size=8 * MIB)
        self.volume.open()
        self.local = LocalTarget(self.volume)

    def run(self):
        request = local_request(
            str(self.source), self.state, job_id=JOB, volume_id=VOLUME, leaf_size=LEAF, granule_size=8 * MIB, backend=Reflink(), hints=True, timeout_s=600.0
        )
        started = time.perf_counter()
        report = Run(request, self.local.dial, self.local.connect).run()
        return report, time.perf_counter() - started

    def change(self, piece, low, high):
        """CHANGED bytes in pieces at random places of [low, high), none twice."""
        places = self.random.sample(range(low // piece, high // piece), CHANGED // piece)
        with open(self.source, "r+b", buffering=0) as image:
            for place in sorted(places):
                image.seek(place * piece)
                image.write(self.random.randbytes(piece))
            os.fsync(image.fileno())

    def check(self):
        """What the source holds the target holds."""
        with open(self.source, "rb") as one, open(self.target, "rb") as other:
            for extent in list(data_extents(one.fileno(), SIZE)):
                for start in range(extent.offset, extent.end, 64 * MIB):
                    size = min(64 * MIB, extent.end - start)
                    assert os.pread(one.fileno(), size, start) == os.pread(other.fileno(), size, start), f"at {start}"

    def close(self):
        self.volume.close()
        self.local.join()


@pytest.fixture
def hinted(huge_tmpfs):
    backing, point = huge_tmpfs / "hints.xfs", huge_tmpfs / "hints"
    backing.touch()
    os.truncate(backing, 4 * SIZE)
    point.mkdir()
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", backing], check=True)
    subprocess.run(["mount", "-o", "loop", backing, point], check=True)
    made = Hinted(Path(point))
    yield made
    made.close()
    subprocess.run(["umount", point], check=True)
    backing.unlink()
    point.rmdir()


def test_a_run_reads_what_has_changed(hinted, benchmark):
    fill_file(hinted.source, DATA, seed=1)
    _report, seconds = hinted.run()
    add_row(figure_row("", f"first run of {SIZE >> 30} GiB with {DATA // MIB} MiB of data", [seconds], unit="s"))
    for pattern, piece in PATTERNS.items():
        hinted.change(piece, 0, DATA)
        measured(hinted, f"{CHANGED // MIB} MiB changed, {pattern}")
    hinted.change(MIB, DATA, SIZE)
    measured(hinted, f"{CHANGED // MIB} MiB written to holes, runs of 1 MiB")
    report, seconds = hinted.run()
    add_row(figure_row("", "nothing changed: MiB read", [report.read / MIB], unit="MiB", note=f"{seconds:.2f} s"))
    hinted.check()
    benchmark(lambda: None)


def measured(hinted, case):
    report, seconds = hinted.run()
    assert report.hints["state"] == "used" and report.changed == CHANGED, report
    note = f"{seconds:.2f} s; {report.hints['named'] / MIB:.1f} MiB named, {report.hints['sampled'] / MIB:.1f} MiB sampled"
    row = add_row(figure_row("", f"{case}: read / changed", [report.read_per_changed], first=1.2, goal=1.1, note=note))
    assert row.ours <= 1.2
