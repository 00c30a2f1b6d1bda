"""A server over content in memory, on a unix socket, in this process."""

import os
import socket
import threading

import pytest

from qrep.nbd.handshake import Export
from qrep.nbd.overlay import Overlay
from qrep.nbd.server import Server

MIB = 1 << 20


class Memory:
    """Content below; what a client reads of it is checked against `data`."""

    def __init__(self, data):
        self.data, self.size, self.broken = data, len(data), ()

    def read_into(self, buffer, offset):
        assert offset % 512 == 0 and len(buffer) % 512 == 0 and offset + len(buffer) <= self.size
        for place in self.broken:
            if offset <= place < offset + len(buffer):
                raise OSError(5, "a bad block")
        buffer[:] = self.data[offset : offset + len(buffer)]


class Running:
    def __init__(self, directory, data, *, read_only, limit, space):
        self.path, self.below = str(directory / "nbd.sock"), Memory(data)
        self.content, self.bugs, self.failed, self.full = self.below, [], [], []
        if not read_only:
            self.overlay_fd = os.open(directory / "overlay", os.O_RDWR | os.O_CREAT)
            self.content = Overlay(self.below, self.overlay_fd, space)
        export = Export("db@7", "sync point 7 of db", len(data), read_only=read_only)
        self.server = Server(
            export, self.content, limit, on_flush_failed=self.failed.append, on_bug=self.bugs.append, on_full=lambda: self.full.append(1)
        )
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(self.path)
        self.listening.listen(64)
        threading.Thread(target=self.server.listen, args=(self.listening,), daemon=True).start()

    @property
    def uri(self):
        return f"nbd+unix:///?socket={self.path}"

    def connect(self, timeout=10):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout)
        sock.connect(self.path)
        return sock


@pytest.fixture
def serve(memory_dir, undo_after):
    """serve(data, read_only=True, limit=16, space=bytes) -> Running."""

    def make(data, *, read_only=True, limit=16, space=1 << 40):
        running = Running(memory_dir, data, read_only=read_only, limit=limit, space=space)
        undo_after.callback(lambda: running.bugs and pytest.fail(f"{running.bugs}"))
        return running

    return make
