"""When each request to a block device was made and when it ended, from the text of the kernel's block tracepoints.

dm-log-writes tells what was written, and of one device in which order it became durable. What was durable on one device when something was written
to another it does not tell; block_bio_queue and block_bio_complete of both devices in one trace do. Time is the number of the line.
"""

import dataclasses
import math
import re

EVENT = re.compile(r": (block_bio_queue|block_bio_complete): (\d+,\d+) (\S+) (\d+) \+ (\d+) ")
MARK = re.compile(r": tracing_mark_write: (.*)$")
SECTOR = 512


class BadTrace(ValueError):
    """The trace contradicts itself, or does not fit the log."""


@dataclasses.dataclass
class Request:
    """queued, done: line numbers; done is infinite for what never ended. preflush: everything that ended before it was queued is durable before it ends.
    fua: so is it itself."""

    offset: int
    size: int
    discard: bool
    preflush: bool
    fua: bool
    queued: int
    done: float = math.inf

    @property
    def key(self):
        """What it has in common with its end, where a flush before it may be gone from its flags, and with what is logged of it."""
        return self.offset if self.size else 0, self.size, self.discard


def read(text):
    """({device "253,0": [Request of every write, flush and discard, as queued]}, [(line, text of a mark)])."""
    requests, waiting, marks = {}, {}, []
    for number, line in enumerate(text.splitlines()):
        found = MARK.search(line)
        if found:
            marks.append((number, found[1].strip()))
            continue
        found = EVENT.search(line)
        if not found:
            if "LOST" in line and "EVENTS" in line:
                raise BadTrace(f"line {number}: {line.strip()}")
            continue
        event, device, kind, sector, sectors = found.groups()
        operation = kind.lstrip("F")[:1]
        if operation in ("R", "N") and not kind.startswith("F"):
            continue
        request = Request(
            int(sector) * SECTOR, int(sectors) * SECTOR, discard=operation == "D", preflush=kind.startswith("F"), fua="F" in kind.lstrip("F")[1:], queued=number
        )  # fmt: skip
        if event == "block_bio_queue":
            requests.setdefault(device, []).append(request)
            waiting.setdefault((device, request.key), []).append(request)
        else:
            open_ones = waiting.get((device, request.key))
            if not open_ones:
                raise BadTrace(f"line {number}: {line.strip()}: nobody had asked for it")
            open_ones.pop(0).done = number
    return requests, marks
