"""zstd as frames carry it (pack.h), for cold paths, tests and benches; the lanes use the C directly."""

from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc

from .wire cimport QREP_FRAME_DATA_MAX


cdef extern from "pack.h" nogil:
    enum:
        QREP_PACK_LEVEL_MIN
        QREP_PACK_LEVEL_MAX

    struct qrep_packer:
        pass
    struct qrep_unpacker:
        pass

    qrep_packer *qrep_packer_open()
    void qrep_packer_close(qrep_packer *packer)
    size_t qrep_pack(qrep_packer *packer, int level, const void *data, size_t size, void *packed, size_t room)
    qrep_unpacker *qrep_unpacker_open()
    void qrep_unpacker_close(qrep_unpacker *unpacker)
    int qrep_unpack(qrep_unpacker *unpacker, const void *packed, size_t packed_size, void *data, size_t size)


LEVEL_MIN, LEVEL_MAX = QREP_PACK_LEVEL_MIN, QREP_PACK_LEVEL_MAX


cdef class Packer:
    """Packs data of frames, one at a time, in memory of its own."""

    cdef qrep_packer *packer
    cdef uint8_t *room

    def __cinit__(self):
        self.packer, self.room = qrep_packer_open(), <uint8_t *>malloc(QREP_FRAME_DATA_MAX)
        if self.packer == NULL or self.room == NULL:
            raise MemoryError()

    def __dealloc__(self):
        qrep_packer_close(self.packer)
        free(self.room)

    def pack(self, bytes data not None, int level=1):
        """The packed form of `data`, 1 to wire.DATA_MAX bytes; None where that is not shorter. Releases the GIL."""
        cdef size_t size = len(data), done
        cdef const uint8_t *start = <const uint8_t *>data
        if not 1 <= size <= QREP_FRAME_DATA_MAX:
            raise ValueError(f"data: {size} bytes, not 1 to {QREP_FRAME_DATA_MAX}")
        if not QREP_PACK_LEVEL_MIN <= level <= QREP_PACK_LEVEL_MAX:
            raise ValueError(f"level: {level}, not {LEVEL_MIN} to {LEVEL_MAX}")
        with nogil:
            done = qrep_pack(self.packer, level, start, size, self.room, size - 1)
        return self.room[:done] if done else None


cdef class Unpacker:
    """Unpacks what a peer sent, in memory of its own."""

    cdef qrep_unpacker *unpacker

    def __cinit__(self):
        self.unpacker = qrep_unpacker_open()
        if self.unpacker == NULL:
            raise MemoryError()

    def __dealloc__(self):
        qrep_unpacker_close(self.unpacker)

    def unpack(self, bytes packed not None, size_t size):
        """The `size` bytes, 1 to wire.DATA_MAX, that `packed` says it is. Raises ValueError if it is anything else. Releases the GIL."""
        cdef const uint8_t *start = <const uint8_t *>packed
        cdef size_t packed_size = len(packed)
        cdef int rc
        cdef uint8_t *out
        if not 1 <= size <= QREP_FRAME_DATA_MAX:
            raise ValueError(f"size: {size}, not 1 to {QREP_FRAME_DATA_MAX}")
        out = <uint8_t *>malloc(size)
        if out == NULL:
            raise MemoryError()
        try:
            with nogil:
                rc = qrep_unpack(self.unpacker, start, packed_size, out, size)
            if rc:
                raise ValueError(f"{packed_size} bytes that are not {size} bytes packed")
            return out[:size]
        finally:
            free(out)
