"""Another user of the host: what the agent keeps, listens on and is, is none of his business."""

import ctypes
import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
from agents import MIB, Agents
from machine import loop_devices
from system.test_agent_privacy import as_nobody

pytestmark = pytest.mark.root
PTRACE_ATTACH = 16


def denied(action):
    """Whether nobody is refused it: the name of the error; what he got otherwise."""

    def attempt():
        try:
            return f"got {action()!r}"
        except (PermissionError, FileNotFoundError, ProcessLookupError) as err:
            return type(err).__name__

    return as_nobody(attempt)


@pytest.fixture(scope="module")
def running():
    """Two agents with a job that ran twice, so that there is an undo file; in directories that anyone may enter as far as the agents' own."""
    directory = Path(tempfile.mkdtemp(prefix="qrep-test-", dir="/dev/shm"))
    for name in ("source", "target"):
        (directory / name).write_bytes(os.urandom(8 * MIB) if name == "source" else bytes(8 * MIB))
    with loop_devices(directory / "source", directory / "target") as (source, target), Agents(directory) as agents:
        a, b = agents.replica(source, target)
        a.run()
        with open(source, "r+b") as file:
            file.write(os.urandom(MIB))
        a.run()
        for place in (directory, a.directory, b.directory):
            place.chmod(0o755)
        yield a, b
    shutil.rmtree(directory)


def ptrace(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_ATTACH, pid, 0, 0):
        raise OSError(ctypes.get_errno(), "ptrace")
    return "attached"


def connect(path):
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(path))
    return "connected"


def test_nobody_reads_what_the_agent_keeps_or_looks_into_its_processes(running):
    for agent in running:
        node = agent.client().get("/node")
        pids = [agent.process.pid, node["front"]["pid"]]
        undo = [path for path in agent.state.rglob("*") if path.is_file()]
        assert len(undo) > 5
        for path in (agent.state, agent.state / "keys", *undo, agent.config / "peers", agent.config / "volumes"):
            assert denied(lambda path=path: (os.listdir(path) if path.is_dir() else path.read_bytes()[:9])) == "PermissionError", path
        assert denied(lambda agent=agent: connect(agent.socket)) == "PermissionError"
        for pid in pids:
            assert denied(lambda pid=pid: ptrace(pid)) == "PermissionError"
            assert denied(lambda pid=pid: os.listdir(f"/proc/{pid}/fd")) == "PermissionError"
            for file in ("mem", "environ", "maps", "root", "cwd"):
                assert denied(lambda pid=pid, file=file: (os.readlink if file in ("root", "cwd") else lambda path: open(path, "rb").read(9))(f"/proc/{pid}/{file}")) == "PermissionError"
        assert denied(lambda pid=pids[0]: os.kill(pid, 9)) == "PermissionError"
    pid = running[1].process.pid  # the target holds its device from the start on
    devices = [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd") if Path(f"/proc/{pid}/fd/{fd}").is_block_device()]
    assert devices, "the agent has its device"
    for path in devices:
        assert denied(lambda path=path: os.open(path, os.O_RDWR)) == "PermissionError"


def test_nobody_of_the_fronts_own_user_may_trace_it(running):
    """The front runs as a user that others may be, too: it is not dumpable, so being that user is not enough."""
    a, _b = running
    front = a.client().get("/node")["front"]
    child = os.fork()
    if not child:
        os.setgroups([])
        os.setresgid(front["uid"], front["uid"], front["uid"])
        os.setresuid(front["uid"], front["uid"], front["uid"])
        try:
            ptrace(front["pid"])
        except PermissionError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
