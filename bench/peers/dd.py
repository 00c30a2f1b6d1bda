"""dd from device to device, and through socat over TCP."""

import contextlib

from agents import free_port
from measure import MIB, tool

from peers import COPY, Peer, Program


class Local(Peer):
    name = "dd"
    programs = (Program("dd", "coreutils"),)
    jobs = frozenset({COPY})

    @contextlib.contextmanager
    def ready(self, source, target, size, directory):
        command = ["dd", f"if={source}", f"of={target}", "bs=8M", "iflag=direct", "oflag=direct", "conv=fsync", "status=none"]
        yield lambda: tool(command).sample(size)


class Socat(Peer):
    name = "dd | socat | dd"
    programs = (Program("socat", "socat"), *Local.programs)
    jobs = frozenset({COPY})
    over = "tcp"
    most = 256 * MIB

    @contextlib.contextmanager
    def ready(self, source, target, size, directory):
        port = free_port()
        receiving = f"socat -u -b 1048576 TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr STDOUT | dd of={target} bs=1M iflag=fullblock oflag=direct conv=fsync"
        sending = f"dd if={source} bs=1M iflag=direct | socat -u -b 1048576 STDIN TCP:127.0.0.1:{port},retry=500,interval=0.02"
        # The pipe's end is the receiver's end: what it wrote has been flushed then.
        command = ["bash", "-c", f"set -eo pipefail; exec 2>/dev/null; {receiving} & {sending}; wait $!"]
        yield lambda: tool(command).sample(size)


PEERS = (Local(), Socat())
