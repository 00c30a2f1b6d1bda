"""The time zone that schedules are read in: the one that is configured, else the system's."""

import os
import zoneinfo

from qrep.errors import ConfigError, UsageError

LOCALTIME = "/etc/localtime"
DATABASE = "/zoneinfo/"  # what comes after it in a path is a zone's name
HINT = "write an IANA name such as Europe/Berlin or UTC"


def load(name):
    """The ZoneInfo of an IANA name. Raises UsageError. The PyPI package tzdata serves machines without a zone database."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a directory such as "Europe", a name too long for a path
        raise UsageError(f"{name[:80]!r} is no time zone", hint=_meant(name)) from None


def _meant(name):
    import difflib

    known = zoneinfo.available_timezones()
    near = difflib.get_close_matches(name, known, 1) or [zone for zone in sorted(known) if zone.lower().endswith(f"/{name.lower().replace(' ', '_')}")]
    return f"did you mean {near[0]}?" if near else HINT


def of_node(name, environment=os.environ, localtime=LOCALTIME):
    """(name, ZoneInfo) of the setting node.time_zone; "": of TZ, else of /etc/localtime, else UTC. Raises ConfigError, UsageError."""
    if name:
        return name, load(name)
    wanted = environment.get("TZ", "").removeprefix(":")
    if wanted and not wanted.startswith("/"):
        try:
            return wanted, load(wanted)
        except UsageError as error:
            raise ConfigError(f"TZ: {error.message}", hint="set node.time_zone in qrep.toml to an IANA name such as Europe/Berlin") from error
    return _of_file(wanted or localtime)


def _of_file(path):
    """A zone file: by its name where it lies in, or is a link into, a zone database; else by its content."""
    real = os.path.realpath(path)
    _place, found, name = real.rpartition(DATABASE)
    if found and name in zoneinfo.available_timezones():
        return name, load(name)
    try:
        with open(real, "rb") as file:
            return "local", zoneinfo.ZoneInfo.from_file(file, "local")
    except FileNotFoundError:
        return "UTC", load("UTC")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a time zone: {error}", hint="set node.time_zone in qrep.toml") from error
