"""bdsync between two devices of one host: MD5 of blocks of 4 KiB on both sides, a patch through a pipe. Debian does not package it."""

import contextlib

from measure import MIB, tool

from peers import UPDATE, Peer, Program, find


class Bdsync(Peer):
    name = "bdsync"
    programs = (Program("bdsync"),)
    jobs = frozenset({UPDATE})
    most = 128 * MIB

    @contextlib.contextmanager
    def ready(self, source, target, size, directory):
        bdsync = find("bdsync")
        line = f"set -o pipefail; {bdsync} '{bdsync} --server' {source} {target} | {bdsync} --patch={target}"
        yield lambda: tool(["bash", "-c", line]).sample(size)


PEERS = (Bdsync(),)
