"""A replica whose two ends speak through somebody who changes what they say: as a program of another version would say it.

    site = Site(directory)
    site.run(change)      # change(sender, fields) -> the fields that are passed on; sender: "source" or "target"
"""

import contextlib
import os
import random
import threading
from pathlib import Path

import blake3
import msgspec
from fault.rot import Tree
from flow import harness

from qrep.copy import LocalTarget
from qrep.protocol.messages import LENGTH
from qrep.protocol.transport import local_pair
from qrep.source.verify import verify

LEAF, GRANULE, SIZE = 4 << 10, 32 << 10, 256 << 10
RUN = {"connections": 1, "slots": 1, "frame_limit": 64 << 10, "timeout_s": 0.0, "compress": "on"}


def unchanged(sender, fields):
    return fields


class Relay:
    """Between the source's channel and the target's: whole messages, one thread for each direction."""

    def __init__(self, near, far, change):
        self._change, self._at_work = change, [near, far]
        for name, one, other in (("source", near, far), ("target", far, near)):
            threading.Thread(target=self._pass_on, args=(name, one, other), name=f"relay {name}", daemon=True).start()

    def _pass_on(self, sender, one, other):
        try:
            while True:
                (size,) = LENGTH.unpack(_exactly(one, LENGTH.size))
                body = _exactly(one, size)
                fields = self._change(sender, msgspec.msgpack.decode(body))
                body = msgspec.msgpack.encode(fields)
                other.sendall(LENGTH.pack(len(body)) + body)
        except (OSError, EOFError):
            pass
        finally:
            _shut(one)
            _shut(other)
            self._at_work.pop()
            if not self._at_work:  # the last of both threads
                one.close()
                other.close()


def _shut(end):
    try:
        end.shutdown(2)
    except OSError:
        pass


def _exactly(stream, size):
    data = b""
    while len(data) < size:
        part = stream.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


class Target(LocalTarget):
    """LocalTarget behind a Relay."""

    def __init__(self, volume, change):
        super().__init__(volume)
        self.change = change

    def dial(self):
        source_end = super().dial()  # a channel to the target; its stream becomes the relay's
        near, far = local_pair()
        stream, inner = source_end.detach(), far.detach()
        Relay(inner, stream, self.change)
        return near


class Site(harness.Site):
    """content: {counter: bytes} that the source held. Twice the same data, and data that packs, so that every feature of frames has something to do."""

    def __init__(self, directory):
        directory = Path(directory)
        super().__init__(directory, directory / "source", directory / "device", leaf_size=LEAF, granule_size=GRANULE, sync_points=2)
        self.chance, self.content = random.Random(1), {}
        for name in ("source", "device"):
            (directory / name).write_bytes(bytes(SIZE))

    def write(self, counter):
        if counter not in self.content:
            data = bytearray(self.content.get(counter - 1, bytes(SIZE)))
            same, text = self.chance.randbytes(LEAF), (b"%d a line of text\n" % counter * LEAF)[:LEAF]
            for leaf in self.chance.sample(range(SIZE // LEAF), 24):
                data[leaf * LEAF : (leaf + 1) * LEAF] = self.chance.choice((same, text, self.chance.randbytes(LEAF)))
            self.content[counter] = bytes(data)
        harness.write_at(self.source, 0, self.content[counter])

    def session(self, change):
        """An open volume that is reached through `change`."""
        self.open()
        self.local = Target(self.volume, change)
        return self

    def run(self, change=unchanged, **options):
        self.session(change)
        try:
            return self.make_run(**(RUN | options)).run()
        finally:
            self.close()

    def verify(self, change=unchanged):
        self.session(change)
        try:
            return verify(self.make_run_request(), self.local.dial, repair=True)
        finally:
            self.close()

    def device(self):
        return Path(self.target_path).read_bytes()

    def fingerprint(self, below="."):
        """As oracle.fingerprint(), which would read the holes of undo files, too."""
        place = self.directory / below
        digest = blake3.blake3("\0".join(sorted(str(path) for path in place.rglob("*"))).encode())
        for name, (size, pieces) in Tree(place).files.items():
            digest.update(f"{name}\0{size}\0".encode())
            for offset, data in pieces:
                digest.update(f"{offset}\0".encode() + data)
        return digest.digest()

    def is_held_open(self):
        """Descriptors below the directory that were not closed."""
        held = []
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # of the listing itself, or of a socket that a relay closes just now
                held.append(os.readlink(f"/proc/self/fd/{name}"))
        return [path for path in held if path.startswith(str(self.directory))]
