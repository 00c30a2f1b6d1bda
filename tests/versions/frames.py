"""Frames as they were written down for version 1, and those of a later one."""

import functools
import struct

import blake3
from golden import GOLDEN
from versions.wire import Skewed

from qrep._native import wire

KEY, ATTEMPT, SESSION, CONNECTION = bytes(range(32)), 7, 3, 1
SHAPE = wire.Geometry(20 * (64 << 10) + (13 << 10), 4096, 64 << 10)  # of the golden files, as are key and numbers
WRITTEN_DOWN = {"frames-v1.bin": (), "frames-v1-packed.bin": ("zstd",), "frames-v1-copies.bin": ("copies",)}


def _reader(features=()):
    return wire.FrameReader(SHAPE, ATTEMPT, SESSION, CONNECTION, KEY, features)


def _header(kind="full"):
    writer = wire.FrameWriter(SHAPE, ATTEMPT, SESSION, CONNECTION, KEY)
    return bytearray(writer.full(4, 0, 8192, bytes(range(32)), wire.LAST, bytes(32)) if kind == "full" else writer.end())


def _sealed(header):
    return bytes(header[:128]) + blake3.blake3(bytes(header[:128]), key=KEY).digest()


def read_today(site, kind):
    _reader().header(_sealed(_header(kind)))


def refused(site, kind, offset, form, value):
    """A frame with a right tag, of a form that is unknown here."""
    header = _header(kind)
    struct.pack_into(form, header, offset, value)
    try:
        _reader().header(_sealed(header))
    except (wire.FrameDamaged, wire.FrameInvalid):
        return
    raise Skewed(f"a frame with {value:#x} at {offset} was taken")


def written_down(site, name, known):
    """The golden bytes are frames still, where their features are agreed on; where they are not, they are refused."""
    data, reader, kinds = (GOLDEN / name).read_bytes(), _reader(known), []
    try:
        while data:
            frame = reader.header(data[: wire.HEADER_SIZE])
            size = wire.HEADER_SIZE + 8 * frame.run_count
            if frame.run_count:
                reader.runs(frame, data[wire.HEADER_SIZE : size])
            kinds.append(frame.kind)
            data = data[size:]
    except wire.FrameInvalid as error:
        if known == WRITTEN_DOWN[name]:
            raise Skewed(f"{name}: {error}") from error
        return
    if known != WRITTEN_DOWN[name] or len(kinds) < 2:
        raise Skewed(f"{name} was read with {known}: {kinds}")


def cases():
    for name, known in WRITTEN_DOWN.items():
        for agreed in {known, ()}:
            yield f"{name} with {agreed}", functools.partial(written_down, name=name, known=agreed)
    for kind in ("full", "end"):
        yield f"{kind} of today", functools.partial(read_today, kind=kind)
        for version in (0, 2, 3, 65535):
            yield f"{kind} of version {version}", functools.partial(refused, kind=kind, offset=4, form="<H", value=version)
        for number in (0, 9, 77, 65535):
            yield f"kind {number} for {kind}", functools.partial(refused, kind=kind, offset=6, form="<H", value=number)
        for bit in range(4, 32):
            yield f"{kind} with flag {bit}", functools.partial(refused, kind=kind, offset=8, form="<I", value=1 << bit)
