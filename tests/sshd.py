"""A real sshd on loopback for one test, with throw-away keys and nothing of the machine's own configuration."""

import getpass
import os
import shutil
import socket
import subprocess
import time

from machine import need_tool, run

SSHD = "/usr/sbin/sshd"


class Sshd:
    """directory: for its keys and configuration. `rsh`: the command to reach it with. stop() it."""

    def __init__(self, directory):
        need_tool("ssh")
        need_tool("ssh-keygen")
        if not os.path.exists(SSHD):
            import pytest

            pytest.skip("needs sshd (openssh-server)")
        self.directory = directory
        for name in ("host", "user"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name)
        shutil.copy(directory / "user.pub", directory / "authorized")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        os.makedirs("/run/sshd", exist_ok=True)
        settings = {
            "Port": self.port, "ListenAddress": "127.0.0.1", "HostKey": directory / "host", "PidFile": "none", "UsePAM": "no",
            "AuthorizedKeysFile": directory / "authorized", "StrictModes": "no", "PasswordAuthentication": "no",
            "PermitRootLogin": "yes", "MaxSessions": 32, "MaxStartups": 32, "PrintMotd": "no",
        }  # fmt: skip
        (directory / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        key = (directory / "host.pub").read_text().split()
        (directory / "known").write_text(f"[127.0.0.1]:{self.port} {key[0]} {key[1]}\n")
        self.rsh = (
            f"ssh -F none -T -p {self.port} -i {directory}/user -l {getpass.getuser()} -o UserKnownHostsFile={directory}/known "
            "-o StrictHostKeyChecking=yes -o BatchMode=yes -o IdentitiesOnly=yes"
        )
        log = open(directory / "sshd.log", "wb")
        with log:
            self.process = subprocess.Popen([SSHD, "-D", "-e", "-f", directory / "sshd_config"], stdin=subprocess.DEVNULL, stderr=log)
        self._wait()

    def _wait(self):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.directory / "sshd.log").read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("sshd does not listen")

    def stop(self):
        self.process.terminate()
        self.process.wait(10)
