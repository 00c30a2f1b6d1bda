"""One of the demo's two hosts: a network namespace with an agent of its own configuration, state and socket."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time

from qrep.client import Client
from qrep.errors import QrepError, Unreachable

QREP = [sys.executable, "-c", "from qrep.cli.main import main; main()"]
START_S, STOP_S, COMMAND_S = 30.0, 15.0, 120.0


class Site:
    """place: the Place. name: of the host. cables: Cables, whose namespace of that name it lives in."""

    def __init__(self, place, name, cables):
        self.place, self.name = place, name
        self.addresses, self._inside = cables.addresses(name), cables.inside(name)
        self.directory = os.path.join(place.path, name)
        os.makedirs(os.path.join(self.directory, "etc"), mode=0o700)
        self.socket = os.path.join(self.directory, "qrep.sock")
        with open(os.path.join(self.directory, "etc", "qrep.toml"), "w") as file:
            file.write(f'[node]\nname = "{name}"\n')
        self.env = {
            **os.environ, "QREP_CONFIG_DIR": os.path.join(self.directory, "etc"), "QREP_STATE_DIR": os.path.join(self.directory, "state"),
            "QREP_SOCKET": self.socket,
        }  # fmt: skip
        self.process = None
        place.after(self.stop)

    def start(self):
        """Start the agent; returns the seconds until it answered."""
        self.place.say(f"{self.name}# qrep daemon &")
        started = time.monotonic()
        with open(os.path.join(self.directory, "agent.log"), "ab") as log:
            self.process = subprocess.Popen([*self._inside, *QREP, "daemon"], env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while time.monotonic() < started + START_S:
            if self.process.poll() is not None:
                raise QrepError(f"the agent of {self.name} ended with {self.process.returncode}: {self.last_words()}")
            with contextlib.suppress(Unreachable):  # the socket is there before the agent serves, which is when its port is open, too
                Client(self.socket).get("/node")
                return time.monotonic() - started
            time.sleep(0.01)
        raise QrepError(f"the agent of {self.name} did not answer in {START_S:g} s: {self.last_words()}")

    def last_words(self):
        with open(os.path.join(self.directory, "agent.log")) as log:
            return " | ".join(log.read().splitlines()[-5:])

    def kill(self):
        """kill -9, as a power switch does it."""
        self.place.say(f"{self.name}# kill -9 {self.process.pid}   (the agent)")
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def begin(self, *arguments):
        """Start a qrep command and show it; its output is read by end()."""
        self.place.say(f"{self.name}# qrep {shlex.join(arguments)}")
        return subprocess.Popen(
            [*QREP, *arguments], env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def end(self, process, code=0):
        """Its output, shown. Raises QrepError when it does not end with `code` (None: anything)."""
        try:
            output = process.communicate(timeout=COMMAND_S)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            raise QrepError(f"{self.name}: a command did not end in {COMMAND_S:g} s") from None
        for line in output.splitlines():
            self.place.say(f"  {line}")
        if code is not None and process.returncode != code:
            raise QrepError(f"{self.name}: exit {process.returncode}, expected {code}: {output.strip()}")
        return output

    def qrep(self, *arguments, code=0):
        return self.end(self.begin(*arguments), code)

    def job(self, name):
        """The job as the local API shows it."""
        return Client(self.socket).get("/status", job=name)["jobs"][0]

    def events(self, name):
        """The events of a job so far, oldest first."""
        return [event for event in Client(self.socket).lines("/events", job=name) if event]
