"""blocksync-fast between two devices of one host, with its file of digests: 32 bits for each 4 KiB, the target is not read. Debian does not
package it. Without that file it compares the two devices."""

import contextlib
import os

from measure import tool

from peers import COPY, UPDATE, Peer, Program, find


class WithDigests(Peer):
    name = "blocksync-fast, digests"
    programs = (Program("blocksync-fast"),)
    jobs = frozenset({UPDATE})

    @contextlib.contextmanager
    def ready(self, source, target, size, directory):
        command = [find("blocksync-fast"), "--src", source, "--dst", target, "--digest", os.path.join(directory, "digests"), "--silent"]
        tool(command)  # makes the file
        yield lambda: tool(command).sample(size)


class Copying(Peer):
    name = "blocksync-fast, copy"
    programs = WithDigests.programs
    jobs = frozenset({COPY})

    @contextlib.contextmanager
    def ready(self, source, target, size, directory):
        command = [find("blocksync-fast"), "--src", source, "--dst", target, "--no-compare", "--silent"]
        yield lambda: tool(command).sample(size)


PEERS = (Copying(), WithDigests())
