"""The command line as a person or a script starts it: in this process, in a pipe, or on a terminal of its own."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from dataclasses import dataclass

COMMAND = [sys.executable, "-c", "from qrep.cli.main import main; main()"]


@dataclass
class Outcome:
    code: int
    out: str
    err: str = ""


def call(capsys, *arguments):
    """Run in this process. Returns an Outcome."""
    from qrep.cli.app import run
    from qrep.cli.main import root

    code = run(root, list(arguments))
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)


def environment(socket_path, **more):
    return {**os.environ, "QREP_SOCKET": str(socket_path), "TZ": "UTC", "COLUMNS": "200", **more}


def start(socket_path, *arguments, **options):
    """A process with its outputs in pipes."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([*COMMAND, *arguments], env=environment(socket_path), **options)


class Terminal:
    """A process on a pseudo-terminal."""

    def __init__(self, socket_path, *arguments, **env):
        self.master, slave = pty.openpty()

        def own_terminal():
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [*COMMAND, *arguments], env=environment(socket_path, TERM="xterm", **env), stdin=slave, stdout=slave, stderr=slave,
            preexec_fn=own_terminal,
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def expect(self, text, seconds=20):
        """Wait until `text` has been shown."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not appear; seen: {self.seen!r}"
            self._read(left)
        return self

    def _read(self, seconds):
        if select.select([self.master], [], [], seconds)[0]:
            try:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
            except OSError:  # EIO: the other side is gone
                return False
            return True
        return False

    def type(self, text):
        os.write(self.master, text.encode())
        return self

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)
        return self

    def end(self, seconds=20):
        """Wait for the end; returns the exit code."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read(0.05)
        while self._read(0.05):
            pass
        code = self.process.wait(1)
        os.close(self.master)
        return code
