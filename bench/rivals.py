"""The peers of a case, each with devices of the size that it can cope with: what Comparison's `also` is made of."""

import os
import subprocess

from measure import FULL, MIB

from peers import COPY, UPDATE, able

SMOKE_SIZE = 8 * MIB  # of a peer's devices


class Rivals:
    """make_device(size, fill): as the fixture memory_device. directory: for files of the peers'. stack: ends their servers.

    change: what is done to a source between rounds, change(path, size); of use for UPDATE.
    """

    def __init__(self, make_device, directory, stack):
        self._make, self._directory, self._stack = make_device, directory, stack
        self._sources, self._targets = {}, {}

    def copying(self, source, size, over="", prepare=lambda path, size: None, without=()):
        """{name: run} of those that make a target like a source anew, but for the names in `without`. source: a device of `size` bytes for those
        that cope with it; the others have one of their own, filled at random and prepared. One target serves all of one size."""
        self._sources[size] = source
        return {peer.name: self._ready(peer, size, prepare, own_target=False) for peer in able(COPY, over) if peer.name not in without}

    def updating(self, source, size, over=""):
        """{name: run} of those that send what differs. Each has a target of its own, which holds what its source holds now."""
        self._sources[size] = source
        return {peer.name: self._ready(peer, size, lambda path, size: None, own_target=True) for peer in able(UPDATE, over)}

    def sources(self):
        """[(path, size)] of all sources, those of the peers' own included."""
        return [(path, size) for size, path in self._sources.items()]

    def _ready(self, peer, size, prepare, own_target):
        size = min(size, peer.most if FULL else SMOKE_SIZE)
        if size not in self._sources:
            self._sources[size] = self._make(size)
            prepare(self._sources[size], size)
        source = self._sources[size]
        if own_target:
            target = self._make(size, None)
            subprocess.run(["dd", f"if={source}", f"of={target}", "bs=8M", "iflag=direct", "oflag=direct", "status=none"], check=True)
        elif size in self._targets:
            target = self._targets[size]
        else:
            target = self._targets[size] = self._make(size, "zero")
        files = self._directory / f"{peer.name}-{size}".replace(" ", "-")
        os.mkdir(files)
        return self._stack.enter_context(peer.ready(source, target, size, files))
