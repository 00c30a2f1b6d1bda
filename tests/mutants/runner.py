"""Tries mutants one after the other: a fork of a process that has imported everything but qrep runs the tests that are to notice."""

import contextlib
import dataclasses
import json
import os
import select
import signal
import sys
import tempfile
import time
from pathlib import Path

from mutants import verdict
from mutants.tree import Tree

LIMIT_S = 120.0  # for the tests of one mutant; one that has not ended by then was not noticed
KILLED, SURVIVED = "killed", "survived"
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


@dataclasses.dataclass
class Result:
    """outcome: KILLED, SURVIVED, or why neither can be said. by: the test that failed. why: of what. ran: tests."""

    outcome: str
    by: str = ""
    why: str = ""
    ran: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    output: str = ""


class Runner:
    """In a process without qrep: each mutant's tests import it anew, from the private tree."""

    def __init__(self, directory):
        if "qrep" in sys.modules:
            raise RuntimeError("qrep was imported already; mutants are tried in a process of their own: python -m mutants")
        self.tree = Tree(directory)
        self._output = Path(directory, "output")
        warm()

    def try_one(self, mutant):
        """The Result of a mutant; `killed` only if a test failed for a reason of its own."""
        began = time.monotonic()
        with self.tree.mutated(mutant):
            result = self.run(mutant.tests)
        result.seconds = time.monotonic() - began
        return result

    def run(self, tests, *, limit=LIMIT_S, write_bytecode=False):
        """Run these tests in the tree as it is now, for `limit` seconds at most."""
        before, (inner, outer) = _cpu(), os.pipe()
        pid = os.fork()
        if not pid:
            os.close(inner)
            self._become(tests, outer, write_bytecode)
        os.close(outer)
        text = b""
        deadline = time.monotonic() + limit
        with open(inner, "rb", buffering=0) as pipe:
            while (left := deadline - time.monotonic()) > 0 and select.select([pipe], [], [], left)[0]:
                part = pipe.read(1 << 16)
                if not part:
                    break
                text += part
        over = time.monotonic() >= deadline
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what its tests left behind as well
        _, status = os.waitpid(pid, 0)
        result = _judged(text, over, status)
        result.cpu, result.output = _cpu() - before, self._output.read_text(errors="replace")[-6000:]
        return result

    def _become(self, tests, out, write_bytecode):
        """In the fork; does not return."""
        try:
            os.setsid()
            descriptor = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            for number in (1, 2):
                os.dup2(descriptor, number)
            os.chdir(self.tree.root)
            os.environ |= ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(self.tree.paths)}
            if not write_bytecode:
                os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            sys.dont_write_bytecode = not write_bytecode
            sys.path[:] = [*self.tree.paths, *(path for path in sys.path if path not in HERE)]
            for name in [name for name in sys.modules if name.partition(".")[0] in ("mutants", "campaign") and name != "mutants.verdict"]:
                del sys.modules[name]
            verdict.run(["--rootdir", str(self.tree.root), *(f"tests/{test}" for test in tests)], out)
        finally:
            sys.stdout.flush()
            os._exit(0)


HERE = {str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "src"), "", os.getcwd()}


def _judged(text, over, status):
    if over:
        return Result("no end")
    try:
        found = json.loads(text)
    except ValueError:
        return Result(f"no verdict: the tests' process ended with {os.waitstatus_to_exitcode(status)}")
    if found["failed"]:
        (by, why), *_ = found["failed"]
        return Result(KILLED, by, why, found["ran"])
    if found["broken"]:
        (by, why), *_ = found["broken"]
        return Result("broken", by, why, found["ran"])
    return Result(SURVIVED, ran=found["ran"]) if found["ran"] else Result("no test was run")


def _cpu():
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def warm():
    """Import what the tests need that is not of qrep, once."""
    for name in ("pytest", "hypothesis", "numpy", "blake3", "msgspec", "json", "asyncio", "cryptography.x509", "_pytest.assertion.rewrite"):
        __import__(name)


@contextlib.contextmanager
def runner():
    with tempfile.TemporaryDirectory(prefix="qrep-mutants-") as directory:
        yield Runner(directory)
