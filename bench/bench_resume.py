"""A full copy that is stopped in the middle and started again, against one that is not: its time, and what was read and sent in all."""

import contextlib
import itertools
import os
import shutil
import subprocess
import threading
import time

import pytest
from content import same_content
from flow.harness import Site
from measure import FULL, MIB, Sample, fill_file, rate

from qrep._native.bucket import Bucket
from qrep.errors import Interrupted
from qrep.volumes.none import Live
from qrep.volumes.reflink import Reflink

SIZE, GRANULE = (512 * MIB, 8 * MIB) if FULL else (64 * MIB, MIB)


class Copies:
    """Copies of one source to one target, each from nothing. backend: makes the source's snapshots."""

    def __init__(self, source, target, directory, backend):
        self._source, self._target, self._directory, self._backend = source, target, directory, backend
        self._numbers = itertools.count()

    @contextlib.contextmanager
    def _site(self):
        directory = self._directory / f"run-{next(self._numbers)}"
        directory.mkdir()
        with Site(directory, self._source, self._target, granule_size=GRANULE) as site:
            yield site
        shutil.rmtree(directory)

    def whole(self):
        with self._site() as site:
            return rate(lambda: site.run(backend=self._backend).read)

    def cut(self):
        """Stopped once half of it was looked at, then run to its end. Where the machine kept us from stopping it in time, again, and slower."""
        for limit in (0, SIZE, SIZE // 4):
            with self._site() as site:
                site.local._bucket = Bucket(limit)
                if sample := self._stop_and_resume(site):
                    return sample
        pytest.fail("the run had always ended before it was stopped")

    def _stop_and_resume(self, site):
        run, ended = site.make_run(backend=self._backend), threading.Event()

        def stop_at_half():
            while not ended.wait(0.002):
                if run.progress()["percent"] >= 50:
                    run.stop()
                    return

        watcher = threading.Thread(target=stop_at_half)
        started = time.perf_counter()
        watcher.start()
        try:
            run.run()
            return None
        except Interrupted:
            first = run.progress()
        finally:
            ended.set()
            watcher.join()
        site.local._bucket = None
        report = site.run(backend=self._backend)
        seconds = time.perf_counter() - started
        assert report.resumed
        return Sample(SIZE / seconds, wire=(first["sent"] + report.sent) / SIZE, read=(first["read"] + report.read) / SIZE)


def compare_cut(compare, case, copies):
    row = compare("", f"{case}, stopped at half / not stopped", copies.cut, copies.whole, family="resume", first=0.6, goal=0.9)
    # What was in flight is sent again, not what was applied: with nothing kept it would be 1.5. A small volume may be in flight as a whole.
    assert not FULL or row.figures["wire"] < 1.4


def test_a_resumed_copy_of_a_live_device(compare, memory_device, tmp_path):
    """Nobody froze it, so it is read again from the beginning, and what has been applied is not sent."""
    source, target = memory_device(SIZE), memory_device(SIZE, "zero")
    compare_cut(compare, "live device", Copies(source, target, tmp_path, Live()))
    assert same_content(source, target)


def test_a_resumed_copy_of_a_frozen_image(compare, memory_device, tmp_path):
    """An image on XFS, of which a clone is kept until its generation is committed: what has been applied is neither read nor sent."""
    disk, target, point = memory_device(2 * SIZE + 512 * MIB, None), memory_device(SIZE, "zero"), tmp_path / "xfs"
    subprocess.run(["mkfs.xfs", "-q", "-f", "-m", "reflink=1", disk], check=True)
    point.mkdir()
    subprocess.run(["mount", disk, point], check=True)
    try:
        source = point / "source.img"
        source.touch()
        os.truncate(source, SIZE)
        fill_file(source, SIZE, 1)
        compare_cut(compare, "frozen image", Copies(source, target, tmp_path, Reflink()))
        assert same_content(source, target)
    finally:
        subprocess.run(["umount", point], check=True)
