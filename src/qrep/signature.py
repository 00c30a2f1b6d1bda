"""What lies on a device, by the low-level probe of util-linux's blkid. Asked once, when a device becomes a target."""

import os

TIMEOUT_S = 30


class CannotProbe(Exception):
    """blkid is missing or failed, so nobody knows what is there; the text says why."""


def probe(path):
    """What the device carries, in words (`filesystem ext4 labelled 'db'`), "" if nothing is recognised.

    path: absolute. Raises CannotProbe.
    """
    tags = _tags(path)
    return "several signatures that contradict each other (see wipefs)" if tags is None else describe(tags)


def mark(path):
    """What tells the content of a device from others of its kind, its type and uuid; "" if there is none, or not one alone.

    path: absolute. Raises CannotProbe.
    """
    tags = _tags(path) or {}
    kind, uuid = ("TYPE", "UUID") if "TYPE" in tags else ("PTTYPE", "PTUUID")
    return f"{tags[kind]} {tags[uuid]}" if kind in tags and tags.get(uuid) else ""


def _tags(path):
    """blkid's tags of the device, None if it finds several signatures."""
    import shutil  # both only here: nothing else of the command line's start needs them
    import subprocess

    blkid = shutil.which("blkid", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if not blkid:
        raise CannotProbe("blkid (util-linux) is not installed")
    try:
        result = subprocess.run(
            [blkid, "--probe", "--output", "export", path],
            capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as err:
        raise CannotProbe(f"blkid did not answer within {TIMEOUT_S} s") from err
    # Exit codes of blkid(8): 0 found, 2 nothing found (or cannot be identified), 4 usage or other error, 8 ambivalent.
    if result.returncode == 8:
        return None
    if result.returncode == 2 and not result.stderr.strip():
        return {}
    if result.returncode != 0:
        raise CannotProbe(f"blkid failed (exit {result.returncode}): {result.stderr.strip() or 'no message'}")
    return dict(line.split("=", 1) for line in result.stdout.splitlines() if "=" in line)


def describe(tags):
    """Words for blkid's tags; a partition's entry in the table of its disk (PART_ENTRY_*) is not content."""
    if "TYPE" in tags:
        kind = "filesystem" if tags.get("USAGE") == "filesystem" else "signature"
        label = tags.get("LABEL", "").replace("\\", "")  # blkid escapes what a shell would trip over
        return f"{kind} {tags['TYPE']}" + (f" labelled '{label}'" if label else "")
    return f"partition table {tags['PTTYPE']}" if "PTTYPE" in tags else ""
