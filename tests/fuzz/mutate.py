"""Mutators: bytes, texts and messages that are nearly right. `chance` is a random.Random; nothing else decides, so a seed repeats them."""

import msgspec

NUMBERS = [0, 1, -1, 2, 15, 16, 17, 31, 32, 33, 127, 128, 255, 256, 511, 512, 4095, 4096, 4097, 8192, 65535, 65536, (1 << 20) + 1, (1 << 31) - 1, 1 << 31,
           (1 << 32) - 1, 1 << 32, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 2, (1 << 64) - 1, -(1 << 31), -(1 << 63)]  # fmt: skip
ODD = [*NUMBERS, None, True, False, 0.0, 1.5, -1e308, float("inf"), float("nan"), "", "a", "x" * 65, "y" * 2001, "\0", "\ud7ff\U0010ffff", b"", b"\0" * 15, b"\0" * 16, b"\1" * 16,
       b"\2" * 32, b"\3" * 33, b"\4" * 64, b"\5" * 65, [], [0], [[]] * 3, [1, 1], ["a"] * 17, [{}], {}, {"t": "hello"}, {"": None}]  # fmt: skip
WORDS = [b"\0", b"\xff", b"\x7f", b"\x80", b"\0" * 4, b"\xff" * 8, b"\xc0", b"\xc4\x20", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x81\xa1t"]
DEEP = 50_000


def one_of(chance, values):
    return values[int(chance.random() * len(values))]


def bytes_of(chance, seeds, nesting=b"\x91"):
    """One to four changes of one of `seeds`, sometimes with a part of another."""
    data = bytearray(one_of(chance, seeds))
    for _ in range(1 + int(chance.random() * 4)):
        size, kind = len(data), int(chance.random() * 9)
        at = int(chance.random() * size) if size else 0
        if kind == 0 and size:
            data[at] ^= 1 << int(chance.random() * 8)
        elif kind == 1 and size:
            data[at] = int(chance.random() * 256)
        elif kind == 2:
            data[at:at] = one_of(chance, WORDS)
        elif kind == 3:
            del data[at : at + 1 + int(chance.random() * 16)]
        elif kind == 4:
            data[at:at] = data[at : at + 1 + int(chance.random() * 32)]
        elif kind == 5:
            number = one_of(chance, NUMBERS) & (1 << 64) - 1
            width = 1 << int(chance.random() * 4)
            data[at : at + width] = (number & (1 << 8 * width) - 1).to_bytes(width, "little" if chance.random() < 0.5 else "big")
        elif kind == 6:
            del data[at:]
        elif kind == 7:
            other = one_of(chance, seeds)
            start = int(chance.random() * len(other))
            data[at : at + int(chance.random() * 64)] = other[start : start + int(chance.random() * 64)]
        elif chance.random() < 0.01:
            data[at:at] = nesting * DEEP
    return bytes(data)


def text_of(chance, seeds, tokens):
    """As bytes_of, of texts made of `tokens`."""
    text = one_of(chance, seeds)
    for _ in range(1 + int(chance.random() * 3)):
        size, kind = len(text), int(chance.random() * 6)
        at = int(chance.random() * (size + 1))
        if kind == 0:
            text = text[:at] + one_of(chance, tokens) + text[at + 1 :]
        elif kind == 1:
            text = text[:at] + one_of(chance, tokens) + text[at:]
        elif kind == 2:
            text = text[:at] + text[at + 1 + int(chance.random() * 4) :]
        elif kind == 3:
            other = one_of(chance, seeds)
            text = text[:at] + other[int(chance.random() * (len(other) + 1)) :]
        elif kind == 4:
            text = text[:at] + chr(int(chance.random() * 0x250)) + text[at:]
        elif chance.random() < 0.02:
            text = text[:at] + one_of(chance, tokens) * 3000 + text[at:]
    return text


def fields_of(chance, fields):
    """A dict (of a message) with one to three fields wrong, missing, unknown, exchanged, or wrong further in."""
    fields = dict(fields)
    for _ in range(1 + int(chance.random() * 3)):
        names = list(fields)
        if not names:
            return fields
        name, kind = one_of(chance, names), chance.random()
        value = fields[name]
        if kind < 0.5:
            fields[name] = one_of(chance, ODD)
        elif kind < 0.6:
            del fields[name]
        elif kind < 0.65:
            fields[one_of(chance, ("more", "t", "", "attempt", "size"))] = one_of(chance, ODD)
        elif kind < 0.75:
            other = one_of(chance, names)
            fields[name], fields[other] = fields[other], fields[name]
        elif isinstance(value, dict):
            fields[name] = fields_of(chance, value)
        elif isinstance(value, list) and value:
            value = list(value)
            value[int(chance.random() * len(value))] = one_of(chance, ODD)
            fields[name] = value * int(1 + chance.random() * 20)
        elif isinstance(value, (bytes, str)):
            fields[name] = value[: int(chance.random() * (len(value) + 1))] * int(chance.random() * 4)
        elif isinstance(value, int):
            fields[name] = max(-(1 << 63), min((1 << 64) - 1, value + int(chance.random() * 5) - 2))
    return fields


def packed(fields):
    """As msgpack; what it has no form for is left out."""
    try:
        return msgspec.msgpack.encode(fields)
    except (OverflowError, UnicodeEncodeError):
        return b"\x80"


def wrong(chance, message, said, known, known_below):
    """A message that is not what it should be: of another moment, said again, or with other fields; as bytes. said: the bytes of earlier ones; known:
    values that have a meaning in the session, put in where the draw is below `known_below`."""
    choice = chance.random()
    if choice < 0.25 and said:
        return one_of(chance, said)
    fields = msgspec.to_builtins(message, builtin_types=(bytes,))
    if choice < known_below:
        name = one_of(chance, list(fields))
        if name != "t":
            fields[name] = one_of(chance, known)
        return packed(fields)
    if choice < 0.8:
        return packed(fields_of(chance, fields))
    return bytes_of(chance, [packed(fields), *said[-2:]])
