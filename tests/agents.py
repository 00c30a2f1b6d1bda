"""Real agents for tests: each with directories, a port and a socket of its own, driven through the real `qrep` as a person would.

    with Agents(directory) as agents:
        a, b = agents.pair()                       # two agents that know each other
        a.qrep("volume", "add", "db", source)      # the parsed --json answer; raises CommandFailed
        error = a.refused("job", "create", ...)    # the error of a command that must fail
"""

import contextlib
import functools
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from slowlink import SlowLink

QREP = [sys.executable, "-c", "from qrep.cli.main import main; main()"]
MIB = 1 << 20
PATIENCE = 10 if "QREP_GUEST" in os.environ else 1  # in a machine without KVM everything takes so many times as long (guest_machine.py)


class CommandFailed(Exception):
    """error: what --json printed; code: the exit code."""

    def __init__(self, arguments, code, error, stderr):
        super().__init__(f"qrep {' '.join(map(str, arguments))}: exit {code}: {error} {stderr}")
        self.code, self.error = code, error


PORTS, PORTS_OF_ONE = range(20000, 32000), 400  # the kernel takes none of these by itself; how many of them a test process has


def inside(space):
    """The command before a command that is to run in network namespace `space`. `ip netns exec` would copy all mounts, and what other tests have
    mounted would stay in use for as long as the agent lives."""
    return ["nsenter", f"--net=/run/netns/{space}"]


@functools.cache
def own_ports():
    """The ports of this test process, over and over. No other one on this machine takes them as long as it lives, so that an agent finds its port again
    when it is started anew: who holds the abstract socket of that name has them, and the kernel gives it back with the process."""
    for first in range(PORTS.start, PORTS.stop, PORTS_OF_ONE):
        holder = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            holder.bind(f"\0qrep-test-ports-{first}")
            return holder, itertools.cycle(range(first, first + PORTS_OF_ONE))
        holder.close()
    raise AssertionError("30 test processes have all the ports there are")


def free_port(host="127.0.0.1"):
    """A port of own_ports() that nobody listens on."""
    _holder, ports = own_ports()
    for port in itertools.islice(ports, PORTS_OF_ONE):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port
    raise AssertionError(f"no port of {host} is free")


def b3sum(path, size=None):
    """What a stranger's b3sum says of a device, or of its first `size` bytes."""
    if size is None:
        return subprocess.run(["b3sum", "--no-names", path], capture_output=True, text=True, check=True).stdout.strip()
    with subprocess.Popen(["head", "-c", str(size), path], stdout=subprocess.PIPE) as head:
        result = subprocess.run(["b3sum", "--no-names"], stdin=head.stdout, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def wait_until(condition, seconds=20, every=0.02):
    """Wait until condition() is true and return what it gave; fails the test otherwise."""
    deadline = time.monotonic() + seconds * PATIENCE
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(every)


class Agent:
    """One agent. host: the address it listens on; prefix: a command it runs under, such as inside(NAME); before: Python that it runs before it is one."""

    def __init__(self, directory, name, *, host="127.0.0.1", port=None, prefix=(), limits=None, node=None, before=""):
        self.directory, self.name, self.host = Path(directory), name, host
        self.port, self.prefix = port or free_port(), list(prefix)
        self.program = [*QREP[:-1], f"{before}; {QREP[-1]}"] if before else QREP
        self.process, self.log_path = None, self.directory / "agent.log"
        self.config, self.state, self.socket = self.directory / "etc", self.directory / "state", self.directory / "qrep.sock"
        self.config.mkdir(parents=True)
        text = f'[node]\nname = "{name}"\nlisten = ["{host}"]\nport = {self.port}\n'
        text += "".join(f'{key} = "{value}"\n' for key, value in (node or {}).items())
        if limits:
            text += "[limits]\n" + "".join(f"{key} = {value}\n" for key, value in limits.items())
        (self.config / "qrep.toml").write_text(text)

    @property
    def environment(self):
        places = {"QREP_CONFIG_DIR": self.config, "QREP_STATE_DIR": self.state, "QREP_SOCKET": self.socket}
        return {**os.environ, "TZ": "UTC", "COLUMNS": "200", **{key: str(value) for key, value in places.items()}}

    def spawn(self, **env):
        """Start the process; does not wait until it serves."""
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *self.program, "daemon"], env={**self.environment, **env}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self

    def start(self, seconds=20, **env):
        """Start it and wait until it serves. Returns the seconds that took."""
        began = time.monotonic()
        marker = self.log.count("qrep: serving")
        self.spawn(**env)
        while self.log.count("qrep: serving") == marker:
            assert self.process.poll() is None, f"agent {self.name} ended with {self.process.returncode}:\n{self.log}"
            assert time.monotonic() - began < seconds, f"agent {self.name} does not serve:\n{self.log}"
            time.sleep(0.01)
        return time.monotonic() - began

    @property
    def log(self):
        return self.log_path.read_text() if self.log_path.exists() else ""

    def kill(self):
        """kill -9."""
        self.process.kill()
        self.process.wait(20)

    def terminate(self, seconds=10):
        """SIGTERM. Returns (exit code, seconds)."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds), time.monotonic() - began

    def end(self):
        if self.process is not None and self.process.poll() is None:
            try:
                self.terminate()
            except subprocess.TimeoutExpired:
                self.kill()

    # ---- commands: the real `qrep`, in this process, which saves starting an interpreter every time ----

    def run_command(self, *arguments):
        """(exit code, stdout, stderr) of `qrep ARGUMENTS`."""
        from qrep.cli.app import run
        from qrep.cli.main import root

        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(root, ["--socket", str(self.socket), *map(str, arguments)])
        return code, out.getvalue(), err.getvalue()

    def call(self, *arguments):
        """(exit code, parsed stdout, stderr) of `qrep --json ARGUMENTS`."""
        code, out, err = self.run_command("--json", *arguments)
        return code, json.loads(out) if out.strip() else None, err

    def qrep(self, *arguments):
        """The answer of a command that must succeed."""
        code, value, stderr = self.call(*arguments)
        if code:
            raise CommandFailed(arguments, code, value.get("error", value) if isinstance(value, dict) else value, stderr)
        return value

    def refused(self, *arguments):
        """The error of a command that must fail: {code, exit, message, hint}; exit is checked to be the command's, too."""
        code, value, stderr = self.call(*arguments)
        assert code and isinstance(value, dict) and "error" in value, f"exit {code}: {value} {stderr}"
        assert value["error"]["exit"] == code
        return value["error"]

    def text(self, *arguments):
        """What a person sees on stdout, and the exit code."""
        code, out, _err = self.run_command(*arguments)
        return out, code

    def client(self):
        from qrep.client import Client

        return Client(str(self.socket))

    def job(self, name="db"):
        return self.qrep("status", name)["jobs"][0]

    def run(self, name="db"):
        """A run to its end: the report."""
        return self.qrep("start", name, "--wait")[name]

    def events(self, code=None):
        """The events so far, oldest first; of one code."""
        _code, out, _err = self.run_command("--json", "events")
        found = [json.loads(line) for line in out.splitlines() if line.strip()]
        return [event for event in found if code in (None, event["code"])]

    def db_pairs(self):
        """The pair records of this agent, from the first of its two files."""
        from qrep import sealed

        return sealed.load((self.state / "pairs.a").read_bytes(), "pairs.a")["pairs"]

    def codes(self):
        return [event["code"] for event in self.events()]


class Agents:
    """Agents of one test, ended with it."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.all = []
        self.link = None  # the SlowLink of pair(link_rate=...)
        self._links = contextlib.ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        for agent in self.all:
            agent.end()
        self._links.close()
        for agent in self.all:
            print(f"---- log of agent {agent.name} ----\n{agent.log}")  # shown when the test fails

    def agent(self, name, start=True, **options):
        agent = Agent(self.directory / name, name, **options)
        self.all.append(agent)
        if start:
            agent.start()
        return agent

    def pair(self, *, known=True, link_rate=None, **options):
        """Two agents, site-a and site-b, that have pinned each other. link_rate: bytes/s of a SlowLink that site-a reaches site-b by."""
        a, b = self.agent("site-a", start=False, **options), self.agent("site-b", start=False, **options)
        for agent in (a, b):
            agent.spawn()
        for agent in (a, b):
            wait_serving(agent)
        address = f"{b.host}:{b.port}"
        if link_rate is not None:
            self.link = self._links.enter_context(SlowLink(b.host, b.port, link_rate))
            address = f"127.0.0.1:{self.link.port}"
        if known:
            a.qrep("peer", "add", b.name, address, "-y")
            b.qrep("peer", "add", a.name, f"{a.host}:{a.port}", "-y")
        return a, b

    def replica(self, source, target, *, job=(), volume=(), source_volume=(), connections=2, **options):
        """Two agents and job db from `source` on site-a to `target` on site-b, not yet run."""
        a, b = self.pair(**options)
        a.qrep("volume", "add", "db", source, *source_volume)
        b.qrep("volume", "add", "db", target, "--accept", "site-a", *volume)
        a.qrep("job", "create", "db", "--source", "db", "--target", "site-b:db", "--connections", connections, *job)
        return a, b


def wait_serving(agent, seconds=20):
    wait_until(lambda: "qrep: serving" in agent.log or agent.process.poll() is not None, seconds)
    assert agent.process.poll() is None, agent.log
