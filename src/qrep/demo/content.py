"""Files on the demo's volume: made, changed, and remembered, so that a rolled back volume can be compared with what it was."""

import hashlib
import os
import random

MIB = 1 << 20
BIG = 6  # files of BIG_SIZE
BIG_SIZE = 36 * MIB
SMALL = 200


class Content:
    """point: where the filesystem is mounted."""

    def __init__(self, point):
        self.point = point
        self._random = random.Random(20261122)

    def _path(self, name):
        return os.path.join(self.point, name)

    def _write(self, name, data, offset=None):
        with open(self._path(name), "wb" if offset is None else "r+b") as file:
            file.seek(offset or 0)
            file.write(data)

    def make(self):
        """About 220 MiB: a few large files, many small ones."""
        os.mkdir(self._path("small"))
        for index in range(BIG):
            self._write(f"big{index}", self._random.randbytes(BIG_SIZE))
        for index in range(SMALL):
            self._write(f"small/{index}.txt", f"file {index}\n".encode() * self._random.randrange(1, 2000))
        os.sync()

    def change_a_little(self):
        """About 2 MiB, in several places: a new file, pages of a large one, a deleted and a renamed one."""
        self._write("new", self._random.randbytes(MIB))
        for _ in range(64):
            self._write("big0", self._random.randbytes(4096), self._random.randrange(BIG_SIZE // 4096) * 4096)
        os.unlink(self._path("small/0.txt"))
        os.rename(self._path("small/1.txt"), self._path("small/renamed.txt"))
        os.sync()

    def change_much(self, count):
        """Overwrite `count` large files."""
        for index in range(BIG - count, BIG):
            self._write(f"big{index}", self._random.randbytes(BIG_SIZE), 0)
        os.sync()

    def seen(self):
        return files_of(self.point)


def files_of(point):
    """{relative path: SHA-256} of every file below a mount point."""
    found = {}
    for directory, _names, files in os.walk(point):
        for name in files:
            path = os.path.join(directory, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, point)] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
