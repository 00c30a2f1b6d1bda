"""What a volume holds: text that packs, noise that does not, zeroes, and leaves that are there twice."""

LEAF, GRANULE = 4096, 1 << 20


def fresh(rng, size):
    drawn = [rng.randbytes(LEAF) for _ in range(4)]
    text = b"".join(b"%08d a record that has much in common with the others\n" % (rng.getrandbits(20)) for _ in range(1200))
    parts, total = [], 0
    while total < size:
        kind = rng.random()
        if kind < 0.6:
            part = rng.randbytes(8 * LEAF)
        elif kind < 0.75:
            part = text[: 8 * LEAF]
        elif kind < 0.9:
            part = b"".join(rng.choice(drawn) for _ in range(8))
        else:
            part = bytes(8 * LEAF)
        parts.append(part)
        total += len(part)
    return b"".join(parts)[:size]


def changed(rng, content):
    """Half of the granules rewritten, some leaves elsewhere."""
    data = bytearray(content)
    granules = len(data) // GRANULE
    for granule in rng.sample(range(granules), granules // 2):
        data[granule * GRANULE : (granule + 1) * GRANULE] = fresh(rng, GRANULE)
    for _ in range(20):
        leaf = rng.randrange(len(data) // LEAF)
        data[leaf * LEAF : (leaf + 1) * LEAF] = rng.randbytes(LEAF)
    return bytes(data)
