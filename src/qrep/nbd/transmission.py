"""The requests of one client, one after the other. Several connections go side by side."""

import errno

from qrep.errors import QrepError
from qrep.nbd import wire

SECTOR = 512
NUMBERS = {
    errno.ENOSPC: wire.ENOSPC, errno.EDQUOT: wire.ENOSPC, errno.ENOMEM: wire.ENOMEM, errno.EPERM: wire.EPERM,
}  # fmt: skip


class FlushFailed(Exception):
    """R2: it is not tried again; the process that serves ends."""


class Ended(Exception):
    """The client broke the protocol, or the connection is of no use any more."""


class Transmission:
    """stream: with receive_into(view) and send(*buffers), which raise Ended. content: a view.Reader or an overlay.Overlay.

    buffer: a page-aligned writable buffer of this connection alone, at least two sectors; longer requests go through it in pieces.
    counts: a dict that is added to: read, written (bytes), requests. on_full(): called when a write met the overlay's limit.
    """

    def __init__(self, stream, export, content, buffer, *, structured, counts, on_full=lambda: None):
        self.stream, self.export, self.content, self.structured = stream, export, content, structured
        self._buffer = memoryview(buffer)
        self._piece = len(self._buffer) // SECTOR * SECTOR - SECTOR  # what fits whatever its place in a sector
        self._counts, self._on_full = counts, on_full
        self._header = bytearray(wire.REQUEST.size)

    def serve(self):
        """Until the client disconnects in order. Raises Ended, FlushFailed."""
        while self._one():
            pass

    def _one(self):
        self.stream.receive_into(memoryview(self._header), idle=True)
        magic, flags, command, cookie, offset, length = wire.REQUEST.unpack(self._header)
        if magic != wire.REQUEST_MAGIC:
            raise Ended(f"a request with magic {magic:#x}")
        self._counts["requests"] += 1
        if command == wire.DISCONNECT:
            return False
        if command in (wire.READ, wire.WRITE) and length > wire.REQUEST_MAX:
            raise Ended(f"a request of {length} bytes")
        error = self._check(flags, command, offset, length)
        if command == wire.READ:
            self._read(error, flags, cookie, offset, length)
        elif command == wire.WRITE:
            self._write(error, flags, cookie, offset, length)
        else:
            self._answer(error or self._without_data(flags, command, offset, length), cookie)
        return True

    def _check(self, flags, command, offset, length):
        known = {wire.READ: wire.DF, wire.WRITE: wire.FUA, wire.FLUSH: 0, wire.TRIM: wire.FUA, wire.WRITE_ZEROES: wire.FUA | wire.NO_HOLE}
        if command not in known:
            return wire.EINVAL
        if flags & ~(known[command] | wire.FUA):  # FUA is allowed wherever the server announced it, and does nothing there
            return wire.EINVAL
        if self.export.read_only and command in (wire.WRITE, wire.TRIM, wire.WRITE_ZEROES):
            return wire.EPERM
        if command == wire.FLUSH:
            return 0 if offset == length == 0 else wire.EINVAL
        if length == 0 or offset > self.export.size or length > self.export.size - offset:
            return wire.ENOSPC if command in (wire.WRITE, wire.WRITE_ZEROES) and length else wire.EINVAL
        if command == wire.READ and flags & wire.DF and length > self._piece:
            return wire.EOVERFLOW
        return 0

    # ---- reading ----

    def _read(self, error, flags, cookie, offset, length):
        if error:
            self._answer(error, cookie)
            return
        done = 0
        while done < length:
            size = min(self._piece, length - done)
            try:
                data = self._piece_of(offset + done, size)
            except (OSError, QrepError) as err:
                if done and not self.structured:
                    raise Ended(f"what is at {offset + done} cannot be read, and the reply has begun: {err}") from err
                self._answer(wire.EIO, cookie)
                return
            if self.structured:
                last = wire.CHUNK_DONE if done + size == length else 0
                self.stream.send(wire.chunk(last, wire.CHUNK_DATA, cookie, size + 8) + (offset + done).to_bytes(8, "big"), data)
            elif done:
                self.stream.send(data)
            else:
                self.stream.send(wire.simple_reply(0, cookie), data)
            done += size
        self._counts["read"] += length

    def _piece_of(self, offset, size):
        start, end = offset // SECTOR * SECTOR, -(-(offset + size) // SECTOR) * SECTOR
        self.content.read_into(self._buffer[: end - start], start)
        return self._buffer[offset - start : offset - start + size]

    # ---- writing ----

    def _write(self, error, flags, cookie, offset, length):
        """Everything the client sends is taken, also what is not written."""
        done = 0
        while done < length:
            data = self._buffer[: min(len(self._buffer), length - done)]
            self.stream.receive_into(data)
            if not error:
                error = self._change(self.content.write, data, offset + done)
            done += len(data)
        if not error and flags & wire.FUA:
            self._flush()
        self._counts["written"] += 0 if error else length
        self._answer(error, cookie)

    def _without_data(self, flags, command, offset, length):
        error = 0
        if command != wire.FLUSH:
            error = self._change(self.content.zero, offset, length)
        if not error and not self.export.read_only and (command == wire.FLUSH or flags & wire.FUA):
            self._flush()
        return error

    def _change(self, action, *arguments):
        try:
            action(*arguments)
        except (OSError, QrepError) as err:
            number = NUMBERS.get(getattr(err, "errno", None), wire.EIO)
            if number == wire.ENOSPC:
                self._on_full()
            return number
        return 0

    def _flush(self):
        try:
            self.content.flush()
        except OSError as err:
            raise FlushFailed(str(err)) from err

    def _answer(self, error, cookie):
        if not self.structured:
            self.stream.send(wire.simple_reply(error, cookie))
        elif error:
            self.stream.send(wire.error_chunk(error, cookie))
        else:
            self.stream.send(wire.chunk(wire.CHUNK_DONE, wire.CHUNK_NONE, cookie, 0))
