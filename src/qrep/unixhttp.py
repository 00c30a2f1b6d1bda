"""One HTTP/1.1 request over a unix socket and its answer, as far as the agent's local API needs it.

http.client would bring ssl and the parsers of electronic mail with it: half of the time that `qrep status` takes (bench/RESULTS.md, P3).
"""

import socket

HEAD_MAX = 64 << 10  # bytes of a status line with its headers, and of a line that tells the size of a chunk
CHUNK_MAX = 1 << 30
RECEIVE = 64 << 10


class BadAnswer(Exception):
    """What answers is no HTTP server, or it ended in the middle of what it said."""


class Response:
    """status: the code. length: bytes of the body, None where it comes in chunks or to the end. Close it."""

    def __init__(self, connection):
        self._connection, self._waiting = connection, b""
        self._left = self._chunks = self.length = None
        status, *lines = self._head().split("\r\n")
        version, _, rest = status.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
            raise BadAnswer("what came is no HTTP")
        self.status = int(rest[:3])
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self._chunks = headers.get("transfer-encoding", "").lower() == "chunked"
        if not self._chunks and "content-length" in headers:
            self.length = self._left = _number(headers["content-length"], 10)

    def _more(self):
        """Wait for bytes; False: that was the end."""
        data = self._connection.recv(RECEIVE)
        self._waiting += data
        return bool(data)

    def _until(self, mark):
        while mark not in self._waiting:
            if len(self._waiting) > HEAD_MAX or not self._more():
                raise BadAnswer("it ended early" if len(self._waiting) <= HEAD_MAX else "what came is no HTTP")
        found, self._waiting = self._waiting.split(mark, 1)
        return found.decode("latin-1")

    def _head(self):
        return self._until(b"\r\n\r\n")

    def _take(self, size):
        """Up to `size` bytes of what has come, or comes next; b"" at the end."""
        if not self._waiting and not self._more():
            return b""
        data, self._waiting = self._waiting[:size], self._waiting[size:]
        return data

    def pieces(self):
        """The body as it comes. Raises BadAnswer where it ends early."""
        while True:
            if self._chunks and not self._left:
                self._left = _number(self._until(b"\r\n").partition(";")[0], 16)
                if not self._left:
                    return
            elif self._left == 0:
                return
            data = self._take(RECEIVE if self._left is None else self._left)
            if not data:
                if self._left is None:
                    return
                raise BadAnswer("it ended early")
            yield data
            if self._left is not None:
                self._left -= len(data)
                if self._chunks and not self._left and self._until(b"\r\n"):
                    raise BadAnswer("a chunk is longer than it said")

    def read(self):
        return b"".join(self.pieces())

    def __iter__(self):
        """The lines of the body, without their ends, as they come."""
        rest = b""
        for data in self.pieces():
            *lines, rest = (rest + data).split(b"\n")
            yield from lines
        if rest:
            yield rest

    def close(self):
        self._connection.close()


def _number(text, base):
    text = text.strip()
    if not text.isalnum() or len(text) > 16:
        raise BadAnswer("a length that is none")
    try:
        value = int(text, base)
    except ValueError as err:
        raise BadAnswer("a length that is none") from err
    if value > CHUNK_MAX:
        raise BadAnswer(f"{value} bytes at once were announced")
    return value


def request(path, method, target, body=None, timeout=None):
    """Ask, and return the Response once its headers are there. body: bytes of JSON, or None. timeout: seconds for each wait, None: for ever.

    Raises OSError (no agent, no answer in time), BadAnswer.
    """
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(path)
        connection.sendall(head.encode("latin-1") + b"\r\n" + (body or b""))
        return Response(connection)
    except BaseException:
        connection.close()
        raise
