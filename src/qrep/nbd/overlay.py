"""What a client writes to a sync point: a sparse file of its own over content that never changes.

The unit is a block; what of it was not written comes from below, once, when it is first written in part. A byte per block says where it is.
"""

import ctypes
import errno
import os
import re
import threading

BELOW, DATA, ZERO = 0, 1, 2
BLOCKS_MAX = 16 << 20  # bytes of memory for their states
PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
RUNS = re.compile(rb"\x00+|[\x01\x02]+", re.DOTALL)
NOT_ZERO = re.compile(rb"[\x00\x01]+", re.DOTALL)
ZEROES = bytes(1 << 20)
_libc = ctypes.CDLL(None, use_errno=True)


class Full(OSError):
    """The limit is reached: nothing of the request that needed room was written."""

    def __init__(self):
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC))


def block_size(size):
    block = 4096
    while -(-size // block) > BLOCKS_MAX:
        block *= 2
    return block


class Overlay:
    """below: an object with size and read_into(buffer, offset) of whole sectors. descriptor: of the file, which is empty. limit: bytes it may hold.

    Any number of threads. What two of them write to one place at once is either's.
    """

    def __init__(self, below, descriptor, limit):
        self.size, self.limit, self.below = below.size, limit, below
        self.used = 0  # bytes of blocks that hold data
        self._descriptor, self._block = descriptor, block_size(below.size)
        self._states = bytearray(-(-below.size // self._block))
        self._lock = threading.Lock()  # of the states; writes are done under it: a block is filled from below once
        os.ftruncate(descriptor, len(self._states) * self._block)

    def read_into(self, buffer, offset):
        """As of what is below: whole sectors."""
        end = offset + len(buffer)
        first = offset // self._block
        states = bytes(self._states[first : -(-end // self._block)])
        for run in RUNS.finditer(states):
            start = max(offset, (first + run.start()) * self._block)
            stop = min(end, (first + run.end()) * self._block)
            part = buffer[start - offset : stop - offset]
            if run.group()[0] == BELOW:
                self.below.read_into(part, start)
            else:
                self._read(part, start)

    def _read(self, part, offset):
        while len(part):
            got = os.preadv(self._descriptor, [part], offset)
            if not got:
                raise OSError(errno.EIO, "the overlay is shorter than it was")
            part, offset = part[got:], offset + got

    def write(self, data, offset):
        """data: a bytes-like object of any length. Raises Full, OSError."""
        end = offset + len(data)
        with self._lock:
            first, last = offset // self._block, -(-end // self._block)
            states = self._states[first:last]
            room = (len(states) - states.count(DATA)) * self._block
            if self.used + room > self.limit:
                raise Full
            for edge in {first, last - 1}:
                if self._states[edge] == BELOW and not (offset <= edge * self._block and (edge + 1) * self._block <= end):
                    self._fill(edge)
            self._write(memoryview(data), offset)
            self._states[first:last] = bytes([DATA]) * (last - first)
            self.used += room

    def _fill(self, index):
        """Copy a block up from below; it is still read from there until its state is changed."""
        start = index * self._block
        room = bytearray(min(self._block, self.size - start))
        self.below.read_into(room, start)
        self._write(memoryview(room), start)

    def _write(self, data, offset):
        while len(data):
            done = os.pwrite(self._descriptor, data, offset)
            data, offset = data[done:], offset + done

    def zero(self, offset, size):
        """Make a range zero; whole blocks of it take no room. Raises Full, OSError."""
        end = offset + size
        first, last = -(-offset // self._block), end // self._block
        if end == self.size:  # the last block may be short
            last = len(self._states)
        if first >= last:
            self.write(bytes(size), offset)
            return
        if offset < first * self._block:
            self.write(bytes(first * self._block - offset), offset)
        with self._lock:
            states = self._states[first:last]
            for run in NOT_ZERO.finditer(states):  # also where the state is BELOW: a write that failed may have left something there
                self._punch((first + run.start()) * self._block, (run.end() - run.start()) * self._block)
            self.used -= states.count(DATA) * self._block
            self._states[first:last] = bytes([ZERO]) * (last - first)
        if last * self._block < end:
            self.write(bytes(end - last * self._block), last * self._block)

    def _punch(self, offset, size):
        if _libc.fallocate(self._descriptor, PUNCH_HOLE, ctypes.c_long(offset), ctypes.c_long(size)):
            number = ctypes.get_errno()
            if number != errno.EOPNOTSUPP:
                raise OSError(number, os.strerror(number))
            for done in range(0, size, len(ZEROES)):
                self._write(memoryview(ZEROES)[: size - done], offset + done)

    def flush(self):
        """What was written is durable. A failure is final: the caller ends the process (R2)."""
        os.fdatasync(self._descriptor)
