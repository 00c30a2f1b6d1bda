"""The states that a crash may leave at each place of a recorded log, as contents of files to be put down and recovered.

Only files that recovery reads are told apart: the device, the superblock, the undo files, the target's maps and what is in its directory. The pages of leaf values
(`leaves`) are never flushed, and recovery does not look at them; they and the source's own files are drawn for the states on which a whole run follows.
"""

import itertools
from typing import NamedTuple

from crash import recorder as log
from crash.model import ALL, NONE, SECTOR, content, packed, sizes, tears, unpacked

DEVICE, RECORDS, LEAVES = "device", ("target/", "groups/"), "leaves"
SUBSETS_MAX = 10  # writes of which all subsets are looked at


class Place(NamedTuple):
    """Of one position in a log: number of the record, its scenes.Step, and of each part that is not certain what it may be."""

    at: int
    step: object
    files: dict  # {node: [content id]} of every file that may be seen
    folders: list  # [(path, [names])]
    complete: bool  # these are all contents that the files may have, each write lost, there, or torn in one of model.tears()
    shorn: tuple = ()  # (node, [content id]): what else the file holds whose write the crash came into


class Contents:
    """Contents of files, each once: number <-> model.packed()."""

    def __init__(self):
        self.all, self._known = [], {}

    def number(self, one):
        found = self._known.get(one)
        if found is None:
            found = self._known[one] = len(self.all)
            self.all.append(one)
        return found

    def read(self, number):
        """(((offset, bytes), ...), size)."""
        return unpacked(self.all[number])


def choices(file, limit, chance):
    """(contents that a crash may leave of a file, whether they are all). Every write is lost, there, or torn in one of its ways, each by itself; where
    that are more than `limit`: all subsets of whole writes, each with one of them torn, and then any sectors of any."""
    if not file.changes:
        return [content(file, (), file.durable_size)], True
    ways = [[NONE, ALL, *tears(change)] for change in file.changes]
    count = 1
    for way in ways:
        count *= len(way)
    found = {}

    def take(kept):
        for size in sizes(file, kept):
            found[content(file, kept, size)] = None

    if count <= limit:
        for kept in itertools.product(*ways):
            take(kept)
        return list(found), True
    latest = len(ways) - SUBSETS_MAX
    whole = [(*(ALL,) * latest, *rest) for rest in itertools.product((ALL, NONE), repeat=min(len(ways), SUBSETS_MAX))]
    for kept in whole[:limit]:
        take(kept)
    for kept in whole:
        for number, way in enumerate(ways):
            if kept[number] is ALL:
                for torn in way[2:]:
                    if len(found) >= limit // 2:
                        break
                    take((*kept[:number], torn, *kept[number + 1 :]))
    tries = 2 * limit
    while len(found) < limit and tries:
        tries -= 1
        keep = chance.choice((0.1, 0.5, 0.9))
        take(tuple([number for number in change.sectors if chance.random() < keep] or NONE for change in file.changes))
    return list(found), False


def shorn(file, chance):
    """Contents of a file whose last write was under way: a sector of it is half of what it was to be, or nonsense; beside all or nothing of what was
    written before."""
    *earlier, last = file.changes
    for number in sorted({min(last.sectors), max(last.sectors)}):
        old, new = file.durable_sectors.get(number, bytes(SECTOR)), last.sectors[number]
        for sector in (new[: SECTOR // 2] + old[SECTOR // 2 :], chance.randbytes(SECTOR)):
            for kept in (ALL, NONE):
                sectors = dict(file.durable_sectors)
                for change in earlier if kept is ALL else ():
                    sectors.update(change.sectors)
                yield packed({**sectors, **last.sectors, number: sector}, last.size)


def drawn(file, chance):
    """One of the contents that a crash may leave of a file."""
    keep = chance.choice((0.0, 0.5, 1.0, 1.0))
    kept = tuple(
        (ALL if chance.random() < keep else NONE) if chance.random() < 0.5 else [number for number in change.sectors if chance.random() < keep] or NONE
        for change in file.changes
    )
    return content(file, kept, chance.choice(sizes(file, kept)))


def others(world, contents, chance):
    """{path: content id} of what recovery does not look at and a run does, as a crash may leave it."""
    found = {}
    for folder in world.folders.values():
        if folder.path.startswith("sources/"):
            for name, node in chance.choice(folder.versions()).items():
                found[folder.path + name] = contents.number(drawn(world.files[node], chance))
        elif LEAVES in folder.names:
            found[folder.path + LEAVES] = contents.number(drawn(world.files[folder.names[LEAVES]], chance))
    return found


class Places:
    """Walks over a log. limit: how many contents of one file are told apart at one place."""

    def __init__(self, contents, limit, chance):
        self.contents, self.limit, self.chance = contents, limit, chance
        self._known = {}  # {node: (version, [content id], whether all)}

    def of_file(self, node, file):
        known = self._known.get(node)
        if known is None or known[0] != file.version:
            found, whole = choices(file, self.limit, self.chance)
            known = self._known[node] = file.version, [self.contents.number(one) for one in found], whole
        return known[1]

    def walk(self, world, records, steps, first=0):
        """A Place for each record from `first` on after which something else may be left than before it."""
        before = None
        for at, record in enumerate(records):
            if record.kind:
                world.apply(record)
            if at >= first:
                place = self.look(world, at, steps[at])
                now = (place.step, {node: id(found) for node, found in place.files.items()}, [(path, len(versions), id(versions[0])) for path, versions in place.folders])
                if now != before:
                    before = now
                    if record.kind == log.WRITE and record.node in place.files:
                        place = place._replace(shorn=(record.node, [self.contents.number(one) for one in shorn(world.files[record.node], self.chance)]))
                    yield place

    def look(self, world, at, step):
        folders, files = [], {}
        for folder in world.folders.values():
            if folder.path == "" or folder.path.startswith(RECORDS):
                versions = folder.versions()
                folders.append((folder.path, versions))
                for names in versions:
                    for name, node in names.items():
                        if name != LEAVES and (folder.path or name == DEVICE) and node not in files:
                            files[node] = self.of_file(node, world.files[node])
        return Place(at, step, files, folders, all(self._known[node][2] for node in files))


def states(place, limit, chance):
    """(files, whether that is all): {path: content id} of the states of a place, no more than `limit`: then all of each part while the others are as
    they are durable and as they were last written, and the rest drawn."""
    parts = [range(len(versions)) for _path, versions in place.folders] + [range(len(found)) for found in place.files.values()]
    count = 1
    for part in parts:
        count *= len(part)
    extra = []
    if place.shorn:
        node, found = place.shorn
        for base in (0, -1):
            extra += [_state(place._replace(files={**place.files, node: [one]}), [0 if at == len(place.folders) + list(place.files).index(node) else part[base] for at, part in enumerate(parts)]) for one in found]
    if count <= limit:
        return [_state(place, chosen) for chosen in itertools.product(*parts)] + extra, place.complete
    picked = {}
    for base in (0, -1):
        corner = [part[base] for part in parts]
        for number, part in enumerate(parts):
            for one in part if len(part) <= limit // 4 else chance.sample(part, limit // 4):
                picked[(*corner[:number], one, *corner[number + 1 :])] = None
    for _ in range(2 * limit):
        if len(picked) >= limit:
            break
        picked[tuple(chance.choice(part) for part in parts)] = None
    return [_state(place, chosen) for chosen in itertools.islice(picked, limit)] + extra, False


def _state(place, chosen):
    count, nodes = len(place.folders), dict(zip(place.files, chosen[len(place.folders) :], strict=True))
    found = {}
    for (path, versions), version in zip(place.folders, chosen[:count], strict=True):
        for name, node in versions[version].items():
            if node in nodes:
                found[path + name] = place.files[node][nodes[node]]
    return found
