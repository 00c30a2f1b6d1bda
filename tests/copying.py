"""What the tests of `qrep copy` share: calling it, killing it in the middle, and a stranger's opinion of the result."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cli_process import COMMAND
from machine import run

MIB = 1 << 20


class Copier:
    """`qrep copy` with a state directory of its own; with an Sshd, the far end has another."""

    def __init__(self, directory, sshd=None):
        self.directory, self.sshd = Path(directory), sshd
        self.env = {**os.environ, "QREP_STATE_DIR": str(self.directory / "near"), "QREP_CONFIG_DIR": str(self.directory / "etc")}
        self.far_pids = self.directory / "far-pids"
        script = self.directory / "far-qrep"
        paths = ":".join(sys.path)
        script.write_text(
            f"#!/bin/sh\n[ \"$2\" = --stdio ] && echo $$ >> {self.far_pids}\n"
            f"export PYTHONPATH='{paths}' QREP_STATE_DIR={self.directory}/far QREP_CONFIG_DIR={self.directory}/etc\n"
            f"exec {sys.executable} -c 'from qrep.cli.main import main; main()' \"$@\"\n"
        )
        script.chmod(0o755)
        self.remote = ["-e", sshd.rsh, "--remote-qrep", str(script)] if sshd else []

    def start(self, source, target, *options):
        target = f"127.0.0.1:{target}" if self.sshd else str(target)
        command = [*COMMAND, "copy", str(source), target, *self.remote, *options]
        return subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __call__(self, source, target, *options, code=0):
        """The JSON result of a copy that must end with `code`."""
        process = self.start(source, target, "--json", *options)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, f"exit {process.returncode}, wanted {code}: {out} {err}"
        return json.loads(out)

    def far_pid(self):
        return int(self.far_pids.read_text().split()[-1])


def b3sum(path, size=None):
    """What a program that is not ours says of a device, or of its first `size` bytes."""
    if size is None:
        return run("b3sum", "--no-names", path)
    with subprocess.Popen(["head", "-c", str(size), str(path)], stdout=subprocess.PIPE) as head:
        return subprocess.run(["b3sum", "--no-names"], stdin=head.stdout, check=True, capture_output=True, text=True).stdout.strip()


def fill(path, random_source, offset, size):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(random_source.randbytes(size))
        file.flush()
        os.fsync(file.fileno())


def wait_until_changed(path, seconds=30):
    """Wait until some of a target that was all zeroes has been written."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.path.exists(path) and os.stat(path).st_blocks * 512 >= 2 * MIB:
            return
        time.sleep(0.05)
    raise AssertionError(f"nothing was written to {path}")


def wait_until_written(path, digest, seconds=30):
    """Wait until a target is not any more what its b3sum `digest` says."""
    deadline = time.monotonic() + seconds
    while b3sum(path) == digest:
        assert time.monotonic() < deadline, f"nothing was written to {path}"


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
