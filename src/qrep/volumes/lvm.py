"""Snapshots of thin logical volumes: they share blocks with the volume in its pool, so it is the pool that must not run full."""

import logging

from qrep import units
from qrep.volumes import lvmtools, thinmeta
from qrep.volumes.base import SnapshotError
from qrep.volumes.lvmsnapshot import LvmSnapshots
from qrep.volumes.spacewatch import is_tight

METADATA_BLOCK = 4096
log = logging.getLogger("qrep.volumes")


class LvmThin(LvmSnapshots):
    name = "lvm-thin"
    hints = True

    def suits(self, volume, device):
        if not volume.pool or "thin" not in volume.layout:
            raise SnapshotError(f"{volume.full_name} is not a thin volume")
        spaces = self.spaces(volume)
        for what, used, total in spaces:
            if is_tight(used, total):
                raise SnapshotError(f"{what} is {used / total:.0%} full", code="snapshot-full", hint=self.way_out)
        _, used, total = spaces[0]
        return f"pool {volume.vg}/{volume.pool}, {units.format_size(total - used)} free"

    def creation(self, volume):
        return ["--setactivationskip", "n", "--activate", "y"]

    way_out = "make the pool larger (lvextend), or let fewer blocks change while a run reads"

    def spaces(self, volume):
        pool = self._pool(volume)
        words = lvmtools.status(pool_path(pool), "thin-pool")
        if len(words) < 5 or "Fail" in words or "out_of_data_space" in words:
            raise SnapshotError(f"pool {pool.full_name} is out of space or has failed", code="snapshot-full", hint=self.way_out)
        metadata, data = lvmtools.pair(words[1]), lvmtools.pair(words[2])
        chunk = pool.size // data[1]
        return [
            (f"pool {pool.full_name}", data[0] * chunk, data[1] * chunk),
            (f"the metadata of pool {pool.full_name}", metadata[0] * METADATA_BLOCK, metadata[1] * METADATA_BLOCK),
        ]

    def changes(self, device, old_token, new_token):
        old, new = self._ours(old_token), self._ours(new_token)
        if old is None or new is None or old.pool_uuid != new.pool_uuid or old.size != new.size or None in (old.thin_id, new.thin_id):
            return None
        if lvmtools.external_origin(old.path) != lvmtools.external_origin(new.path):  # what neither has blocks of is not the same
            return None
        return thinmeta.differences(self._pool(new), old.thin_id, new.thin_id, new.size)

    def allocated(self, token):
        volume = self._ours(token)
        if volume is None or volume.thin_id is None:
            return None
        try:
            if origin := lvmtools.external_origin(volume.path):
                log.info("%s: what it has no blocks of is that of its external origin, device %s: all is read", volume.full_name, origin)
                return None
            return thinmeta.mapped(self._pool(volume), volume.thin_id, volume.size)
        except SnapshotError as err:  # then all of it is read, which is right as well
            log.info("%s: %s", volume.full_name, err.message)
            return None

    def never_written(self, device):
        try:
            volume = lvmtools.of_device(device)
            return bool(volume.pool) and lvmtools.status(volume.path, "thin")[0] == "0" and not lvmtools.external_origin(volume.path)
        except SnapshotError:  # not told: it may have been
            return False

    def _pool(self, volume):
        found = lvmtools.report(f'vg_uuid="{volume.vg_uuid}" && lv_uuid="{volume.pool_uuid}"')
        if len(found) != 1:
            raise SnapshotError(f"LVM does not know the pool of {volume.full_name}", code="lvm")
        return found[0]


def pool_path(pool):
    """The device that is the pool; LVM keeps the plain name for one that must not be used."""
    return f"{pool.path}-tpool"
