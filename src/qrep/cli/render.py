"""Values as people read them: tables, times, lag. Sizes and rates are `qrep.units`'s."""

import os
import sys
from datetime import datetime

from qrep import units


def table(header, rows):
    """Left-aligned columns under a header; the last column is not padded. Rows are sequences of what str() takes."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def colour(text, code, stream=None):
    """`text` in an SGR colour when the stream is a terminal and NO_COLOR is not set."""
    if os.environ.get("NO_COLOR") or not (stream or sys.stdout).isatty():
        return text
    return f"\033[{code}m{text}\033[0m"


def when(stamp, precise=False):
    """An ISO time with zone in local time, to the minute or the second; "-" for none."""
    if not stamp:
        return "-"
    return datetime.fromisoformat(stamp).astimezone().strftime("%Y-%m-%dT%H:%M:%S" if precise else "%Y-%m-%d %H:%M")


def when_there(stamp):
    """An ISO time with zone as the clock shows it there, to the minute, or to the second where it is not a full minute; "-" for none."""
    return "-" if not stamp else stamp[:19].replace("T", " ").removesuffix(":00")


def lag(seconds):
    return "-" if seconds is None else units.format_duration(seconds)
