"""Bytes like those of a disk that is in use: programs, text, what nobody can pack, and zeroes."""

import random
import sys
import sysconfig
from pathlib import Path

KIB, MIB = 1 << 10, 1 << 20
PIECE = 256 * KIB  # of one kind at a time
SHARES = (("program", 0.35), ("text", 0.25), ("random", 0.25), ("zero", 0.15))
POOL = 48 * MIB  # of each kind that comes from files


def _pool(paths, limit=POOL):
    found = bytearray()
    for path in paths:
        found += path.read_bytes()
        if len(found) >= limit:
            break
    return bytes(found[:limit])


def pools():
    """{kind: bytes} of what this machine has: shared objects and programs, Python's own sources."""
    libraries = [Path(name) for name in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/bin") if Path(name).is_dir()]
    programs = sorted(path for place in libraries for path in place.iterdir() if path.is_file() and not path.is_symlink() and path.stat().st_size > 64 * KIB)
    texts = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    return {"program": _pool([Path(sys.executable).resolve(), *programs]), "text": _pool(texts)}


def mixed(size, seed=1):
    """`size` bytes, in pieces of PIECE of one kind each, in an order of chance. 35 % programs, 25 % text, 25 % random, 15 % zeroes."""
    source, found, out = random.Random(seed), pools(), bytearray()
    kinds, shares = zip(*SHARES, strict=True)
    while len(out) < size:
        (kind,) = source.choices(kinds, shares)
        if kind in found:
            start = source.randrange(max(1, len(found[kind]) - PIECE))
            piece = found[kind][start : start + PIECE]
        else:
            piece = source.randbytes(PIECE) if kind == "random" else bytes(PIECE)
        out += piece
    return bytes(out[:size])
