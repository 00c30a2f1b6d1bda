"""Views of sync points, checked against images that the test keeps, while runs commit, are given up, and are rolled back."""

import contextlib
import mmap
import os
import random
import threading
from pathlib import Path

import pytest
from flow.harness import MIB, write_at

from qrep.errors import DamagedError, NotFound, QrepError, Refused
from qrep.target.undostore import COPY_OFFSET
from qrep.target.view import Gone, PointView

SIZE = 24 * MIB


def read(view, offset, size):
    buffer = mmap.mmap(-1, size)
    view.read_into(buffer, offset)
    return buffer[:]


class Reader(threading.Thread):
    """Reads random places of a point until told to stop, and compares them with its image."""

    def __init__(self, volume, point, image, seed):
        super().__init__()
        self.view, self.image, self.dice = PointView(volume, point), image, random.Random(seed)
        self.going, self.reads, self.wrong = True, 0, None
        self.start()

    def run(self):
        try:
            going = True
            while going:  # at least once
                going = self.going
                size = self.dice.choice([4096, 65536, MIB])
                offset = self.dice.randrange(0, SIZE - size + 1, 512)
                if read(self.view, offset, size) != self.image[offset : offset + size]:
                    self.wrong = f"{size} bytes at {offset} are not as they were"
                    return
                self.reads += 1
        except Exception as err:
            self.wrong = err

    def stop(self):
        self.going = False
        self.join()
        self.view.close()
        assert self.wrong is None, self.wrong
        assert self.reads


def change(path, dice):
    for _ in range(dice.randrange(1, 12)):
        size = dice.choice([4096, 65536, 2 * MIB])
        data = bytes(size) if dice.random() < 0.3 else dice.randbytes(size)
        write_at(path, dice.randrange(0, SIZE - size, 4096), data)


def give_up_soon(volume, dice):
    """Abandon whatever run is open a moment from now."""
    return threading.Timer(dice.choice([0.01, 0.05, 0.1]), volume.abandon, args=["for a test"], kwargs={"alone": False})


def point_of(volume):
    return volume.sync_points()[0].id


@pytest.mark.parametrize("steps", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_every_retained_point_reads_as_it_was_whatever_goes_on_above_it(site, random_source, seed, steps):
    with site:
        site.run()
        volume, readers, images = site.volume, [], {}
        volume.set_undo_limit(1 << 40)  # nothing of this is to end for want of room
        images[point_of(volume)] = Path(site.target_path).read_bytes()
        for step in range(steps):
            newest = point_of(volume)
            readers.append(Reader(volume, newest, images[newest], seed + step))
            if len(readers) > 3:
                readers.pop(random_source.randrange(len(readers))).stop()
            kind = random_source.choice(["run", "run", "give up", "rollback", "delete"])
            change(site.source, random_source)
            if kind == "run":
                site.run()
            elif kind == "give up":
                timer = give_up_soon(volume, random_source)
                timer.start()
                with contextlib.suppress(QrepError):
                    site.run()
                timer.join()
                volume.abandon("for a test", alone=False)
            elif kind == "delete":
                with contextlib.suppress(Refused):  # the present one, or one that is read
                    volume.delete_point(random_source.choice([point.id for point in volume.sync_points()]))
            else:
                back = random_source.choice([point.id for point in volume.sync_points()])
                if back != newest:
                    volume.rollback(back)
            images.setdefault(point_of(volume), Path(site.target_path).read_bytes())
        for point in volume.sync_points():
            with PointView(volume, point.id) as view:
                assert read(view, 0, SIZE) == images[point.id]
        for reader in readers:
            reader.stop()


def test_a_point_that_is_not_retained_has_no_view(site):
    with site:
        site.run()
        with pytest.raises(NotFound, match="does not retain"):
            PointView(site.volume, b"\7" * 16)


def test_a_view_of_a_volume_that_is_closed_fails_and_says_so(site):
    with site:
        site.run()
        view = PointView(site.volume, point_of(site.volume))
        assert read(view, 0, 4096)
        site.volume.close()
        with pytest.raises(Gone, match="out of service"):
            read(view, 0, 4096)
        view.close()


BATCHES = 3
# Of a batch with a table of two pages: what rots, and where.
ROT = {"header": (40, b"\7"), "header-lost": (0, bytes(4096)), "table": (4096 + 8, b"\7" * 8), "payload": (8192, b"\7" * 64)}


def make_batches(site, random_source):
    """Two points with BATCHES batches between them, each a granule of 256 leaves that were data and zeroes by turns: (older, its image, newer, undo
    file, places of the batches)."""
    leaves = [12 * MIB + leaf * 4096 for leaf in range(BATCHES * MIB // 4096)]
    for offset in leaves[::2]:
        write_at(site.source, offset, random_source.randbytes(4096))
    site.run()
    older, image = point_of(site.volume), Path(site.target_path).read_bytes()
    write_at(site.source, leaves[0], random_source.randbytes(BATCHES * MIB))
    site.run()
    newer, store = point_of(site.volume), site.volume.undo
    descriptor, _header, batches = store.batches(older, newer)
    os.close(descriptor)
    return older, image, newer, Path(store.directory.path) / store.name(newer), sorted(batch.position for batch in batches)


@pytest.mark.parametrize("which", [0, 1, -1], ids=["first", "middle", "last"])
@pytest.mark.parametrize("part", ROT)
def test_a_damaged_undo_file_is_an_error_of_the_older_point_only(site, random_source, part, which):
    with site:
        older, image, newer, undo, places = make_batches(site, random_source)
        assert len(places) == BATCHES
        with PointView(site.volume, older) as view:
            assert read(view, 0, SIZE) == image
        at, rot = ROT[part]
        with open(undo, "r+b") as file:
            file.seek(places[which] + at)
            file.write(rot)
        with pytest.raises(DamagedError, match="cannot be believed"), PointView(site.volume, older) as view:
            read(view, 0, SIZE)
        with PointView(site.volume, newer) as view:
            assert read(view, 0, SIZE) == Path(site.target_path).read_bytes() != image


def test_a_point_below_an_undo_file_whose_number_of_batches_is_not_known_has_no_view(site, random_source):
    with site:
        older, _image, newer, undo, _places = make_batches(site, random_source)
        with open(undo, "r+b") as file:
            file.seek(COPY_OFFSET)
            file.write(bytes(4096))
        opened = os.listdir("/proc/self/fd")
        with pytest.raises(DamagedError, match="how many batches"):
            PointView(site.volume, older)
        assert os.listdir("/proc/self/fd") == opened
        PointView(site.volume, newer).close()


def test_reads_of_single_sectors_and_of_unaligned_buffers_are_right(site, random_source):
    with site:
        site.run()
        image = Path(site.target_path).read_bytes()
        write_at(site.source, 4096, random_source.randbytes(8192))
        site.run()
        point = site.volume.sync_points()[1].id
        with PointView(site.volume, point) as view:
            for offset in range(0, 16384, 512):
                room = bytearray(1 + 1024)
                view.read_into(memoryview(room)[1:], offset)
                assert room[1:] == image[offset : offset + 1024]
