"""Small files of qrep's own state as JSON with its BLAKE3 behind it, so that nothing of them is believed that was not written."""

import json

from qrep._native import hasher
from qrep.errors import DamagedError

DIGEST_LINE = 2 * 32 + 2  # a line end, 64 hexadecimal digits, a line end


def dump(value):
    """The bytes of a file that holds `value`."""
    body = json.dumps(value, indent=1).encode()
    return b"%s\n%s\n" % (body, hasher.hash(body).hex().encode())


def load(data, name):
    """What dump() was given. Raises DamagedError, with the name of the file."""
    data = bytes(data)
    body, digest = data[:-DIGEST_LINE], data[-DIGEST_LINE:]
    if len(digest) != DIGEST_LINE or digest != b"\n%s\n" % hasher.hash(body).hex().encode():
        raise DamagedError(f"{name}: it is not what was written: its digest is another")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as err:  # another program's, with a digest
        raise DamagedError(f"{name}: {err}") from err


def write(directory, name, value):
    """As store.Directory.write(), of a value."""
    directory.write(name, dump(value))


def read(directory, name, limit):
    """What write() was given, or None if there is no such file. Raises DamagedError, OSError."""
    data = directory.read(name, limit)
    return None if data is None else load(data, f"{directory.path}/{name}")
