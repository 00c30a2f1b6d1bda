"""The systemd unit: as systemd reads it, and not narrower than what the agent does."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from agents import MIB, b3sum, wait_until
from machine import need_tool, run

UNIT = Path(__file__).resolve().parents[2] / "packaging" / "systemd" / "qrep.service"
# prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN): what MemoryDenyWriteExecute does, by the kernel itself (6.3 and later); inherited.
DENY_WRITE_EXECUTE = "import ctypes, os, sys; ok = ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0; os.execv(sys.argv[1], sys.argv[1:]) if ok else sys.exit(77)"


def settings():
    """{key: values} of the unit."""
    found = {}
    for line in UNIT.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def analyze(*arguments):
    need_tool("systemd-analyze")
    return subprocess.run(["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def unit(tmp_path):
    """The unit with a program that is there."""
    path = tmp_path / "qrep.service"
    text = UNIT.read_text().replace("/usr/local/bin/qrep", "/bin/true")
    path.write_text(re.sub(r"^Documentation=.*\n", "", text, flags=re.MULTILINE))  # the pages are not installed here
    return path


def test_systemd_reads_it_without_a_word(unit):
    done = analyze("verify", "--man=no", unit)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_is_rated_as_well_protected(unit):
    """As SECURITY.md says. Another systemd than the one that it names may weigh a setting otherwise."""
    told = re.search(r"\(systemd (\d+)\) rates .* at an exposure of \*\*(\d\.\d)\*\*", (UNIT.parents[2] / "SECURITY.md").read_text())
    same = analyze("--version").stdout.split()[1] == told[1]
    done = analyze("security", "--offline=true", unit)
    (found,) = re.findall(r"Overall exposure level for .*: (\d+\.\d)", done.stdout)
    assert found == told[2] if same else float(found) <= 4.0, done.stdout[-300:]


def test_the_agent_ends_before_systemd_loses_patience_and_shows_itself_in_time():
    found = settings()
    assert int(found["TimeoutStopSec"][0]) > 10 and int(found["WatchdogSec"][0]) >= 30
    assert (found["Type"], found["NotifyAccess"], found["KillMode"]) == (["notify"], ["main"], ["control-group"])


@pytest.mark.root
def test_a_run_makes_no_system_call_that_the_unit_does_not_allow(agents, loop_device, fill, tmp_path):
    need_tool("strace")
    source, target = loop_device(8 * MIB), loop_device(8 * MIB)
    fill(source, 8 * MIB)
    a, b = agents.agent("site-a", start=False), agents.agent("site-b", start=False)
    trace = tmp_path / "trace"
    a.prefix = ["strace", "-f", "-qq", "-c", "-U", "name", "-o", str(trace)]
    a.start(60)
    b.start()
    a.qrep("peer", "add", "site-b", f"127.0.0.1:{b.port}", "-y")
    b.qrep("peer", "add", "site-a", f"127.0.0.1:{a.port}", "-y")
    a.qrep("volume", "add", "db", source)
    a.qrep("volume", "add", "back", loop_device(8 * MIB), "--accept", "site-b")
    b.qrep("volume", "add", "db", target, "--accept", "site-a")
    a.qrep("job", "create", "db", "--source", "db", "--target", "site-b:db")
    b.qrep("volume", "add", "other", loop_device(8 * MIB))
    b.qrep("job", "create", "other", "--source", "other", "--target", "site-a:back")
    a.run("db")
    b.run("other")
    assert b3sum(target) == b3sum(source)
    a.qrep("metrics")
    a.qrep("reload")
    (child,) = Path(f"/proc/{a.process.pid}/task/{a.process.pid}/children").read_text().split()
    os.kill(int(child), 15)
    a.process.wait(20)
    called = set(re.findall(r"^\s*([a-z0-9_]+)$", trace.read_text(), re.MULTILINE)) - {"syscall", "total"}
    assert {"io_uring_setup", "openat", "sendto"} & called
    assert called - allowed() == set()


def allowed():
    """The system calls that the filter of the unit lets through."""
    calls, waiting = set(), [word for value in settings()["SystemCallFilter"] for word in value.split()]
    while waiting:
        word = waiting.pop()
        if not word.startswith("@"):
            calls.add(word)
            continue
        done = analyze("syscall-filter", word)
        assert done.returncode == 0, done.stderr
        waiting += [line.strip() for line in done.stdout.splitlines()[1:] if line.strip() and not line.strip().startswith("#")]
    return calls


@pytest.mark.root
def test_the_agent_needs_no_memory_that_is_both_written_and_executed(agents, loop_device, fill):
    probe = subprocess.run([sys.executable, "-c", DENY_WRITE_EXECUTE, shutil.which("true")], check=False)
    if probe.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE")
    source, target = loop_device(8 * MIB), loop_device(8 * MIB)
    fill(source, 8 * MIB)
    agent = agents.agent("site-a", start=False, prefix=[sys.executable, "-c", DENY_WRITE_EXECUTE])
    agent.start()
    agent.qrep("volume", "add", "db", source)
    agent.qrep("volume", "add", "copy", target)
    agent.qrep("job", "create", "db", "--source", "db", "--target", "copy")
    agent.run()
    assert b3sum(target) == b3sum(source)
    assert agent.terminate()[0] == 0


@pytest.mark.root
def test_the_capabilities_of_the_unit_are_enough_for_both_ends_and_for_a_snapshot_of_a_mounted_filesystem(agents, loop_device, fill, xfs, mount):
    need_tool("setpriv")
    names = settings()["CapabilityBoundingSet"][0].lower().replace("cap_", "").split()
    bounded = ["setpriv", "--no-new-privs", "--bounding-set", ",".join(["-all", *(f"+{name}" for name in names)])]
    with open(xfs / "disk.img", "wb") as image:
        image.truncate(64 * MIB)
    source, target = loop_device(backing=xfs / "disk.img"), loop_device(64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", source], check=True)
    point = mount(source)
    (point / "file").write_text("content")
    a, b = agents.replica(source, target, prefix=bounded)
    report = a.run()
    assert not report["fuzzy"], "frozen and cloned"
    assert report["root"] == b3sum(target)
    assert a.terminate()[0] == b.terminate()[0] == 0
    run("umount", point)
    source.detach()
    wait_until(lambda: not run("losetup", "-j", xfs / "disk.img"))  # the kernel lets go of the image a moment later
