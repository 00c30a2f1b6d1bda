"""How much the lanes of a run may read now (nice.h), as source/nice.py decides it."""

from time import monotonic_ns

cimport cython

from .bucket cimport qrep_bucket_close, qrep_bucket_init


@cython.no_gc_clear
cdef class ReadLimit:
    """At first there is no limit. One for all runs of a job, also for what Python reads itself."""

    def __cinit__(self):
        qrep_nice_init(&self.nice, monotonic_ns())
        qrep_bucket_init(&self.bucket, 0, 0, &self.nice.bucket, monotonic_ns())

    def __dealloc__(self):
        qrep_bucket_close(&self.bucket)
        qrep_nice_close(&self.nice)

    def order(self, uint64_t rate, uint32_t piece, bint paused):
        """From now on, and from the next granule on in reads of `piece` bytes. rate: bytes per second, 0: unlimited. piece: a power of two, 4096
        or more; 0: as large as it goes. paused: nothing at all."""
        if piece and (piece < QREP_NICE_PIECE_MIN or piece & (piece - 1)):
            raise ValueError(f"piece: {piece} is no power of two from {QREP_NICE_PIECE_MIN} on")
        qrep_nice_order(&self.nice, rate, piece, paused, monotonic_ns())

    def counters(self):
        """Since it was made. reads: that have ended, bytes: that they brought; in_flight: reads, now. timed: reads whose time was taken, timed_ns in all."""
        return {"reads": self.nice.reads, "bytes": self.nice.bytes, "in_flight": self.nice.in_flight, "timed": self.nice.timed, "timed_ns": self.nice.timed_ns}

    # ---- for who reads without lanes ----

    def take(self, uint64_t size):
        """0: `size` bytes may be read now, and done() is called when they are there; else ns until this is to be asked again."""
        cdef uint64_t wait_ns = qrep_nice_take(&self.nice, &self.bucket, size, monotonic_ns())
        if wait_ns == 0:
            qrep_nice_read_begun(&self.nice)
        return wait_ns

    def done(self, uint64_t size, uint64_t latency_ns):
        """What take() allowed has ended. size: bytes that came. latency_ns: how long it took."""
        qrep_nice_read_ended(&self.nice, size, latency_ns)

    @property
    def piece(self):
        """Bytes of a read; 0: as large as it goes."""
        return self.nice.piece_size

    @property
    def rate(self):
        return self.nice.bucket.rate_bytes_per_s

    @property
    def paused(self):
        return self.nice.paused != 0
