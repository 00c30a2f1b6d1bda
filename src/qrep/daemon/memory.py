"""How the agent's C library hands out memory, so that what a run took is given back when it ends."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc
LARGE = 256 << 10  # bytes; a block from this size on is memory of its own, which goes when the block goes
ARENAS = 2


def keep_flat():
    """Before threads are started. glibc raises LARGE by itself, up to 32 MiB, whenever such a block is freed, and has an arena for every thread: the marks
    and masks of a large volume, megabytes each, would stay in all of them. Another C library is left as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for what, value in ((M_MMAP_THRESHOLD, LARGE), (M_TRIM_THRESHOLD, LARGE), (M_ARENA_MAX, ARENAS)):
            mallopt(what, value)
