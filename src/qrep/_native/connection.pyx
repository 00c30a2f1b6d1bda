"""Connections of lanes: a plain socket, two pipes, any object that sends and receives (TLS), or none at all."""

import errno

from cpython.bytearray cimport PyByteArray_AsString
from libc.string cimport memcpy

cdef extern from "Python.h":
    object PyMemoryView_FromMemory(char *data, Py_ssize_t size, int flags)
    int PyBUF_READ
    int PyBUF_WRITE

# 16 full TLS records; more than this at once gains nothing, and each byte of it stays in the cache until it is encrypted.
cdef Py_ssize_t STAGING_SIZE = 256 << 10


cdef class Connection:
    """One connection of a run, made by one of the constructors below and given to one lane.

    index: its number inside the session, in every frame. bucket: a Bucket that wire bytes are taken from, or None; the connections that are
    given the same one share its rate alike.
    The descriptors and the stream stay the caller's, open until the lane has returned.
    """

    def __init__(self, uint32_t index=0, Bucket bucket=None):
        self.connection.kind = QREP_CONNECTION_NONE
        self.connection.index = index
        self.connection.receive_fd = self.connection.send_fd = -1
        self.bucket = bucket
        if bucket is not None:
            self.turn = Bucket(0, parent=bucket)
            self.connection.bucket = &self.turn.bucket

    @staticmethod
    def none():
        """Nothing is sent: a source lane only scans."""
        return Connection()

    @staticmethod
    def socket(int sock_fd, uint32_t index, *, bint zero_copy=False, int send_fd=-1, Bucket bucket=None):
        """A connected stream socket, blocking or not. zero_copy: try SEND_ZC, and stop trying where the kernel copies.

        send_fd: another socket, for what is sent; sock_fd is then received from only.
        """
        cdef Connection self = Connection(index, bucket)
        self.connection.kind = QREP_CONNECTION_SOCKET
        self.connection.receive_fd, self.connection.send_fd = sock_fd, sock_fd if send_fd < 0 else send_fd
        self.connection.zero_copy = zero_copy
        return self

    @staticmethod
    def pipes(int receive_fd, int send_fd, uint32_t index, *, Bucket bucket=None):
        """Two descriptors, as ssh gives them; non-blocking while the lane runs."""
        cdef Connection self = Connection(index, bucket)
        self.connection.kind = QREP_CONNECTION_PIPES
        self.connection.receive_fd, self.connection.send_fd = receive_fd, send_fd
        return self

    @staticmethod
    def stream(stream, uint32_t index, *, Bucket bucket=None):
        """An object with sendall(memoryview) and recv_into(memoryview) -> int, blocking, as an ssl.SSLSocket.

        The views are valid during the call only. A lane blocked in it hears a stop when the stream is shut down.
        """
        cdef Connection self = Connection(index, bucket)
        self.connection.kind = QREP_CONNECTION_STREAM
        self.wrapped = stream
        self.staging = bytearray(STAGING_SIZE)
        self.connection.stream.context = <void *>self  # a lane holds a reference to us while it runs
        self.connection.stream.send = stream_send
        self.connection.stream.receive = stream_receive
        return self

    def count_records(self, uint32_t size, uint32_t overhead):
        """Under a rate, count what carries this stream, too: each `size` bytes of it go out as a record with `overhead` bytes more."""
        self.connection.record_size, self.connection.record_overhead = size, overhead

    def finish(self):
        """The lane takes no more work, sends what it has, and ends its stream in order."""
        self.lane_stop = 1

    @property
    def index(self):
        return self.connection.index

    @property
    def sent(self):
        """Bytes that a source's lane has sent over it, headers included; any time."""
        return self.connection.sent

    @property
    def received(self):
        """Bytes that a target's lane has had of it, headers included; any time."""
        return self.connection.received

    @property
    def finishing(self):
        """finish() was called."""
        return self.lane_stop != 0

    @property
    def ended(self):
        """At the target: its END has come and everything it brought is written. True before the source can know of it."""
        return self.connection.ended != 0

    @property
    def kind(self):
        """none, socket, stream or pipes."""
        return ("none", "socket", "stream", "pipes")[self.connection.kind]

    cdef int claim(self) except -1:
        if self.used and self.connection.kind != QREP_CONNECTION_NONE:
            raise ValueError("a connection serves one lane, once: its frames are numbered")
        self.used = True
        return 0

    cdef int flush(self) except -1:
        cdef Py_ssize_t size = self.staged
        if size:
            self.staged = 0
            with memoryview(self.staging) as whole, whole[:size] as view:
                self.wrapped.sendall(view)
        return 0

    cdef int send_all(self, const iovec *iov, unsigned count) except -1:
        cdef unsigned i
        cdef Py_ssize_t size
        for i in range(count):
            size = iov[i].iov_len
            if size >= STAGING_SIZE:  # large enough for full records by itself
                self.flush()
                with PyMemoryView_FromMemory(<char *>iov[i].iov_base, size, PyBUF_READ) as view:
                    self.wrapped.sendall(view)
                continue
            if self.staged + size > STAGING_SIZE:
                self.flush()
            memcpy(PyByteArray_AsString(self.staging) + self.staged, iov[i].iov_base, size)
            self.staged += size
        return self.flush()

    cdef int receive_all(self, char *data, size_t size) except -1:
        cdef size_t done = 0
        while done < size:
            with PyMemoryView_FromMemory(data + done, size - done, PyBUF_WRITE) as view:
                got = self.wrapped.recv_into(view)
            if not got:
                number = errno.ECONNRESET if done else errno.ENODATA
                raise OSError(number, "the stream ended " + ("inside a frame" if done else "before a frame"))
            if not 0 < got <= size - done:
                raise ValueError(f"recv_into: returned {got} for {size - done} bytes")
            done += got
        return 0


def error_number(err):
    """The errno a failed stream stands for; the library's own numbers (ssl.SSLError) are not errno."""
    import ssl

    if isinstance(err, OSError) and not isinstance(err, ssl.SSLError) and isinstance(err.errno, int) and err.errno > 0:
        return err.errno
    return errno.ECONNRESET if isinstance(err, OSError) else errno.EIO


cdef int keep_error(Connection connection, object err) noexcept:
    # The lane learns a number; who started it finds the exception here.
    if connection.error is None:
        connection.error = err
    try:
        return -error_number(err)
    except BaseException:
        return -5  # EIO: even that failed, and C must hear of it


cdef int stream_send(void *context, const iovec *iov, unsigned count) noexcept with gil:
    cdef Connection connection = <Connection>context
    try:
        return connection.send_all(iov, count)
    except BaseException as err:
        return keep_error(connection, err)


cdef int stream_receive(void *context, void *data, size_t size) noexcept with gil:
    cdef Connection connection = <Connection>context
    try:
        return connection.receive_all(<char *>data, size)
    except BaseException as err:
        return keep_error(connection, err)
