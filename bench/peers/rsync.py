"""rsync between two devices of one host: its rolling checksums find what differs, both sides are read whole."""

import contextlib
import subprocess

from measure import MIB, tool

from peers import UPDATE, Peer, Program, find


class Rsync(Peer):
    name = "rsync"
    programs = (Program("rsync", "rsync"),)
    jobs = frozenset({UPDATE})
    most = 256 * MIB

    def missing(self):
        absent = super().missing()
        if absent or b"copy-devices" in subprocess.run([find("rsync"), "--help"], capture_output=True, check=True).stdout:
            return absent
        return "this rsync cannot read a device: --copy-devices came with 3.2.4"

    @contextlib.contextmanager
    def ready(self, source, target, size, directory):
        command = [find("rsync"), "--copy-devices", "--write-devices", "--inplace", "--no-whole-file", "--ignore-times", source, target]
        yield lambda: tool(command).sample(size)


PEERS = (Rsync(),)
