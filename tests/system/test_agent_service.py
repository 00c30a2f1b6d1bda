"""The agent as a service: what systemd is told, and that it ends soon and in order whatever goes on."""

import os
import signal
import socket
import threading
import time

import pytest
from agents import MIB, b3sum, free_port, wait_until
from cli_process import start

pytestmark = pytest.mark.root
SIZE = 24 * MIB


class Supervisor:
    """A notify socket, and what was told on it so far."""

    def __init__(self, path):
        self.path, self.told = str(path), []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        while True:
            self.told.append(self._socket.recv(4096).decode())

    def has(self, text):
        return wait_until(lambda: [told for told in self.told if told.startswith(text)])


@pytest.fixture
def supervisor(memory_dir):
    return Supervisor(memory_dir / "notify")


def test_systemd_is_told_of_start_work_reload_life_and_end(agents, loop_device, fill, supervisor):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, _b = agents.replica(source, target, link_rate=4 * MIB)
    a.terminate()
    a.start(NOTIFY_SOCKET=supervisor.path, WATCHDOG_USEC="3000000")
    supervisor.has("READY=1")
    supervisor.has("STATUS=1 job")
    a.qrep("start", "db")
    supervisor.has("STATUS=1 job; running: db ")
    lived = len(supervisor.has("WATCHDOG=1"))
    wait_until(lambda: len(supervisor.has("WATCHDOG=1")) >= lived + 3)
    ready = len(supervisor.has("READY=1"))
    a.process.send_signal(signal.SIGHUP)
    supervisor.has("RELOADING=1\nMONOTONIC_USEC=")
    wait_until(lambda: len(supervisor.has("READY=1")) == ready + 1)
    code, seconds = a.terminate()
    assert code == 0 and seconds < 10
    supervisor.has("STOPPING=1")
    assert supervisor.told.index(supervisor.has("READY=1")[0]) < supervisor.told.index(supervisor.has("STOPPING=1")[0])


def test_it_ends_within_ten_seconds_with_everything_going_on_at_once_and_whatever_signals_follow(agents, loop_device, fill, supervisor):
    source, target, second, spare = (loop_device(SIZE) for _ in range(4))
    fill(source, SIZE)
    fill(second, SIZE)
    a, _b = agents.replica(source, target, source_volume=("--granule", "1M"), link_rate=4 * MIB)
    hook = a.directory / "hang.sh"
    hook.write_text("#!/bin/sh\ntrap '' TERM\nsleep 1000\n")
    hook.chmod(0o755)
    with open(a.config / "qrep.toml", "a") as file:
        file.write(f'[[hooks]]\nevents = ["info"]\ncommand = ["{hook}"]\ntimeout = "1h"\n')
    a.terminate()
    a.start(NOTIFY_SOCKET=supervisor.path, WATCHDOG_USEC="60000000")
    a.qrep("volume", "add", "second", second)
    a.qrep("volume", "add", "spare", spare)
    a.qrep("job", "create", "local", "--source", "second", "--target", "spare")
    followers = [start(a.socket, "events", "-f", "--json"), start(a.socket, "start", "db", "--wait")]
    polling = socket.socket(socket.AF_UNIX)  # a long poll of somebody who waits for 20 s
    polling.connect(str(a.socket))
    a.qrep("start", "local")
    wait_until(lambda: agents.link.carried > MIB and a.job("db")["state"] == "syncing")
    polling.sendall(b"POST /v1/jobs/local/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
    half_open = socket.create_connection(("127.0.0.1", a.port))  # says nothing
    wait_until(lambda: any("hang.sh" in command for command in commands_below(a.process.pid)))

    began = time.monotonic()
    a.process.send_signal(signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        time.sleep(0.1)
        if a.process.poll() is None:
            a.process.send_signal(number)
    assert a.process.wait(10) == 0 and time.monotonic() - began < 10
    assert "agent-stopped" in a.log and not os.path.exists(a.socket)
    for follower in followers:
        follower.send_signal(signal.SIGINT)
        follower.communicate(timeout=20)
    polling.close()
    half_open.close()

    a.config.joinpath("qrep.toml").write_text(a.config.joinpath("qrep.toml").read_text().partition("[[hooks]]")[0])
    a.start()
    wait_until(lambda: [event for event in a.events("run-committed") if event["job"] == "db"])
    assert a.codes().count("run-taken-up") >= 1
    assert b3sum(target) == b3sum(source)


def commands_below(pid):
    """Command lines of the processes that an agent has started."""
    names = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as file:
            for child in file.read().split():
                with open(f"/proc/{child}/cmdline") as command:
                    names.append(command.read())
    return names


def test_it_ends_while_a_target_is_being_put_back(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target)
    a.run()
    fill(source, SIZE)
    a.run()
    point = b.qrep("snapshot", "db")[-1]["point"]
    task = b.client().post("/volumes/db/rollback", {"point": point})
    assert task["state"] == "running"
    code, seconds = b.terminate()
    assert code == 0 and seconds < 10
    b.start()
    assert b.qrep("volume", "show", "db")["problem"] is None
    assert a.run()["root"] == b3sum(target) == b3sum(source)


def test_a_signal_during_the_start_ends_it_too(agents):
    agent = agents.agent("site-a", start=False)
    for pause in (0.3, 0.5, 0.7, 0.9, 1.1):
        agent.spawn()
        time.sleep(pause)
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(10) in (0, -signal.SIGTERM)  # the interpreter had not come to us yet
    agent.port = free_port()
    agent.start()
    assert agent.terminate()[0] == 0
