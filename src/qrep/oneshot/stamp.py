"""Was a device written since we let go of it? Nobody holds the target of a one-shot copy between two runs, as an agent would.

A stamp is taken when the device was closed. Later it tells SAME: nobody wrote; WRITTEN: somebody did; UNKNOWN: it cannot be said,
as after a reboot. What the kernel does not count against a device, a write through another layer, is not seen.
"""

import os

SAME, WRITTEN, UNKNOWN = "same", "written", "unknown"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
# Of /sys/.../stat: writes, sectors written, discards (Documentation/block/stat.rst).
_COUNTERS = (4, 6, 11)


def take(info):
    """The stamp of a DeviceInfo as it is now; plain JSON types."""
    if info.kind == "file":
        status = os.stat(info.real_path)
        return {"kind": "file", "size": status.st_size, "modified_ns": status.st_mtime_ns, "changed_ns": status.st_ctime_ns}
    with open(_BOOT_ID) as file:
        boot = file.read().strip()
    directory = os.path.realpath("/sys/dev/block/{}:{}".format(*info.device_number))
    if os.path.exists(f"{directory}/partition"):
        directory = os.path.dirname(directory)  # what is written through the whole disk is counted there only
    with open(f"{directory}/stat") as file:
        counted = file.read().split()
    counters = [int(counted[index]) for index in _COUNTERS if index < len(counted)]
    return {"kind": "block", "boot": boot, "attached": info.disk_sequence, "counters": counters}


def compare(stored, now):
    """SAME, WRITTEN or UNKNOWN. stored: an earlier stamp of this device, or None."""
    if stored == now:
        return SAME
    if not isinstance(stored, dict) or stored.get("kind") != now["kind"]:
        return UNKNOWN
    if now["kind"] == "block" and (stored.get("boot"), stored.get("attached")) != (now["boot"], now["attached"]):
        return UNKNOWN
    return WRITTEN
