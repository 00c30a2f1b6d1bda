"""Snapshots of ordinary logical volumes: what the volume held before a write is copied to a space of the snapshot's own.

That space is watched: one that overflows is lost at once, and reads of it fail; the volume itself never notices.
"""

from qrep import units
from qrep.volumes import lvmtools
from qrep.volumes.base import SnapshotError
from qrep.volumes.lvmsnapshot import LvmSnapshots

SECTOR = 512
LAYOUTS = {"linear", "striped", "raid", "mirror"}


class LvmCow(LvmSnapshots):
    name = "lvm-cow"
    way_out = "give it more (qrep volume set NAME --snapshot-space), or let fewer blocks change while a run reads"

    def suits(self, volume, device):
        if not volume.layout & LAYOUTS or volume.pool or "snapshot" in volume.role:
            raise SnapshotError(f"{volume.full_name} is a volume that LVM makes no snapshot of ({', '.join(sorted(volume.layout)) or 'unknown'})")
        space = self._space(volume)
        if space > volume.vg_free:
            raise SnapshotError(
                f"volume group {volume.vg} has {units.format_size(volume.vg_free)} free, a snapshot of {volume.name} is to have {units.format_size(space)}",
                code="snapshot-space", hint="a smaller snapshot_space, or a larger volume group (vgextend)",
            )  # fmt: skip
        return f"up to {units.format_size(space)} of {units.format_size(volume.vg_free)} free in {volume.vg}"

    def creation(self, volume):
        return ["--size", f"{self._space(volume)}b"]

    def spaces(self, volume):
        words = lvmtools.status(volume.path, "snapshot")
        if "/" not in words[0]:  # Invalid, Overflow, Merge failed
            raise SnapshotError(f"the snapshot {volume.full_name} is lost: {' '.join(words)}", code="snapshot-full", hint=self.way_out)
        used, total = lvmtools.pair(words[0])
        return [("its space", used * SECTOR, total * SECTOR)]

    def activate(self, volume):
        """It comes and goes with its origin."""
        for origin in lvmtools.report(f'vg_uuid="{volume.vg_uuid}" && lv_uuid="{volume.origin_uuid}"'):
            super().activate(origin)

    def _space(self, volume):
        """Whole extents. Twice the volume is more than it can ever need."""
        space = min(units.parse_share(self.options.space, volume.size), 2 * volume.size)
        return -(-space // volume.extent) * volume.extent
