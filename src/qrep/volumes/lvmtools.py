"""The LVM commands: called without a question, in one language, for a limited time; reports are JSON, sizes are bytes.

A command that changes something is never killed by force: while it has a device suspended, its death would stop all I/O to it for good.
It blocks signals by itself at that time; one that takes too long is asked to end (SIGTERM) and then left to itself.
"""

import json
import os
import re
import shutil
import signal
import subprocess
from typing import NamedTuple

from qrep.volumes.base import SnapshotError

PLACES = "/usr/sbin:/sbin:/usr/bin:/bin"  # where the commands are, besides PATH: that of a user has no sbin
REPORT_S, CHANGE_S = 15.0, 60.0
# No copies of the metadata below /etc/lvm: they would wait for a filesystem that is frozen at that moment.
SETTINGS = "backup{backup=0 archive=0}"
FIELDS = (
    "vg_name,lv_name,vg_uuid,lv_uuid,lv_size,lv_layout,lv_role,lv_attr,lv_tags,lv_dm_path,lv_active,origin_uuid,pool_lv,pool_lv_uuid,vg_free,"
    "vg_extent_size,thin_id,origin_size"
)
_UUID = (6, 4, 4, 4, 4, 4, 6)


class LogicalVolume(NamedTuple):
    """One line of `lvs`. size, vg_free, extent: bytes."""

    vg: str
    name: str
    vg_uuid: str
    uuid: str
    size: int
    layout: frozenset
    role: frozenset
    attributes: str
    tags: frozenset
    path: str  # below /dev/mapper
    active: bool
    origin_uuid: str
    pool: str  # of a thin volume
    pool_uuid: str
    vg_free: int
    extent: int
    thin_id: int | None
    origin_size: int  # of a classic snapshot, whose own size is that of its space; else 0

    @property
    def full_name(self):
        return f"{self.vg}/{self.name}"

    def tag(self, key):
        """The value of a tag KEY=VALUE, "" if it has none."""
        return next((tag.partition("=")[2] for tag in self.tags if tag.startswith(f"{key}=")), "")


def which(name):
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{PLACES}")


def missing(*names):
    """The first of these commands that is not installed, "" if all are."""
    return next((name for name in names if not which(name)), "")


def call(*words, seconds=CHANGE_S, kill=False):
    """Run a command; what it printed. kill: it only looks, so it may be killed. Raises SnapshotError: code lvm, or lvm-timeout."""
    path = which(words[0])
    if path is None:
        raise SnapshotError(f"{words[0]} is not installed", code="lvm", hint="apt install lvm2 thin-provisioning-tools")
    environment = {**os.environ, "LC_ALL": "C", "LANGUAGE": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"}
    process = subprocess.Popen(
        [path, *words[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, start_new_session=True,
        encoding="utf-8", errors="replace",
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            process.communicate(timeout=5)
        except subprocess.TimeoutExpired:  # it does not end: waiting for a device, or in the middle of a change
            process.stdout.close()
            process.stderr.close()
        raise SnapshotError(
            f"{words[0]} took more than {seconds:g} s", code="lvm-timeout", hint="does another LVM command hold the volume group? see ps and lvs"
        ) from None
    if process.returncode:
        said = [line.strip() for line in err.splitlines() if line.strip() and not line.strip().startswith(("WARNING", "Run `"))]
        raise SnapshotError(f"{words[0]}: {said[-1] if said else f'exit {process.returncode}'}", code="lvm")
    return out


def report(select):
    """The LogicalVolumes that a selection (`man lvmreport`) names, hidden ones too."""
    out = call(
        "lvs", "--all", "--config", SETTINGS, "--reportformat", "json", "--units", "b", "--nosuffix", "--options", FIELDS, "--select", select,
        seconds=REPORT_S, kill=True,
    )  # fmt: skip
    try:
        rows = json.loads(out)["report"][0]["lv"]
        return [_parsed(row) for row in rows]
    except (ValueError, LookupError, TypeError, AttributeError) as err:
        raise SnapshotError(f"lvs: its report cannot be read: {err!r}", code="lvm") from err


def _parsed(row):
    def words(key):
        return frozenset(word for word in row[key].split(",") if word)

    return LogicalVolume(
        vg=row["vg_name"], name=row["lv_name"].strip("[]"), vg_uuid=row["vg_uuid"], uuid=row["lv_uuid"], size=int(row["lv_size"]),
        layout=words("lv_layout"), role=words("lv_role"), attributes=row["lv_attr"], tags=words("lv_tags"), path=row["lv_dm_path"],
        active=row["lv_active"] == "active", origin_uuid=row["origin_uuid"], pool=row["pool_lv"].strip("[]"), pool_uuid=row["pool_lv_uuid"],
        vg_free=int(row["vg_free"]), extent=int(row["vg_extent_size"]), thin_id=int(row["thin_id"]) if row["thin_id"] else None,
        origin_size=int(row["origin_size"] or 0),
    )  # fmt: skip


def of_device(device):
    """The LogicalVolume that a DeviceInfo is. Raises SnapshotError, whose message is the reason why it is none."""
    match = re.fullmatch(r"LVM-([0-9A-Za-z]{32})([0-9A-Za-z]{32})", device.dm_uuid)
    if match is None:
        raise SnapshotError(f"{device.path} is not a logical volume")
    if name := missing("lvs", "lvcreate", "lvremove", "lvchange", "dmsetup"):
        raise SnapshotError(f"{name} is not installed")
    vg_uuid, lv_uuid = map(_dashed, match.groups())
    found = report(f'vg_uuid="{vg_uuid}" && lv_uuid="{lv_uuid}"')
    if len(found) != 1:
        raise SnapshotError(f"{device.path}: LVM does not know logical volume {lv_uuid}")
    return found[0]


def status(path, kind):
    """The words of `dmsetup status` of a device behind its type, which must be `kind`. path: below /dev/mapper."""
    return _told(path, kind, "status", "--noflush")


def external_origin(path):
    """MAJOR:MINOR of the device that a thin one is read from where it has no blocks; "" if that reads as zeroes. Its table knows: the third word of
    the target is that device. Raises SnapshotError of one that is not active, or is a layer over the thin one (an origin itself)."""
    words = _told(path, "thin", "table")
    if len(words) not in (2, 3):
        raise SnapshotError(f"dmsetup: {path}: a table of {len(words)} words", code="lvm")
    return "".join(words[2:])


def _told(path, kind, *question):
    out = call("dmsetup", *question, os.path.basename(path), seconds=REPORT_S, kill=True)
    words = out.split()
    if len(words) < 4 or words[2] != kind:
        raise SnapshotError(f"dmsetup: {path} is no {kind}: {out.strip()[:80]!r}", code="lvm")
    return words[3:]


def path_of(vg, name):
    """Where the device-mapper shows a logical volume."""
    return f"/dev/mapper/{vg.replace('-', '--')}-{name.replace('-', '--')}"


def pair(text):
    """(used, total) of a USED/TOTAL."""
    used, slash, total = text.partition("/")
    if not slash or not used.isdigit() or not total.isdigit() or int(total) == 0:
        raise SnapshotError(f"dmsetup: {text!r} is no part of a whole", code="lvm")
    return int(used), int(total)


def _dashed(uuid):
    parts, at = [], 0
    for size in _UUID:
        parts.append(uuid[at : at + size])
        at += size
    return "-".join(parts)


class Group(NamedTuple):
    """A volume group. free, extent: bytes. pools: names of its thin pools."""

    name: str
    free: int
    extent: int
    pools: tuple


def group(name):
    """The Group of that name, None if there is none. Raises SnapshotError."""
    if not re.fullmatch(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]*", name, re.ASCII):
        return None
    out = call(
        "vgs", "--config", SETTINGS, "--reportformat", "json", "--units", "b", "--nosuffix", "--options", "vg_name,vg_free,vg_extent_size",
        "--select", f'vg_name="{name}"', seconds=REPORT_S, kill=True,
    )  # fmt: skip
    try:
        rows = [(int(row["vg_free"]), int(row["vg_extent_size"])) for row in json.loads(out)["report"][0]["vg"]]
    except (ValueError, LookupError, TypeError) as err:
        raise SnapshotError(f"vgs: its report cannot be read: {err!r}", code="lvm") from err
    if len(rows) != 1:
        return None
    pools = [volume.name for volume in report(f'vg_name="{name}"') if {"thin", "pool"} <= volume.layout]
    return Group(name, *rows[0], tuple(sorted(pools)))
