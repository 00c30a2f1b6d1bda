"""Bytes like those of a disk that is in use: programs, text, what nobody can pack, and the slack of what does not fill its blocks.

The shares are those of the design's tables: 35 % programs, 25 % text, 25 % random, 15 % zeroes. The zeroes are the second half of every leaf that is
not full, so no leaf is zero as a whole: those travel as records anyway, packed or not, and would say nothing of packing.
"""

import random
import sys
import sysconfig
from pathlib import Path

KIB, MIB = 1 << 10, 1 << 20
PIECE, LEAF = 256 * KIB, 4 * KIB  # of one kind at a time; of slack
SHARES = {"program": 35, "text": 25, "random": 25}
SLACK = 0.30  # of the leaves have an empty second half
POOL = 24 * MIB  # of each kind


def programs():
    """Shared objects and programs of this machine."""
    found = bytearray(Path(sys.executable).resolve().read_bytes())
    places = [path for path in map(Path, ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/bin")) if path.is_dir()]
    for path in sorted(path for place in places for path in place.iterdir()):
        if len(found) >= POOL:
            break
        if path.is_file() and not path.is_symlink() and path.stat().st_size > 64 * KIB:
            found += path.read_bytes()
    return bytes(found[:POOL])


def texts(source):
    """Half of it Python's own sources, half the log of a web server."""
    found = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if len(found) >= POOL // 2:
            break
        found += path.read_bytes()
    hosts = [f"10.{source.randrange(256)}.{source.randrange(256)}.{source.randrange(256)}" for _ in range(500)]
    paths = [f"/{source.choice(('api/v1', 'static', 'images', 'search'))}/{source.randrange(4000)}" for _ in range(800)]
    when = 0
    while len(found) < POOL:
        when += source.randrange(3)
        found += (
            f"{source.choice(hosts)} - - [{1 + when // 86400:02d}/Nov/2026:{when // 3600 % 24:02d}:{when // 60 % 60:02d}:{when % 60:02d} +0000] "
            f'"{source.choice(("GET", "GET", "POST"))} {source.choice(paths)} HTTP/1.1" {source.choice((200, 200, 200, 304, 404))} {source.randrange(90000)}\n'
        ).encode()
    return bytes(found)


def mixed(size, seed=1):
    """`size` bytes, in an order of chance that the seed decides."""
    source, out = random.Random(seed), bytearray()
    pools = {"program": programs(), "text": texts(source)}
    while len(out) < size:
        (kind,) = source.choices(list(SHARES), SHARES.values())
        start = source.randrange(len(pools.get(kind, b"")) - PIECE) if kind in pools else 0
        piece = bytearray(pools[kind][start : start + PIECE] if kind in pools else source.randbytes(PIECE))
        for leaf in range(0, PIECE, LEAF):
            if source.random() < SLACK:
                piece[leaf + LEAF // 2 : leaf + LEAF] = bytes(LEAF // 2)
        out += piece
    return bytes(out[:size])
