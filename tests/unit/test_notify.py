"""What systemd is told, and when it is not told that the agent lives."""

import os
import secrets
import socket
import time

import pytest

from qrep.daemon.notify import Notifier
from qrep.daemon.watchdog import Watchdog, summary


@pytest.fixture(params=["file", "abstract"])
def supervisor(request, tmp_path):
    """(value of NOTIFY_SOCKET, a function that gives what was told next)."""
    address = str(tmp_path / "notify") if request.param == "file" else f"@qrep-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        listening.settimeout(5)
        yield address, lambda: listening.recv(4096).decode()


def test_every_state_is_told_as_systemd_reads_it(supervisor):
    address, told = supervisor
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready()
    notifier.status("two\nlines")
    notifier.status("two\nlines")  # as before: not told again
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    notifier.alive()
    notifier.stopping()
    assert (told(), told()) == ("READY=1", "STATUS=two lines")
    first, moment = told().split("\n")
    assert first == "RELOADING=1" and before <= int(moment.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    assert (told(), told()) == ("WATCHDOG=1", "STOPPING=1\nSTATUS=ending")


def test_its_variables_are_not_handed_on_to_what_we_start(supervisor):
    environment = {"NOTIFY_SOCKET": supervisor[0], "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid()), "PATH": "/bin"}
    assert Notifier(environment).watchdog_s == 3.0 and environment == {"PATH": "/bin"}


@pytest.mark.parametrize("environment", [{}, {"WATCHDOG_USEC": "1000000"}, {"NOTIFY_SOCKET": "/nonexistent/socket"}])
def test_without_a_supervisor_nothing_is_told_and_nothing_fails(environment):
    notifier = Notifier(environment)
    for tell in (notifier.ready, notifier.reloading, notifier.alive, notifier.stopping, lambda: notifier.status("x")):
        tell()
    assert notifier.watchdog_s is None and Watchdog(notifier, {}).period_s is None


def test_the_watchdog_of_another_process_is_not_ours():
    assert Notifier({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).watchdog_s is None


def test_a_supervisor_that_does_not_read_is_not_waited_for(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        for _ in range(10_000):  # would wait for ever once the queue is full
            notifier.alive()


class Told(Notifier):
    def __init__(self):
        super().__init__({})
        self.watchdog_s, self.pings = 30.0, 0

    def alive(self):
        self.pings += 1


def test_systemd_is_told_only_while_every_thread_shows_itself(caplog):
    notifier, now = Told(), time.monotonic()
    seen = {"local API": now, "scheduler": now}
    watchdog = Watchdog(notifier, {name: lambda name=name: seen[name] for name in seen})
    assert watchdog.period_s == 10.0
    watchdog.ping()
    assert notifier.pings == 1
    seen["scheduler"] = now - 16.0
    watchdog.ping()
    watchdog.ping()
    assert notifier.pings == 1 and caplog.text.count("hung: scheduler; systemd is not told") == 1
    seen["scheduler"] = time.monotonic()
    watchdog.ping()
    assert notifier.pings == 2 and "show themselves again" in caplog.text


def test_the_status_line_is_short_whatever_goes_on():
    def job(name, state, percent=None, problem=None):
        return {"name": name, "state": state, "progress": {"percent": percent} if percent is not None else None, "problem": problem}

    assert summary([]) == "0 jobs" and summary([job("db", "idle")]) == "1 job"
    assert summary([job("db", "syncing", 63.4), job("web", "verifying"), job("mail", "failed", problem={"code": "x"})]) == (
        "3 jobs; running: db syncing 63 %, web verifying; 1 not fine, see qrep status"
    )
    assert summary([job(f"j{number}", "connecting") for number in range(9)]) == "9 jobs; running: j0 connecting, j1 connecting, j2 connecting and 6 more"
