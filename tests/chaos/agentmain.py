"""`qrep daemon` as tests of bad networks start it: it waits at a message if it is told to, says when it sends which, and bears seeded defects.

QREP_CHAOS: the socket of whoever wants to know (station.py). QREP_CANARY: seeded defects (names of CANARIES, with commas). Nothing of this is in what ships.
"""

import contextlib
import functools
import json
import os
import socket
import sys
import threading
import time

from qrep import crashpoint
from qrep.protocol import transport
from qrep.source import watch

TOLD = ("Hello", "State", "Begin", "Began", "Resume", "Resumed", "Prepare", "Prepared", "Commit", "Committed", "Aborted", "Nak", "Error")
WAIT_S = 20.0  # that a message is kept at most, should nobody say to go on
STALLED_S = 20.0  # instead of 30


class Line:
    """To the harness: {"sent": name, "at": seconds}, {"reached": name}. From it: {"hold": name}, {"go": true},
    {"crash": name of a crash point, "" for none}, {"canary": of TAKEN_BACK, "" for none}."""

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(path)
        self._held, self._go, self._without_canary = "", threading.Event(), lambda: None
        threading.Thread(target=self._listen, name="chaos", daemon=True).start()

    def _listen(self):
        with contextlib.suppress(OSError):
            while data := self._socket.recv(4096):
                said = json.loads(data)
                if "canary" in said:
                    self._without_canary()
                    self._without_canary = TAKEN_BACK[said["canary"]]() if said["canary"] else lambda: None
                    self.say({"holding": said["canary"]})
                elif "crash" in said:
                    crashpoint.arm(f"{said['crash']}:1" if said["crash"] else "")
                    self.say({"holding": said["crash"]})
                elif "hold" in said:
                    self._go.clear()
                    self._held = said["hold"]
                    self.say({"holding": said["hold"]})
                else:
                    self._held = ""
                    self._go.set()

    def say(self, what):
        with contextlib.suppress(OSError):
            self._socket.send(json.dumps(what).encode())

    def passing(self, name):
        if name == self._held:
            self._held = ""
            self.say({"reached": name, "at": time.monotonic()})
            self._go.wait(WAIT_S)
        if name in TOLD:
            self.say({"sent": name, "at": time.monotonic()})


def tell(line):
    send = transport.Channel.send

    @functools.wraps(send)
    def told(self, message):
        line.passing(type(message).__name__)
        return send(self, message)

    transport.Channel.send = told


# ---- seeded defects ----


def one_key():
    """Every session has the same key, which the network knows (canaries.Forger): as if the target looked at neither tag nor digest."""
    from qrep.target import driver

    class Secrets:
        @staticmethod
        def token_bytes(size):
            return bytes(range(size))

    driver.secrets = Secrets


def one_session():
    """And the frames of every session bear the same number: those of an older one are as good as those of now."""
    one_key()
    from qrep.source import flow
    from qrep.target import driver

    def numbered(native):
        return lambda *arguments, **options: native(*arguments, **{**options, "session": 1})

    driver.TargetRun, flow.SourceRun = numbered(driver.TargetRun), numbered(flow.SourceRun)


def no_other_path():
    from qrep.jobs import paths

    paths.Paths.order = lambda self, now: [self.preferred]


def leak():
    made = transport.Channel.__init__

    def leaking(self, *arguments, **options):
        made(self, *arguments, **options)
        os.open("/dev/null", os.O_RDONLY)

    transport.Channel.__init__ = leaking


# These are there and gone when it is asked for: each returns how it is taken back.


def replaced(owner, name, by):
    was = getattr(owner, name)
    setattr(owner, name, by)
    return lambda: setattr(owner, name, was)


def takes_over_whatever():
    """A replica becomes primary though its source answers and is primary: nobody asked for it by --force."""
    from qrep.jobs import roles

    return replaced(roles, "promote", lambda job, ours, theirs, *, force=False, other="": "forced")


def equal_whatever():
    """A planned switch without its last run, that takes both sides for equal."""
    from qrep.daemon.roles import Roles
    from qrep.jobs import roles

    gave_up = Roles.give_up_here
    again = replaced(Roles, "give_up_here", lambda self, task, part, *, last_run, **facts: gave_up(self, task, part, last_run=False, **facts))
    differ = replaced(roles, "equal", lambda ours, theirs: True)
    return lambda: (again(), differ())


def one_id():
    """Changes of role do not have fresh ids."""
    from qrep.daemon import rolesteps

    class Os:
        def __getattr__(self, name):
            return getattr(os, name)

        @staticmethod
        def urandom(size):
            return b"i" * size

    return replaced(rolesteps, "os", Os())


TAKEN_BACK = {"takes-over": takes_over_whatever, "equal": equal_whatever, "one-id": one_id}
CANARIES = {"one-key": one_key, "one-session": one_session, "no-other-path": no_other_path, "leak": leak}


def main():
    watch.STALLED_S = STALLED_S
    tell(Line(os.environ["QREP_CHAOS"]))
    for name in filter(None, os.environ.get("QREP_CANARY", "").split(",")):
        CANARIES[name]()
    from qrep.cli.main import main as qrep

    sys.argv[0] = "qrep"
    qrep()


if __name__ == "__main__":
    main()
