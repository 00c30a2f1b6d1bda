"""casync of a device through a store of chunks: make, then extract; chunks by their content, SHA-512/256, zstd."""

import contextlib
import os
import shutil

from measure import MIB, tool

from peers import COPY, UPDATE, Peer, Program, find


class Casync(Peer):
    programs = (Program("casync", "casync"),)
    most = 16 * MIB

    def _line(self, source, target, directory, *seeded):
        casync, store, index = find("casync"), os.path.join(directory, "store.castr"), os.path.join(directory, "index.caibx")
        making = [casync, "make", "--compression=zstd", f"--store={store}", index, source]
        return ["sh", "-ec", " ".join(map(str, making)) + "; " + " ".join(map(str, [casync, "extract", f"--store={store}", *seeded, index, target]))]


class Copying(Casync):
    name = "casync, empty store"
    jobs = frozenset({COPY})

    @contextlib.contextmanager
    def ready(self, source, target, size, directory):
        command = self._line(source, target, directory, "--seed-output=no")

        def run():
            shutil.rmtree(os.path.join(directory, "store.castr"), ignore_errors=True)
            return tool(command).sample(size)

        yield run


class Updating(Casync):
    name = "casync, with store"
    jobs = frozenset({UPDATE})

    @contextlib.contextmanager
    def ready(self, source, target, size, directory):
        command = self._line(source, target, directory)  # what the target holds is a seed
        tool(command)
        yield lambda: tool(command).sample(size)


PEERS = (Copying(), Updating())
