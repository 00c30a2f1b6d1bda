"""What tests do to the machine besides the fixtures of conftest.py: run tools, make images and partitions."""

import contextlib
import os
import shutil
import subprocess
import time

import pytest

MIB = 1 << 20


def run(*command):
    """Run a tool; its stdout. A failure shows what the tool said."""
    result = subprocess.run([os.fspath(word) for word in command], capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit {result.returncode}: {result.stderr.strip()}")
    return result.stdout.strip()


def need_tool(name):
    """Skip the test with a reason if a program of the system is missing."""
    if not shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"):
        pytest.skip(f"needs {name}, which is not installed")


def image(directory, name="image", size=8 * MIB):
    """A sparse file of that size; its path."""
    with open(directory / name, "wb") as file:
        file.truncate(size)
    return directory / name


@contextlib.contextmanager
def loop_devices(*backings):
    """Paths of loop devices over files, for fixtures that live longer than a test."""
    with contextlib.ExitStack() as stack:
        devices = []
        for backing in backings:
            devices.append(run("losetup", "--find", "--show", backing))
            stack.callback(run, "losetup", "--detach", devices[-1])
        yield devices


def partitioned(disk):
    """Give a loop device of at least 64 MiB, made with partscan, a GPT and two partitions; returns it."""
    need_tool("parted")
    run("parted", "-s", disk, "mklabel", "gpt", "mkpart", "one", "1MiB", "20MiB", "mkpart", "two", "20MiB", "60MiB")
    deadline = time.monotonic() + 5
    while not os.path.exists(f"{disk}p2"):
        assert time.monotonic() < deadline, "the partitions of a loop device did not appear"
        time.sleep(0.01)
    return disk
