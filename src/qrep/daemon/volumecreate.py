"""Storage for a new volume: a sparse image file in a directory, or a logical volume in a volume group or thin pool; then the volume itself."""

import contextlib
import os
from typing import NamedTuple

from qrep import units
from qrep.config import check_name, check_path
from qrep.crashpoint import crashpoint
from qrep.errors import NotFound, QrepError, Refused, UsageError
from qrep.volumes import lvmtools

BLOCK = 4096  # sizes are multiples of it, so that any host's loop device or disk can be as large


class Plan(NamedTuple):
    """What is to be made. kind: image, thin or linear. group, pool: of a logical volume."""

    kind: str
    device: str
    size: int
    group: str = ""
    pool: str = ""


def create(node, name, size, place, settings, dry_run=False):
    """Make the storage and the volume `name`. place: an absolute directory, VG or VG/POOL. settings: as of Volumes.add(). Returns a VOLUME, or
    what would be made. Where the volume cannot be added, the storage goes again; it was new."""
    check_name("volumes", name)
    if name in node.volumes.config.names("volumes"):
        raise Refused(f"there is a volume called {name} already", hint=f"qrep volume show {name}", code="name-taken")
    plan = plan_of(name, units.parse_size(size), place)
    if dry_run:
        return {"name": name, **plan._asdict()}
    make, unmake = (_make_image, os.unlink) if plan.kind == "image" else (_make_logical, _unmake_logical)
    make(name, plan)
    crashpoint("volume-created")
    try:
        return node.volumes.add(name, settings | {"device": plan.device})
    except BaseException:
        if name in node.volumes.config.names("volumes"):
            raise  # it is known: what failed came after
        with contextlib.suppress(OSError, QrepError):
            unmake(plan.device)
        raise


def plan_of(name, size, place):
    """The Plan, or what is in its way: NotFound, Refused, UsageError."""
    if size < 2 * BLOCK or size % BLOCK:
        raise UsageError(f"a volume of {units.exact_size(size)} cannot be made", hint=f"a multiple of {BLOCK} bytes, such as 10G")
    if place.startswith("/") and not _is_group(place):
        return _plan_image(name, size, place)
    return _plan_logical(name, size, place.removeprefix("/dev/"))


def _is_group(place):
    """Whether an absolute path is that of a volume group, as people also write it: /dev/vg0."""
    group = place.removeprefix("/dev/").partition("/")[0]
    return place.startswith("/dev/") and not lvmtools.missing("vgs", "lvs") and lvmtools.group(group) is not None


def _plan_image(name, size, place):
    check_path(place, "directory")
    if not os.path.isdir(place):
        raise NotFound(f"{place}: no such directory", hint="make it, or name a volume group", code="no-such-directory")
    path = os.path.join(place, f"{name}.img")
    if os.path.lexists(path):
        raise Refused(f"{path} is there already", hint=f"qrep volume add {name} {path} takes it as it is", code="exists")
    return Plan("image", path, size)


def _plan_logical(name, size, place):
    group_name, slash, pool = place.partition("/")
    if tool := lvmtools.missing("lvs", "vgs", "lvcreate"):
        raise UsageError(f"{tool} is not installed", hint="apt install lvm2, or give a directory for an image file: --in /srv/images")
    group = lvmtools.group(group_name)
    if group is None:
        raise NotFound(f"{group_name}: no such volume group", hint="see vgs; a directory is written with a slash, such as ./images", code="no-such-group")
    if slash and pool not in group.pools:
        raise NotFound(f"{place}: no such thin pool", hint=f"in {group_name} are: {', '.join(group.pools) or 'none'}", code="no-such-pool")
    if not slash and len(group.pools) > 1:
        raise UsageError(f"{group_name} has the thin pools {', '.join(group.pools)}", hint=f"name one of them: --in {group_name}/{group.pools[0]}")
    pool = pool or next(iter(group.pools), "")
    if lvmtools.report(f'vg_name="{group_name}" && lv_name="{name}"'):
        raise Refused(f"{group_name}/{name} is there already", hint=f"qrep volume add {name} /dev/{group_name}/{name} takes it as it is", code="exists")
    size = -(-size // group.extent) * group.extent
    if not pool and size > group.free:
        raise Refused(
            f"{group_name} has {units.format_size(group.free)} free, {name} is to have {units.format_size(size)}",
            hint=f"a smaller --size, or vgextend {group_name}", code="no-space",
        )  # fmt: skip
    return Plan("thin" if pool else "linear", f"/dev/{group_name}/{name}", size, group_name, pool)


def _make_image(name, plan):
    """A crash before the volume is known leaves an empty image, which is refused by name the next time."""
    directory = os.open(os.path.dirname(plan.device), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = os.open(plan.device, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=directory)
        try:
            os.ftruncate(fd, plan.size)
            os.fsync(fd)
            os.fsync(directory)
        except OSError:
            os.unlink(plan.device)
            raise
        finally:
            os.close(fd)
    except FileExistsError:
        raise Refused(f"{plan.device} is there already", code="exists") from None
    except OSError as err:
        raise QrepError(f"{plan.device}: {err.strerror}", hint="another directory, or a smaller --size", code="create") from err
    finally:
        os.close(directory)


def _make_logical(name, plan):
    where = ["--virtualsize", f"{plan.size}b", "--thinpool", f"{plan.group}/{plan.pool}"] if plan.kind == "thin" else ["--size", f"{plan.size}b", plan.group]
    lvmtools.call("lvcreate", "--yes", "--quiet", "--wipesignatures", "y", "--name", name, *where)


def _unmake_logical(device):
    lvmtools.call("lvremove", "--yes", "--quiet", "--force", device.removeprefix("/dev/"))
