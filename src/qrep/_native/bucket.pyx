"""Rate limits: token buckets in a chain, connection -> job -> shaping group -> node."""

from time import monotonic_ns


cdef class Bucket:
    """Grants at most `rate` bytes per second after a burst of `capacity` bytes, here and in every parent.

    rate: bytes per second, 0 for unlimited. capacity: bytes, 0 for 20 ms of the rate and at least 64 KiB.
    now_ns: CLOCK_MONOTONIC of the caller, for tests; None reads the clock. Safe from several threads.
    """

    def __cinit__(self, uint64_t rate, uint64_t capacity=0, Bucket parent=None, *, now_ns=None):
        self.parent = parent
        qrep_bucket_init(&self.bucket, rate, capacity, &parent.bucket if parent is not None else NULL, clock(now_ns))

    def take(self, uint64_t size, *, now_ns=None):
        """Take `size` bytes from the whole chain: 0 when they were taken, else ns to wait before asking again.

        What is larger than half a bucket is granted when that bucket is half full. The rate may change meanwhile, so a caller
        does not sleep longer than it wants to be deaf to that.
        """
        cdef uint64_t now = clock(now_ns)
        cdef uint64_t wait_ns
        with nogil:
            wait_ns = qrep_bucket_take(&self.bucket, size, now)
        return wait_ns

    def give_back(self, uint64_t size):
        """Return bytes that were taken and not sent, to the whole chain."""
        with nogil:
            qrep_bucket_return(&self.bucket, size)

    def set_rate(self, uint64_t rate, uint64_t capacity=0, *, now_ns=None):
        """Change the rate while in use; bytes earned so far were earned at the old one."""
        qrep_bucket_set_rate(&self.bucket, rate, capacity, clock(now_ns))

    @property
    def rate(self):
        """Bytes per second; 0: unlimited."""
        return self.bucket.rate_bytes_per_s

    @property
    def capacity(self):
        """Bytes that can be taken at once after a pause."""
        return self.bucket.capacity

    @property
    def level(self):
        """Bytes that were available at the last call; negative after a larger take."""
        return self.bucket.level

    @property
    def taken(self):
        """Bytes ever taken, whatever the rate was."""
        return self.bucket.taken


cdef uint64_t clock(object now_ns) except? 0:
    return monotonic_ns() if now_ns is None else now_ns
