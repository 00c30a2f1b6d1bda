"""A client that says exactly what a test wants, right or wrong."""

import struct

from qrep.nbd import wire


class Client:
    def __init__(self, sock):
        self.socket = sock

    def take(self, size):
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise EOFError(f"the server hung up after {len(data)} of {size} bytes")
            data += piece
        return data

    def greet(self, flags=3):
        assert self.take(18) == b"NBDMAGICIHAVEOPT\0\3"
        self.socket.sendall(struct.pack(">I", flags))
        return self

    def option(self, number, data=b"", magic=wire.OPTION_MAGIC, length=None):
        self.socket.sendall(wire.OPTION.pack(magic, number, len(data) if length is None else length) + data)

    def reply(self):
        """(option, kind, data)."""
        magic, option, kind, length = wire.OPTION_REPLY.unpack(self.take(20))
        assert magic == 0x3E889045565A9
        return option, kind, self.take(length)

    def replies(self):
        found = [self.reply()]
        while found[-1][1] in (wire.SERVER, wire.INFORMATION):
            found.append(self.reply())
        return found

    def go(self, name=b"", structured=False):
        self.greet()
        if structured:
            self.option(wire.STRUCTURED_REPLY)
            assert self.reply()[1] == wire.ACK
        self.option(wire.GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))
        replies = self.replies()
        assert replies[-1][1] == wire.ACK
        self.size, self.flags = wire.EXPORT.unpack(replies[0][2][2:])
        return self

    def request(self, command, offset=0, length=0, data=b"", flags=0, cookie=7, magic=wire.REQUEST_MAGIC):
        self.socket.sendall(wire.REQUEST.pack(magic, flags, command, cookie, offset, length) + data)

    def answer(self, cookie=7):
        magic, error, got = wire.SIMPLE_REPLY.unpack(self.take(16))
        assert (magic, got) == (wire.SIMPLE_REPLY_MAGIC, cookie)
        return error

    def ask(self, *arguments, **options):
        self.request(*arguments, **options)
        return self.answer()

    def read(self, offset, length):
        error = self.ask(wire.READ, offset, length)
        return error or self.take(length)

    def hung_up(self):
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True
