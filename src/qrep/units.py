"""Sizes, rates and durations as people write and read them.

    50M 50MiB   50 * 2^20 bytes          50MB    50 * 10^6 bytes        400Mbit   400 * 10^6 bits
    1.5G        1.5 * 2^30 bytes         unlimited (a rate)             30s 15m 3h12m 2d

`parse_*` is strict: an unknown unit, a sign, a fraction of a byte raise UsageError with the way out.
`format_*` is for eyes and rounds. `exact_*` is for files: what it writes parses back to the same number.
All integers are bytes or bytes per second; durations are seconds.
"""

import math
import re

from qrep.errors import UsageError

PREFIXES = "KMGTPE"
MAX_BYTES = (1 << 63) - 1  # what the kernel's loff_t can address
MAX_SECONDS = 100 * 366 * 86400
UNLIMITED = "unlimited"

BYTE_UNITS = {"": 1, "B": 1}
for power, letter in enumerate(PREFIXES, 1):
    BYTE_UNITS |= {letter: 1024**power, f"{letter}iB": 1024**power, f"{letter}B": 1000**power}
BYTE_UNITS["k"], BYTE_UNITS["kB"] = BYTE_UNITS["K"], BYTE_UNITS["KB"]

BIT_UNITS = {"bit": 1, "kbit": 1000}
for power, letter in enumerate(PREFIXES, 1):
    BIT_UNITS |= {f"{letter}bit": 1000**power, f"{letter}ibit": 1024**power}

DURATION_UNITS_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}

_NUMBER = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,12})?) ?([A-Za-z]*)", re.ASCII)
_DURATION_PART = re.compile(r"([0-9]{1,15})(ms|[a-z])", re.ASCII)


def parse_size(text):
    """Bytes of `50M`, `50MiB`, `50MB`, `1.5G`, `4096`. Raises UsageError."""
    return _parse_amount(text, "size", BYTE_UNITS, "write it like 500G, 50MiB (binary) or 50MB (decimal)")


def parse_rate(text):
    """Bytes per second of `50M`, `50MB/s`, `400Mbit`; None for `unlimited`. Raises UsageError, also for 0."""
    way_out = "write it like 50M (MiB/s), 50MB, 400Mbit or unlimited"
    if text == UNLIMITED:
        return None
    amount = text.removesuffix("/s") if isinstance(text, str) else text
    rate_bytes_per_s = _parse_amount(amount, "rate", BYTE_UNITS | BIT_UNITS, way_out, whole=text)
    if rate_bytes_per_s == 0:
        raise UsageError(f"{text!r} is not a rate: nothing would ever move", hint="stop the job instead, or " + way_out)
    return rate_bytes_per_s


def parse_space(text, volume_size):
    """Bytes of an undo space: a size, or a multiple of the volume such as `2x` or `0.5x`. Raises UsageError."""
    if isinstance(text, str) and text.endswith("x"):
        match = _NUMBER.fullmatch(text[:-1])
        if not match or match[2]:
            raise UsageError(f"{text!r} is not a multiple", hint="write it like 2x, 0.5x, or as a size like 100G")
        from fractions import Fraction  # here, because who only shows sizes does without

        amount = math.ceil(Fraction(match[1]) * volume_size)
        if amount > MAX_BYTES:
            raise UsageError(f"{text!r} is more than any device holds", hint="write it like 2x, 0.5x, or as a size like 100G")
        return amount
    return parse_size(text)


def parse_share(text, volume_size):
    """Bytes of a part of a volume: `20%` (1 to 100), or a size such as `10G`. Raises UsageError."""
    if isinstance(text, str) and text.endswith("%"):
        if not re.fullmatch(r"[0-9]{1,3}", text[:-1], re.ASCII) or not 1 <= int(text[:-1]) <= 100:
            raise UsageError(f"{text!r} is not a part of a volume", hint="write it like 20%, from 1% to 100%, or as a size like 10G")
        return -(-int(text[:-1]) * volume_size // 100)
    size = parse_size(text)
    if not size:
        raise UsageError(f"{text!r} is no space at all", hint="write it like 20%, or as a size like 10G")
    return size


def parse_sample(text):
    """The share, over 0 to 1, of `0.5%`, `5%` or `100%`; None for `auto`. Raises UsageError."""
    if text == "auto":
        return None
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,4})?)%", text, re.ASCII) if isinstance(text, str) else None
    share = float(match[1]) / 100 if match else 0
    if not 0 < share <= 1:
        raise UsageError(f"{text!r} is no share", hint="write auto, or a percentage over 0 like 0.5%, 5% or 100%")
    return share


def parse_duration(text):
    """Seconds (float, whole milliseconds) of `30s`, `15m`, `3h12m`, `2d`, `500ms`. Raises UsageError."""
    way_out = "write it like 30s, 15m, 3h12m or 2d"
    if not isinstance(text, str) or not re.fullmatch(r"(?:[0-9]{1,15}(?:ms|[a-z]))+", text, re.ASCII):
        number = isinstance(text, int) or (isinstance(text, str) and text.isascii() and text.isdigit())
        raise UsageError(f"{text!r} is not a duration" + (": the unit is missing" if number else ""), hint=way_out)
    units = list(DURATION_UNITS_MS)
    total_ms, last = 0, -1
    for count, unit in _DURATION_PART.findall(text):
        if unit not in DURATION_UNITS_MS:
            raise UsageError(f"{text!r} is not a duration: unknown unit {unit!r}", hint=way_out)
        if units.index(unit) <= last:
            raise UsageError(f"{text!r} is not a duration: write each unit once, the largest first", hint=way_out)
        last = units.index(unit)
        total_ms += int(count) * DURATION_UNITS_MS[unit]
    if total_ms > MAX_SECONDS * 1000:
        raise UsageError(f"{text!r} is more than 100 years", hint=way_out)
    return total_ms / 1000


def format_size(size, digits=1):
    """`3.1 GiB`, `500 GiB`, `812 MiB`, `17 B`: rounded to digits + 1 significant digits, whole numbers left whole."""
    if size < 0:
        raise ValueError("a size is not negative")
    power = max(0, (int(size).bit_length() - 1) // 10)
    if round(size / 1024**power) == 1024:  # rounding reaches the next unit
        power += 1
    text = _significant(size / 1024**power, digits)
    return f"{text} {_binary_unit(power)}"


def format_rate(rate_bytes_per_s, digits=1):
    """`812 MiB/s`; `unlimited` for None."""
    return UNLIMITED if rate_bytes_per_s is None else format_size(rate_bytes_per_s, digits) + "/s"


def format_duration(seconds):
    """`45s`, `12m`, `3h12m`, `2d3h`: rounded down, as a lag or an age is read."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours}h" if hours else f"{days}d"
    if hours:
        return f"{hours}h{minutes}m" if minutes else f"{hours}h"
    return f"{minutes}m" if minutes else f"{seconds}s"


def format_time_to_go(seconds):
    """`1 min 04 s`, `2 h 05 min`, `38 s`: how long something is going to take."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def format_clock(seconds):
    """`00:03:51`, as in a progress line; hours grow past 99."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"


def exact_size(size):
    """The shortest binary spelling that parse_size turns back into `size`: `500GiB`, `4096` is `4KiB`, `4097`."""
    power = 0
    while size and power < len(PREFIXES) and size % 1024 ** (power + 1) == 0:
        power += 1
    return f"{size // 1024**power}{_binary_unit(power) if power else ''}"


def exact_rate(rate_bytes_per_s):
    """The spelling that parse_rate turns back into the same rate."""
    return UNLIMITED if rate_bytes_per_s is None else exact_size(rate_bytes_per_s)


def _parse_amount(text, kind, units, way_out, whole=None):
    whole = text if whole is None else whole
    if isinstance(text, int) and not isinstance(text, bool) and 0 <= text <= MAX_BYTES:
        return text  # a bare number in a configuration file
    match = isinstance(text, str) and _NUMBER.fullmatch(text)
    if not match:
        raise UsageError(f"{whole!r} is not a {kind}", hint=way_out)
    from fractions import Fraction

    number, unit = Fraction(match[1]), match[2]
    if unit not in units:
        near = [known for known in units if known.lower() == unit.lower()]
        meant = f"did you mean {match[1]}{near[0]}? " if near else ""
        raise UsageError(f"{whole!r} is not a {kind}: unknown unit {unit!r}", hint=meant + way_out)
    amount = number * units[unit]
    if unit in BIT_UNITS:
        amount /= 8
    if amount.denominator != 1:
        raise UsageError(f"{whole!r} is not a whole number of bytes", hint=way_out)
    if amount > MAX_BYTES:
        raise UsageError(f"{whole!r} is more than any device holds", hint=way_out)
    return int(amount)


def _binary_unit(power):
    return f"{PREFIXES[power - 1]}iB" if power else "B"


def _significant(value, digits):
    """A float below 1024 with at most digits + 1 significant digits, and never a made-up `.0` on a whole number."""
    if value.is_integer():
        return str(int(value))
    decimals = max(0, digits + 1 - len(str(int(value))))
    if len(str(int(round(value, decimals)))) > len(str(int(value))):  # 9.97 is 10, not 10.0
        decimals -= 1
    return f"{value:.{max(0, decimals)}f}"
