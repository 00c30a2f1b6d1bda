"""BLAKE3 in numpy, from its specification: chaining values of parts of a device, which the packaged blake3 does not give. A second opinion, not fast.

subtree(data, offset) is the chaining value of data that lies at `offset` of a longer input; merge(values) puts values of neighbours of one size
together, the first one being at a multiple of what they make up. Both are uint32 arrays of 8 as bytes, 32 of them. test_oracle.py compares with the package.
"""

import numpy

CHUNK, BLOCK = 1024, 64
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
IV = numpy.array(
    [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19], dtype=numpy.uint32
)  # fmt: skip
ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def _turn(word, bits):
    return (word >> numpy.uint32(bits)) | (word << numpy.uint32(32 - bits))


def _compress(values, words, counters, length, flags):
    """One block of each of n inputs at once: values (8, n), words (16, n), counters (n,) -> (8, n)."""
    count = words.shape[1]
    state = [values[index].copy() for index in range(8)] + [numpy.full(count, IV[index]) for index in range(4)]
    state += [(counters & 0xFFFFFFFF).astype(numpy.uint32), (counters >> 32).astype(numpy.uint32)]
    state += [numpy.full(count, length, numpy.uint32), numpy.full(count, flags, numpy.uint32)]
    order = list(range(16))
    for _round in range(7):
        for number, (a, b, c, d) in enumerate(COLUMNS + DIAGONALS):
            for word, first, second in ((order[2 * number], 16, 12), (order[2 * number + 1], 8, 7)):
                state[a] = state[a] + state[b] + words[word]
                state[d] = _turn(state[d] ^ state[a], first)
                state[c] = state[c] + state[d]
                state[b] = _turn(state[b] ^ state[c], second)
        order = [order[place] for place in ORDER]
    return numpy.array([state[index] ^ state[index + 8] for index in range(8)])


def _chunks(data, first):
    """(8, n): the chaining values of whole chunks, the first of which has the number `first`."""
    words = numpy.frombuffer(data, dtype="<u4").reshape(-1, CHUNK // BLOCK, 16)
    values = numpy.repeat(IV[:, None], len(words), axis=1)
    counters = numpy.arange(first, first + len(words), dtype=numpy.uint64)
    for block in range(CHUNK // BLOCK):
        flags = (CHUNK_START if block == 0 else 0) | (CHUNK_END if block == CHUNK // BLOCK - 1 else 0)
        values = _compress(values, words[:, block, :].T, counters, BLOCK, flags)
    return values


def _short_chunk(data, number):
    """(8, 1): the last chunk of an input, a multiple of BLOCK bytes long and shorter than a chunk."""
    words = numpy.frombuffer(data, dtype="<u4").reshape(-1, 16)
    values, counters = IV[:, None].copy(), numpy.array([number], dtype=numpy.uint64)
    for block, each in enumerate(words):
        flags = (CHUNK_START if block == 0 else 0) | (CHUNK_END if block == len(words) - 1 else 0)
        values = _compress(values, each[:, None], counters, BLOCK, flags)
    return values


def _parents(values, flags=PARENT):
    """(8, n) -> (8, ceil(n / 2)): pairs of neighbours; the last one of an odd number goes up alone."""
    even = values.shape[1] // 2 * 2
    words = numpy.concatenate([values[:, 0:even:2], values[:, 1:even:2]])
    merged = _compress(numpy.repeat(IV[:, None], even // 2, axis=1), words, numpy.zeros(even // 2, numpy.uint64), BLOCK, flags)
    return numpy.concatenate([merged, values[:, even:]], axis=1)


def _up(values):
    with numpy.errstate(over="ignore"):
        while values.shape[1] > 1:
            values = _parents(values)
    return values.astype("<u4").T.tobytes()


def subtree(data, offset=0):
    """The chaining value of `data`, a multiple of BLOCK bytes, at `offset` of an input that is longer than it."""
    whole = len(data) // CHUNK * CHUNK
    with numpy.errstate(over="ignore"):
        parts = [_chunks(data[:whole], offset // CHUNK)] if whole else []
        if whole < len(data):
            parts.append(_short_chunk(data[whole:], (offset + whole) // CHUNK))
    return _up(numpy.concatenate(parts, axis=1))


def root(values):
    """The BLAKE3 of an input of which these are the values of all its parts, at least two, all of one size but the last."""
    values = numpy.frombuffer(b"".join(values), dtype="<u4").reshape(-1, 8).T
    with numpy.errstate(over="ignore"):
        while values.shape[1] > 2:
            values = _parents(values)
        return _parents(values, PARENT | ROOT).astype("<u4").T.tobytes()
