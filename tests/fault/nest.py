"""Processes for tests that kill them, without the price of an interpreter and its imports each time.

Nest() starts one helper that has imported everything and runs nothing. start() makes it fork: a process of its own, with its own pipes, that dies of
SIGKILL like any other. What the native layer reads from the environment when it is loaded comes too late for a fork, so a process that is to crash
at a native crash point is started the plain way.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import oracle

ENDS = Path(__file__).with_name("ends.py")
SOURCES = Path(__file__).parents[2] / "src" / "qrep" / "_native"
NATIVE = {name for path in SOURCES.glob("*.c") for name in path.read_text().split('qrep_crashpoint("')[1:]}
NATIVE = {name.partition('"')[0] for name in NATIVE}
WARN = ("-W", "always::ResourceWarning")
# What a run may end with whose other end was killed; group: another run of its group did.
ERRORS = {"disconnected", "unreachable", "connection", "group"}
SOURCES_OF = ("source", "verify", "groupsource", "groupshared")


class Child:
    """One process of the nest, as far as subprocess.Popen goes. crash: as it was asked for; killed: from here; said: all that was read of what it
    printed."""

    def __init__(self, nest, arguments, crash):
        self.role = next(word for word in arguments[::2] if word != "defect")
        self.crash = crash
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        self._nest, self._errors = nest, tempfile.TemporaryFile()
        try:
            self.pid = nest.ask({"do": "start", "arguments": arguments, "crash": crash}, [theirs_in, theirs_out, self._errors.fileno()])
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self.stdin, self.stdout = open(ours_out, "w"), open(ours_in, "rb", buffering=0)
        self.returncode, self.said, self.killed = None, b"", False

    def poll(self):
        if self.returncode is None:
            self.returncode = self._nest.ask({"do": "poll", "pid": self.pid})
        return self.returncode

    def wait(self, timeout=60):
        """Its exit code; negative: the signal. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {self.pid} goes on after {timeout} s: {self.errors()}")
            time.sleep(0.002)
        return self.returncode

    def stopped(self):
        """Whether it has stopped at its crash point (name:n:stop)."""
        with open(f"/proc/{self.pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "T"

    def kill(self):
        self.killed = True
        self._nest.ask({"do": "kill", "pid": self.pid})

    def readline(self, timeout=60):
        """A line it prints, or b"" when it has ended."""
        line, deadline = b"", time.monotonic() + timeout
        while not line.endswith(b"\n"):
            if not select.select([self.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"process {self.pid} said nothing for {timeout} s: {self.errors()}")
            more = self.stdout.read(1 << 16)
            if not more:
                break
            line += more
        self.said += line
        return line

    def communicate(self, timeout=60):
        """(all it prints, its errors) as text, at its end."""
        if not self.stdin.closed:
            self.stdin.close()
        out = b""
        while more := self.readline(timeout):
            out += more
        self.wait(timeout)
        return out.decode(), self.errors()

    def errors(self):
        return os.pread(self._errors.fileno(), 1 << 16, 0).decode(errors="replace")

    def judge(self):
        """Its exit code, once it has ended. Raises Forbidden if it said what nothing may say, or ended in another way than it was made to."""
        code, error, said = self.returncode, None, self.said.decode()
        oracle.nothing_forbidden(said + self.errors())
        if code == 1 and self.role in SOURCES_OF:
            found = json.loads(said)
            error = [each["code"] for each in (found if isinstance(found, list) else [found]) if "code" in each and "root" not in each]
        if not (code == 0 or (code == -signal.SIGKILL and (self.crash or self.killed)) or (error and ERRORS.issuperset(error))):
            raise oracle.Forbidden(f"{self.role} ended with {code}: {said}{self.errors()}")
        return code

    def end(self):
        """Whatever it does; what it printed and nobody read is in `said`."""
        if self.poll() is None:
            self.kill()
            self.wait()
        while self.readline():
            pass

    def close(self):
        """End it, if it has not ended, and give everything back."""
        if self.poll() is None:
            self.kill()
            self.wait()
        for file in (self.stdin, self.stdout, self._errors):
            file.close()


class Nest:
    def __init__(self):
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._helper = subprocess.Popen(
                [sys.executable, *WARN, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                env={**os.environ, "QREP_CRASH": "", "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ENDS.parents[1]))))},
            )  # fmt: skip
        self.ask({"do": "poll", "pid": 0})  # it is there, with all its imports

    def start(self, *arguments, crash=""):
        """A process of ends.py. crash: QREP_CRASH, name:n."""
        return Child(self, [str(argument) for argument in arguments], crash)

    def ask(self, request, descriptors=()):
        socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
        answer = self._socket.recv(4096)
        if not answer:
            raise RuntimeError("the nest is gone")
        return json.loads(answer)

    def close(self):
        self._socket.close()
        self._helper.wait()


def serve(channel):
    """The helper: forks on request, and is the one who may wait for its children."""
    import ends

    children, ended = set(), {}
    while True:
        data, descriptors, _, _ = socket.recv_fds(channel, 1 << 16, 3)
        if not data:
            break
        request, answer = json.loads(data), None
        if request["do"] == "start":
            answer = os.fork()
            if not answer:
                channel.close()
                become(ends, request, descriptors)
            children.add(answer)
        elif request["pid"] in children and request["do"] == "kill":
            os.kill(request["pid"], signal.SIGKILL)
        elif request["pid"] in children:
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            if pid:
                children.discard(pid)
                answer = ended[pid] = os.waitstatus_to_exitcode(status)
        else:
            answer = ended.get(request["pid"])
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send(json.dumps(answer).encode())
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def become(ends, request, descriptors):
    """In the fork: the program with its arguments; does not return."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    crash = request["crash"]
    if crash.partition(":")[0] in NATIVE:
        command = [sys.executable, *WARN, str(ENDS), *request["arguments"]]
        os.execve(sys.executable, command, {**os.environ, "QREP_CRASH": crash})
    from qrep import crashpoint

    crashpoint.arm(crash)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # what was told before a SIGKILL is told
    code = 0
    try:
        ends.main(request["arguments"])
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as control:
        serve(control)
