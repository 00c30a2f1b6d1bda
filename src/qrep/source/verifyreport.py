"""What a verify has come to: which leaves differ, on whose side the fault lies, and what of it was healed."""

from dataclasses import dataclass, field

from qrep.digestmap import DIGEST_SIZE
from qrep.rehash import own_page


@dataclass
class Result:
    """differs: {leaf: value of what the target's device holds} where that is not what the source's map says. device: of these, the leaves that
    the target's own map contradicts, too (damage); maps: leaves of which the two maps say different things; source: {leaf: value} of the frozen
    image where it is not what the map says. granules, source_granules: in which something differs and nobody knows the leaves. unreadable:
    {"target", "source"}: [(offset, size)]. stale_map: leaves of which only the target's map is wrong, its device is not; source_map: {leaf: value}
    of which only the source's map is wrong: its frozen image and the target's device hold the same."""

    geometry: object
    leaves_per_granule: int
    differs: dict = field(default_factory=dict)
    device: set = field(default_factory=set)
    maps: set = field(default_factory=set)
    stale_map: set = field(default_factory=set)
    source_map: dict = field(default_factory=dict)
    source: dict = field(default_factory=dict)
    granules: set = field(default_factory=set)
    source_granules: set = field(default_factory=set)
    unreadable: dict = field(default_factory=dict)

    def to_put_right(self):
        """({leaf: what the target holds}, granules): for the next run. A leaf of which only the target's map is wrong is sent again, too, by
        saying that it holds what nothing has for its value."""
        granules = set(self.granules)
        for offset, size in self.unreadable["target"]:
            granules.update(range(offset // self.geometry.granule_size, (offset + size - 1) // self.geometry.granule_size + 1))
        leaves = dict.fromkeys(self.stale_map, bytes(DIGEST_SIZE)) | self.differs | self.source_map
        return {leaf: value for leaf, value in leaves.items() if leaf // self.leaves_per_granule not in granules}, granules

    def extents(self, leaves, granules=(), places=()):
        """[{offset, size}] of leaves, whole granules and places together, ascending, neighbours joined, never beyond the end of the volume."""
        geometry = self.geometry
        ranges = [(leaf * geometry.leaf_size, geometry.leaf_size) for leaf in leaves]
        ranges += [(granule * geometry.granule_size, geometry.granule_size) for granule in granules]
        joined = []
        for offset, size in sorted([*ranges, *map(tuple, places)]):
            end = min(offset + size, geometry.size)
            if joined and joined[-1]["offset"] + joined[-1]["size"] >= offset:
                joined[-1]["size"] = max(joined[-1]["size"], end - joined[-1]["offset"])
            elif end > offset:
                joined.append({"offset": offset, "size": end - offset})
        return joined


def judge(tree, position, descent, pages):
    """The Result. tree: of the source's map. descent: over both maps. pages: {granule: leaf values of the target's device} of granules that neither
    the target's reading nor the descent could tell leaf by leaf; None: it was not asked for."""
    level, geometry = tree.granule_level, tree.geometry
    result = Result(geometry, 1 << level, unreadable={"target": position.target.unreadable, "source": position.source.unreadable})
    said = dict(descent.leaves)  # {leaf: what the target's map says}
    result.maps = set(said)
    for first, count in descent.spans:
        result.granules.update(range(first >> level, ((min(first + count, tree.leaves) - 1) >> level) + 1))
    held = dict(said)  # what the device holds: what its map says, unless it was found to be something else
    held.update(position.target.bad)
    for granule, page in pages.items():
        ours = own_page(tree, granule) if page is not None else None
        if ours is None:
            result.granules.add(granule)
            continue
        first = granule << level
        for place in range(0, len(page), DIGEST_SIZE):
            leaf = first + place // DIGEST_SIZE
            held.pop(leaf, None)
            if page[place : place + DIGEST_SIZE] != ours[place : place + DIGEST_SIZE]:
                held[leaf] = bytes(page[place : place + DIGEST_SIZE])
                result.device.add(leaf)
    for leaf, value in held.items():
        ours = value_of(tree, leaf)
        if ours is None:
            result.granules.add(leaf >> level)
        elif value != ours:
            result.differs[leaf] = value
        else:  # the device is right, so it is its map that is not
            result.stale_map.add(leaf)
    result.source = dict(position.source.bad)
    # Both devices and the target's map against the source's. Where the maps agree, both devices are wrong, however alike.
    for leaf in [leaf for leaf in said if leaf not in position.target.bad and result.differs.get(leaf) == result.source.get(leaf) is not None]:
        result.source_map[leaf] = result.differs.pop(leaf)
        del result.source[leaf]
    result.device |= set(position.target.bad) & set(result.differs)
    result.source_granules = set(position.source.whole)
    return result


def value_of(tree, leaf):
    """What our map says of a leaf."""
    granule = leaf >> tree.granule_level
    page = tree.page(granule) if tree.kinds[granule] == 1 else own_page(tree, granule)
    if page is None:
        return None
    place = (leaf - (granule << tree.granule_level)) * DIGEST_SIZE
    return bytes(page[place : place + DIGEST_SIZE])


@dataclass
class VerifyReport:
    """root: hex, what the source's map says; target_root: what the target's device holds. equal_maps: the 32 bytes of their roots agreed.
    source_read: the source's frozen image of that generation was there to be read. wire_bytes, digests, nodes: what comparing cost.
    repair: what --repair did, or None."""

    generation: str
    counter: int
    root: str | None
    target_root: str | None
    independent: bool
    geometry: object
    result: Result
    equal_maps: bool
    source_read: bool
    wire_bytes: int
    digests: int
    nodes: int
    read_target: int
    read_source: int
    resumed: bool
    repair: dict | None = None

    @property
    def ok(self):
        result = self.result
        clean = not (result.differs or result.granules or result.stale_map or result.source_map or result.source or result.source_granules)
        return clean and not any(result.unreadable.values()) and (self.root is None or self.root == self.target_root)

    @property
    def leaves(self):
        """Of the target, that differ; ascending."""
        return sorted(self.result.differs)

    def as_dict(self):
        """What the API tells. differences: of the target from what was committed; the others say whose fault it is."""
        result = self.result
        left = sorted(result.granules)
        return {
            "differences": result.extents(result.differs, left, result.unreadable["target"]),
            "target_damage": result.extents(result.device),
            "map_differences": result.extents(result.maps | result.stale_map | set(result.source_map)),
            "source_damage": result.extents(result.source, sorted(result.source_granules), result.unreadable["source"]),
            "unreadable": {end: [{"offset": offset, "size": size} for offset, size in places] for end, places in result.unreadable.items()},
            "exact": not left and not result.source_granules,
            "generation": self.generation, "counter": self.counter, "root": self.root, "target_root": self.target_root,
            "independent": self.independent, "source_read": self.source_read,
            "note": "" if self.source_read else "the source's copy of that moment is gone: only the target was read",
            "read": {"target": self.read_target, "source": self.read_source},
            "wire": {"bytes": self.wire_bytes, "digests": self.digests, "nodes": self.nodes},
            "resumed": self.resumed, "repair": self.repair,
        }  # fmt: skip
