"""Which states of its files a crash may leave, of a recorded log.

What is taken as durable, the weakest that filesystems and block devices have in common:

* Data. A write is in a volatile cache until its file is flushed (or it was asked for with O_DSYNC, and has completed). When the power goes each
  512-byte sector of it is there or is not, whatever became of the others; one that was just being written may hold nonsense. Of a sector that was
  written several times any of its contents may be the one that is there. What was written while a flush ran is not covered by it; the recording
  filesystem does one thing at a time, so a flush that is recorded comes after all the writes before it.
* Size. Of a file whose size was changed and that was not flushed, it is the one before or one of those after, whatever became of the data; what lies
  in it without data is zero.
* Names. Making, renaming and removing in a directory reach the disk in order, any number of them, until the directory is flushed; those of two
  directories know nothing of each other, nor do names and contents: a file that was renamed may have lost its data. That a directory was made is durable at once
  (they are made once in the life of a volume).
* A process that is killed loses nothing of this: what it had written stays in the cache, may be seen by the next one, and may be lost later.
"""

from typing import NamedTuple

from crash import recorder as log

SECTOR = 512
ZEROES = bytes(SECTOR)
SMALL = 1 << 17  # bytes of a file that is handled in one piece


class Change(NamedTuple):
    """One thing not yet durable that happened to a file. sectors: {number: content from then on}. size: of the file from then on."""

    sectors: dict
    size: int


class File:
    """What an inode holds: `sectors` and `size` as processes see them, `durable_sectors` and `durable_size` as a flush left them, and what lies between."""

    def __init__(self):
        self.sectors, self.size = {}, 0
        self.durable_sectors, self.durable_size = {}, 0
        self.changes = []
        self.version = 0  # changes whenever the choices do

    def change(self, sectors, size):
        self.sectors.update(sectors)
        self.size = size
        self.changes.append(Change(sectors, size))
        self.version += 1

    def flush(self):
        if self.changes:
            self.durable_sectors, self.durable_size, self.changes = dict(self.sectors), self.size, []
            self.version += 1

    def settle(self):
        """The last write is durable, whatever becomes of those before it."""
        last = self.changes.pop()
        self.durable_sectors.update(last.sectors)
        self.durable_size = max(self.durable_size, last.size)
        self.changes = [Change({number: data for number, data in each.sectors.items() if number not in last.sectors}, each.size) for each in self.changes]
        self.version += 1

    def copy(self):
        made = File()
        made.sectors, made.size = dict(self.sectors), self.size
        made.durable_sectors, made.durable_size = dict(self.durable_sectors), self.durable_size
        made.changes = list(self.changes)
        return made

    def seen(self):
        """As content(), as processes see it."""
        return packed(self.sectors, self.size)

    def durable(self):
        return packed(self.durable_sectors, self.durable_size)

    def write(self, offset, data):
        sectors, end = {}, offset + len(data)
        for number in range(offset // SECTOR, -(-end // SECTOR)):
            start = number * SECTOR
            first, last = max(offset, start), min(end, start + SECTOR)
            piece = data[first - offset : last - offset]
            if last - first < SECTOR:
                old = self.sectors.get(number, ZEROES)
                piece = old[: first - start] + piece + old[last - start :]
            sectors[number] = bytes(piece)
        self.change(sectors, max(self.size, end))

    def zero(self, offset, size):
        end, sectors = offset + size, {}
        for number in self.sectors.keys() | self.durable_sectors.keys():
            start = number * SECTOR
            first, last = max(offset, start), min(end, start + SECTOR)
            if first < last:
                old = self.sectors.get(number, ZEROES)
                sectors[number] = old[: first - start] + bytes(last - first) + old[last - start :]
        self.change(sectors, self.size)

    def resize(self, size):
        gone = {number: ZEROES for number in self.sectors if number * SECTOR >= size}
        if size % SECTOR and size // SECTOR in self.sectors:
            gone[size // SECTOR] = self.sectors[size // SECTOR][: size % SECTOR].ljust(SECTOR, b"\0")
        self.change(gone, size)


class Folder:
    """A directory: names as processes see them, as they are durable, and [(names before and after are dicts)] between."""

    def __init__(self, path):
        self.path, self.names, self.durable, self.steps = path, {}, {}, []

    def step(self):
        self.steps.append(dict(self.names))

    def flush(self):
        self.durable, self.steps = dict(self.names), []

    def versions(self):
        """Every set of names that a crash may leave, the durable one first."""
        return [self.durable, *self.steps]


class World:
    """All files of one log, as of one position in it."""

    def __init__(self):
        self.files, self.folders = {}, {log.ROOT: Folder("")}
        self.settling = None  # the File of an O_DSYNC write, which is durable when the next thing happens

    def apply(self, record):
        """Take one record in. MARK is none."""
        if self.settling is not None:
            self.settling.settle()
            self.settling = None
        kind = record.kind
        if kind == log.WRITE:
            file = self.files[record.node]
            file.write(record.offset, record.data)
            if record.durable:
                self.settling = file
        elif kind == log.ZERO:
            self.files[record.node].zero(record.offset, record.size)
        elif kind == log.SIZE:
            self.files[record.node].resize(record.size)
        elif kind == log.SYNC:
            self.files[record.node].flush()
        elif kind == log.MAKE_DIRECTORY:
            self.folders[record.node] = Folder(f"{self.folders[record.directory].path}{record.names[0]}/")
        elif kind == log.SYNC_DIRECTORY:
            self.folders[record.node].flush()
        else:
            folder = self.folders[record.directory]
            if kind == log.MAKE:
                self.files[record.node] = File()
                folder.names[record.names[0]] = record.node
            elif kind == log.REMOVE:
                del folder.names[record.names[0]]
            elif kind == log.RENAME:
                folder.names[record.names[1]] = folder.names.pop(record.names[0])
            folder.step()

    def paths(self):
        """{number: path} of what processes see now."""
        return {node: folder.path + name for folder in self.folders.values() for name, node in folder.names.items()}

    def durable(self):
        """{path: content} if nothing else is left than what is durable."""
        return {folder.path + name: self.files[node].durable() for folder in self.folders.values() for name, node in folder.durable.items()}

    def flush_all(self):
        """As after a clean shutdown."""
        self.settling = None
        for file in self.files.values():
            file.flush()
        for folder in self.folders.values():
            folder.flush()

    def as_killed(self, seen):
        """A World that goes on where a process was killed: everything it wrote may be seen, and what was not flushed may be lost still.

        seen: a World whose files have the names and contents that this one's have now; its numbers are those of the new one. What has no name any more
        keeps one of its own.
        """
        there = {path: node for node, path in seen.paths().items()}
        numbers = {node: there[path] for node, path in self.paths().items() if path in there}

        def number(node):
            return numbers.get(node, -node)

        def renumbered(names):
            return {name: number(node) for name, node in names.items()}

        made = World()
        made.files = {**seen.files, **{number(node): file.copy() for node, file in self.files.items()}}
        mine = {folder.path: folder for folder in self.folders.values()}
        for node, folder in seen.folders.items():
            new = made.folders[node] = Folder(folder.path)
            old = mine.get(folder.path, folder)
            known = renumbered if old is not folder else dict
            new.names, new.durable, new.steps = known(old.names), known(old.durable), [known(step) for step in old.steps]
        return made


# ---- what a crash may leave of one file ----

ALL, NONE = "all", "none"


def content(file, kept, size):
    """What a file holds of which `kept[i]` of change i is there: ALL, NONE or a set of sector numbers; cut off at `size` bytes. As packed()."""
    sectors = dict(file.durable_sectors)
    for change, what in zip(file.changes, kept, strict=True):
        if what is ALL:
            sectors.update(change.sectors)
        elif what is not NONE:
            sectors.update({number: change.sectors[number] for number in what})
    return packed(sectors, size)


_numbers = {}  # tuples of numbers of sectors, each of them once: most contents have those of many others


def packed(sectors, size):
    """(numbers, sectors, size) of what is not zero: equal for equal contents, and it shares the bytes with what it was made of."""
    numbers = tuple(number for number in sorted(sectors) if number * SECTOR < size and sectors[number] != ZEROES)
    found = [sectors[number] for number in numbers]
    if numbers and (numbers[-1] + 1) * SECTOR > size:
        found[-1] = found[-1][: size - numbers[-1] * SECTOR].ljust(SECTOR, b"\0") if size <= SMALL else found[-1][: size - numbers[-1] * SECTOR]
    return _numbers.setdefault(numbers, numbers), tuple(found), size


def unpacked(content):
    """(((offset, bytes), ...), size): sectors that follow each other are together, and a small file is in one piece."""
    numbers, sectors, size = content
    if size <= SMALL:
        parts = [ZEROES] * -(-size // SECTOR)
        for number, sector in zip(numbers, sectors, strict=True):
            parts[number] = sector
        return ((0, b"".join(parts)[:size]),), size
    found, first = [], 0
    for at in range(1, len(numbers) + 1):
        if at == len(numbers) or numbers[at] != numbers[at - 1] + 1:
            found.append((numbers[first] * SECTOR, b"".join(sectors[first:at])))
            first = at
    return tuple(found), size


def sizes(file, kept):
    """The sizes a file may have: that of the last change that is there, or whatever the journal has."""
    there = file.durable_size
    for change, what in zip(file.changes, kept, strict=True):
        if what is not NONE:
            there = change.size
    return [there, *({file.durable_size, file.size} - {there})]


def tears(change):
    """Every way in which one write may be torn: its first sectors, its last, one that is there alone, one that is missing."""
    numbers = sorted(change.sectors)
    for at in range(1, len(numbers)):
        yield numbers[:at]
        yield numbers[at:]
    if len(numbers) > 2:
        for at in range(1, len(numbers) - 1):
            yield numbers[at : at + 1]
            yield numbers[:at] + numbers[at + 1 :]
