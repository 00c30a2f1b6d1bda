"""nbdcopy and qemu-img, from device to device and over TCP to qemu-nbd or nbdkit. Servers stay up between rounds."""

import contextlib
import os
import subprocess
import time
from pathlib import Path

from agents import free_port
from measure import GIB, MIB, cpu_of, tool

from peers import COPY, Peer, Program, ended_with

IP = Program("ip", "iproute2")
NBDCOPY, NBDINFO = Program("nbdcopy", "libnbd-bin"), Program("nbdinfo", "libnbd-bin")
QEMU_IMG, QEMU_NBD, NBDKIT = Program("qemu-img", "qemu-utils"), Program("qemu-nbd", "qemu-utils"), Program("nbdkit", "nbdkit")


@contextlib.contextmanager
def cubic_network():
    """The command before a command that is to run where TCP takes cubic: a network namespace with a loopback of its own."""
    name = f"qrep-bench-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        inside = ["nsenter", f"--net=/run/netns/{name}"]
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        # By the route: what is the default of a namespace may only be an algorithm that users may choose.
        route = "local 127.0.0.1 dev lo table local proto kernel scope host src 127.0.0.1 congctl cubic"
        subprocess.run(["ip", "-n", name, "route", "replace", *route.split()], check=True)
        yield inside
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@contextlib.contextmanager
def serving(command, port, inside=()):
    """(pid, address) of a server that was started and answers. inside: the command before a command, of a network namespace."""
    with ended_with(subprocess.Popen([*inside, *command])) as server:
        deadline = time.monotonic() + 20
        address = f"nbd://127.0.0.1:{port}"
        while subprocess.run([*inside, "nbdinfo", "--list", address], capture_output=True, check=False).returncode:
            assert server.poll() is None and time.monotonic() < deadline, f"{command[0]} does not answer"
            time.sleep(0.02)
        yield server.pid, address


def qemu_nbd(device, inside=()):
    """qemu-nbd exporting a device over TCP, writes straight to it."""
    port = free_port()
    command = ["qemu-nbd", "--format=raw", "--cache=none", "--aio=native", "--persistent", "--shared=8", "--bind=127.0.0.1", f"--port={port}", device]
    return serving(command, port, inside)


def nbdkit(*export):
    """nbdkit's file plugin exporting a device, or `dir=` all of a directory by their names, over TCP."""
    port = free_port()
    return serving(["nbdkit", "--foreground", f"--port={port}", "--ipaddr=127.0.0.1", "file", *export, "cache=none"], port)


class Copying(Peer):
    """argv(source, where): the command. server(device): a context of (pid, address), None: `where` is the device itself."""

    jobs = frozenset({COPY})

    def __init__(self, name, programs, argv, server=None):
        self.name, self.programs, self._argv, self._server = name, programs, argv, server
        self.over, self.most = ("tcp", 512 * MIB) if server else ("", Peer.most)

    @contextlib.contextmanager
    def ready(self, source, target, size, directory):
        if self._server is None:
            yield lambda: tool(self._argv(source, target)).sample(size)
            return
        with self._server(target) as (pid, address):
            yield lambda: self._run(size, pid, self._argv(source, address))

    def _run(self, size, pid, argv):
        ran, cost = cpu_of(lambda: tool(argv), pid)
        return ran.sample(size, cpu_source=ran.cpu / (size / GIB), cpu_target=cost.of[pid] / (size / GIB))


class OverCubic(Copying):
    """The same where TCP takes cubic."""

    def of_use(self):
        return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip() != "cubic"

    @contextlib.contextmanager
    def ready(self, source, target, size, directory):
        with cubic_network() as inside, self._server(target, inside) as (pid, address):
            yield lambda: self._run(size, pid, [*inside, *self._argv(source, address)])


def nbdcopy(source, where):
    return ["nbdcopy", "--flush", source, where]


def qemu_img(source, where):
    return ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-T", "none", "-t", "none", "-m", "16", "-W", source, where]


PEERS = (
    Copying("nbdcopy to qemu-nbd", (NBDCOPY, NBDINFO, QEMU_NBD), nbdcopy, qemu_nbd),
    OverCubic("nbdcopy to qemu-nbd, cubic", (NBDCOPY, NBDINFO, QEMU_NBD, IP), nbdcopy, qemu_nbd),
    Copying("nbdcopy to nbdkit", (NBDCOPY, NBDINFO, NBDKIT), nbdcopy, nbdkit),
    Copying("qemu-img convert to qemu-nbd", (QEMU_IMG, QEMU_NBD, NBDINFO), qemu_img, qemu_nbd),
    Copying("qemu-img convert", (QEMU_IMG,), qemu_img),
    Copying("nbdcopy", (NBDCOPY,), nbdcopy),
)
