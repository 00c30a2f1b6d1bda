"""`qrep demo` from end to end, interrupted, kept; afterwards the machine is as it was."""

import json
import os
import signal
import subprocess
import time

import pytest
from cli_process import COMMAND
from machine import run

from qrep.demo.place import TOOLS_OF_ALL, choose_parent
from qrep.errors import Refused

pytestmark = [pytest.mark.root, pytest.mark.alone]


@pytest.fixture(autouse=True)
def able():
    from machine import need_tool

    for tool in TOOLS_OF_ALL:
        need_tool(tool)
    try:
        choose_parent()
    except Refused as refusal:
        pytest.skip(refusal.message)


def demo_things():
    """Directories, loop devices, mounts and network namespaces of demos."""
    places = {os.path.join(parent, name) for parent in ("/dev/shm", "/var/tmp") for name in os.listdir(parent) if name.startswith("qrep-demo-")}
    with open("/proc/mounts") as file:
        mounts = {line.split()[1] for line in file if "/qrep-demo-" in line}
    loops = {line for line in run("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE").splitlines() if "/qrep-demo-" in line}
    spaces = {line.split()[0] for line in run("ip", "netns", "list").splitlines() if line.startswith("qrep-demo-")}
    return places | mounts | loops | spaces


def start(*options):
    return subprocess.Popen([*COMMAND, *options], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_every_step_of_the_demo_passes_and_nothing_is_left_behind():
    before = demo_things()
    process = start("--json", "demo", "--all")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-4000:]
    result = json.loads(out)
    assert result["passed"] and len(result["steps"]) == 36 and all(step["passed"] for step in result["steps"])
    assert demo_things() <= before


@pytest.mark.slow
def test_a_kept_demo_says_how_to_look_at_it_and_how_to_remove_it():
    before = demo_things()
    process = start("demo", "--keep")
    out, _err = process.communicate(timeout=300)
    way_out = out.splitlines()[-1].strip()
    try:
        assert process.returncode == 0, out
        look = next(line for line in out.splitlines() if line.startswith("  qrep --socket")).split()
        assert "site-b:data" in subprocess.run([*COMMAND, *look[1:4]], capture_output=True, text=True, check=True).stdout
    finally:
        run("sh", "-c", way_out)
    assert demo_things() <= before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(number):
    before = demo_things()
    process = start("demo")
    for line in process.stderr:
        if "job create" in line:
            break
    time.sleep(0.3)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert demo_things() <= before
