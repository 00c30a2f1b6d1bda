"""How far the state database had got, in a file of one sector beside it: a database that has got less far is an older one, or lost its last changes.

Written after each change and not flushed, so it may tell less than the database has, never more: a change is durable before it is noted here.
"""

import logging
import os
import struct

from qrep._native import hasher
from qrep.store import read_exact, write_all

log = logging.getLogger("qrep.agent")
MAGIC = b"QREPAGE1"
BODY = struct.Struct("<8sQQ")  # magic, sequence of the last change, id of the newest event
SIZE = BODY.size + 32  # and the BLAKE3 of that


class Age:
    """sequence, event: 0 where nothing is known. wrong: why nothing is known although there is a file, or ""."""

    def __init__(self, path):
        self.path, self.wrong = path, ""
        self.sequence = self.event = 0
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            data = bytes(read_exact(self._descriptor, SIZE, 0))
        except OSError:
            self.close()
            raise
        if data:
            magic, sequence, event = BODY.unpack(data[: BODY.size].ljust(BODY.size, b"\0"))
            if magic == MAGIC and data[BODY.size :] == hasher.hash(data[: BODY.size]):
                self.sequence, self.event = sequence, event
            else:
                self.wrong = f"{path} is not what was written"

    def note(self, sequence, event):
        body = BODY.pack(MAGIC, sequence, event)
        try:
            write_all(self._descriptor, body + hasher.hash(body), 0)
        except OSError as err:
            log.warning("%s: %s; should the state database lose its last changes, that is not noticed", self.path, err.strerror)

    def close(self):
        os.close(self._descriptor)
