"""What is said before a client may ask for data: fixed newstyle, one export. Takes bytes, returns bytes; does no I/O.

Every length is checked before it is used. Fatal is what leaves no way to go on (a wrong magic, an option too long to skip); anything else is answered.
"""

import struct

from qrep.nbd import wire

OPTIONS_MAX = 64  # in one handshake: who asks for more is no client
NAME_MAX = 4096


class Fatal(Exception):
    """The connection cannot go on."""


class Export:
    """What is served. name: of the export; the empty name means it, too. flags: of the transmission phase."""

    def __init__(self, name, description, size, *, read_only):
        self.name, self.description, self.size, self.read_only = name, description, size, read_only

    @property
    def flags(self):
        always = wire.HAS_FLAGS | wire.SEND_FLUSH | wire.SEND_DF | wire.CAN_MULTI_CONN
        return always | (wire.READ_ONLY if self.read_only else wire.SEND_FUA | wire.SEND_TRIM | wire.SEND_WRITE_ZEROES)


class Handshake:
    """One client's. done: None while it goes on, True when data may be asked for, False when the client ended it. structured: replies, then."""

    def __init__(self, export):
        self.export = export
        self.done, self.structured = None, False
        self._zeroes, self._options = True, 0

    def client_flags(self, data):
        """The four bytes after the greeting."""
        (flags,) = wire.CLIENT_FLAGS.unpack(data)
        if flags & ~(wire.FIXED_NEWSTYLE | wire.NO_ZEROES):
            raise Fatal(f"client flags {flags:#x}")
        self._zeroes = not flags & wire.NO_ZEROES

    def header(self, data):
        """(option, bytes that follow it) of an option's header."""
        magic, option, length = wire.OPTION.unpack(data)
        self._options += 1
        if magic != wire.OPTION_MAGIC or length > wire.OPTION_MAX or self._options > OPTIONS_MAX:
            raise Fatal(f"option {option} of {length} bytes, magic {magic:#x}, the {self._options}th")
        return option, length

    def option(self, option, data):
        """What is answered to an option; `done` may have changed."""
        if option == wire.EXPORT_NAME:  # has no error: an unknown name ends the connection
            if not self._is_ours(data):
                raise Fatal("an export that is not here was asked for")
            self.done = True
            return wire.EXPORT.pack(self.export.size, self.export.flags) + bytes(wire.EXPORT_NAME_ZEROES * self._zeroes)
        if option == wire.ABORT:
            self.done = False
            return wire.option_reply(option, wire.ACK)
        if option == wire.LIST:
            return self._list(data)
        if option in (wire.INFO, wire.GO):
            return self._info(option, data)
        if option == wire.STRUCTURED_REPLY:
            if data:
                return wire.option_reply(option, wire.INVALID)
            self.structured = True
            return wire.option_reply(option, wire.ACK)
        return wire.option_reply(option, wire.UNSUPPORTED)

    def _is_ours(self, name):
        return len(name) <= NAME_MAX and bytes(name) in (b"", self.export.name.encode())

    def _list(self, data):
        if data:
            return wire.option_reply(wire.LIST, wire.INVALID)
        name, text = self.export.name.encode(), self.export.description.encode()
        return wire.option_reply(wire.LIST, wire.SERVER, struct.pack(">I", len(name)) + name + text) + wire.option_reply(wire.LIST, wire.ACK)

    def _info(self, option, data):
        wanted = _info_request(data)
        if wanted is None:
            return wire.option_reply(option, wire.INVALID)
        name, kinds = wanted
        if not self._is_ours(name):
            return wire.option_reply(option, wire.UNKNOWN)
        parts = [struct.pack(">H", wire.INFO_EXPORT) + wire.EXPORT.pack(self.export.size, self.export.flags)]
        if wire.INFO_NAME in kinds:
            parts.append(struct.pack(">H", wire.INFO_NAME) + self.export.name.encode())
        if wire.INFO_DESCRIPTION in kinds:
            parts.append(struct.pack(">H", wire.INFO_DESCRIPTION) + self.export.description.encode())
        if wire.INFO_BLOCK_SIZE in kinds:
            parts.append(struct.pack(">HIII", wire.INFO_BLOCK_SIZE, wire.BLOCK_MIN, wire.BLOCK_PREFERRED, wire.REQUEST_MAX))
        if option == wire.GO:
            self.done = True
        return b"".join(wire.option_reply(option, wire.INFORMATION, part) for part in parts) + wire.option_reply(option, wire.ACK)


def _info_request(data):
    """(name, set of information that is asked for), or None if the lengths in it do not fit each other."""
    if len(data) < 6:
        return None
    (length,) = struct.unpack_from(">I", data)
    if length > min(NAME_MAX, len(data) - 6):
        return None
    (count,) = struct.unpack_from(">H", data, 4 + length)
    if len(data) != 6 + length + 2 * count:
        return None
    return data[4 : 4 + length], set(struct.unpack_from(f">{count}H", data, 6 + length))
