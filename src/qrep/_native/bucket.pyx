"""Rate limits: token buckets in a tree, connection -> job -> shaping group -> node."""

from time import monotonic_ns

cimport cython


@cython.no_gc_clear  # the parent's memory is needed until __dealloc__ has taken this bucket out of the tree
cdef class Bucket:
    """Grants at most `rate` bytes per second after a burst of `capacity` bytes, here and in every parent; children share alike.

    rate: bytes per second, 0 for unlimited. capacity: bytes, 0 for 16 ms of the rate and at least 1 KiB.
    now_ns: CLOCK_MONOTONIC of the caller, for tests; None reads the clock. Safe from several threads.
    """

    def __cinit__(self, uint64_t rate, uint64_t capacity=0, Bucket parent=None, *, now_ns=None):
        self.parent = parent
        qrep_bucket_init(&self.bucket, rate, capacity, &parent.bucket if parent is not None else NULL, clock(now_ns))

    def __dealloc__(self):
        if self.bucket.root != NULL:
            qrep_bucket_close(&self.bucket)

    def take(self, uint64_t size, *, now_ns=None):
        """Take `size` bytes from the whole chain: 0 when they were taken, else ns to wait before asking again; the request stands until then.

        What is larger than half a bucket is granted when that bucket is half full. The rate may change meanwhile, so a caller
        does not sleep longer than it wants to be deaf to that.
        """
        cdef uint64_t now = clock(now_ns)
        cdef uint64_t wait_ns
        with nogil:
            wait_ns = qrep_bucket_take(&self.bucket, size, now)
        return wait_ns

    def ask(self, uint64_t size, *, now_ns=None):
        """Let a request stand while what was taken before is still being sent; the next take() of this size collects what was granted."""
        qrep_bucket_ask(&self.bucket, size, clock(now_ns))

    def give_back(self, uint64_t size):
        """Return bytes that were taken and not sent, to the whole chain."""
        with nogil:
            qrep_bucket_return(&self.bucket, size)

    def leave(self):
        """Withdraw a request that stands; nobody will ask for it again."""
        with nogil:
            qrep_bucket_leave(&self.bucket)

    def move(self, Bucket parent not None):
        """Go below another parent of the same tree, in use or not."""
        if self.parent is None or self.bucket.root != parent.bucket.root:
            raise ValueError("a bucket moves inside its tree")
        cdef qrep_bucket *above = &parent.bucket
        while above != NULL:
            if above == &self.bucket:
                raise ValueError("a bucket does not move below itself")
            above = above.parent
        qrep_bucket_move(&self.bucket, &parent.bucket)
        self.parent = parent  # only now may the old one go

    def set_rate(self, uint64_t rate, uint64_t capacity=0, *, now_ns=None):
        """Change the rate while in use; bytes earned so far were earned at the old one."""
        qrep_bucket_set_rate(&self.bucket, rate, capacity, clock(now_ns))

    @property
    def piece(self):
        """How many bytes a connection asks for at once."""
        return qrep_bucket_piece(&self.bucket)

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
