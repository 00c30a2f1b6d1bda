"""Other programs that make a device like another, as an operator would call them: what ours is measured beside.

Each module has one program. `PEERS` are all of them. A program is taken from PATH, or from the variable QREP_BENCH_<PROGRAM> (BDSYNC,
BLOCKSYNC_FAST, ...), which is how one comes in that Debian does not package. docs/BENCHMARKS.md says how to build those.
"""

import abc
import contextlib
import os
import shutil
from dataclasses import dataclass

COPY, UPDATE = "copy", "update"


def variable_of(program):
    """The environment variable that names a program's file."""
    return "QREP_BENCH_" + program.upper().replace("-", "_")


def find(program):
    """The path of a program, None where there is none. Raises FileNotFoundError where its variable names nothing that can be run."""
    named = os.environ.get(variable_of(program))
    found = shutil.which(named or program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if named and found is None:
        raise FileNotFoundError(f"{variable_of(program)}: {named} is no program")
    return found


@dataclass(frozen=True)
class Program:
    """name: as a shell knows it. package: Debian's that brings it, "" where none does."""

    name: str
    package: str = ""

    def missing(self):
        """Why it cannot be called, "" if it can."""
        if find(self.name):
            return ""
        return f"no {self.name} here: " + (f"apt-get install {self.package}" if self.package else f"build it and set {variable_of(self.name)} to it")


class Peer(abc.ABC):
    """One way to use a program. name: as the rows call it. jobs: COPY, everything anew, or UPDATE, what differs. over: "" on one host, else tcp.

    most: bytes of device that a round at full size may cost it; slow ones get less, and all figures are rates.
    """

    name = ""
    programs = ()
    jobs = frozenset()
    over = ""
    most = 1 << 30

    def missing(self):
        """Why it cannot be measured here, "" if it can."""
        return next(filter(None, (program.missing() for program in self.programs)), "")

    def of_use(self):
        """Whether its figure says what no other peer's does."""
        return True

    @abc.abstractmethod
    def ready(self, source, target, size, directory):
        """A context in which run() makes the target like the source: run() returns a Sample, bytes per second of `size` and what it cost.

        target: content of its own, or that of the source before it changed. directory: for files of the peer's, empty before the first time.
        """


@contextlib.contextmanager
def ended_with(process):
    """A server of a peer's, ended with the context."""
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


def all_peers():
    """One of each, in the order of the tables."""
    from peers import bdsync, blocksync, casync, dd, nbd, rsync

    return [*nbd.PEERS, *dd.PEERS, *rsync.PEERS, *bdsync.PEERS, *blocksync.PEERS, *casync.PEERS]


def able(job, over=""):
    """Those that can do a job and are here."""
    return [peer for peer in all_peers() if job in peer.jobs and peer.over == over and peer.of_use() and not peer.missing()]
