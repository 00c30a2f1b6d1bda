"""The commands around a snapshot: run in order and for a limited time, undone whatever happens; nothing stays frozen."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from machine import MIB, image
from system.conformance_snapshot import elsewhere
from system.test_snapshot_backends import freeze_state, is_writable

import qrep
from qrep import device
from qrep.volumes import quiet, registry
from qrep.volumes.base import FreezeOptions, SnapshotError
from qrep.volumes.reflink import Reflink

pytestmark = pytest.mark.root
FREEZE = """
import sys; from qrep import device; from qrep.volumes.base import FreezeOptions; from qrep.volumes.reflink import Reflink
Reflink(FreezeOptions((sys.argv[2],), (sys.argv[3],), 20)).freeze(device.inspect(sys.argv[1]), "run-1")
"""


@pytest.fixture
def disk(xfs, loop_device):
    return loop_device(backing=image(xfs, "db.img", 64 * MIB))


@pytest.fixture
def point(disk, filesystem):
    return filesystem("ext4", device=disk)


@pytest.fixture
def hook(memory_dir):
    """Makes a command that writes its name to `memory_dir/log`, then does as told."""

    def make(name, script="exit 0"):
        path = memory_dir / name
        path.write_text(f"#!/bin/sh\necho {name} >>{memory_dir}/log\n{script}\n")
        path.chmod(0o755)
        return (str(path),)

    return make


def log(memory_dir):
    return (memory_dir / "log").read_text().split()


def eventually(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in 30 s"
        time.sleep(0.02)


def left_behind(disk):
    return registry.BACKENDS["reflink"].stale(device.inspect(disk))


def test_what_is_mounted_and_frozen_is_application_consistent(disk, point):
    frozen = Reflink().freeze(device.inspect(disk), "x")
    assert frozen.consistency == "application" and Reflink().find(frozen.token) == frozen


def test_the_commands_come_before_the_freeze_and_after_the_thaw(disk, point, hook, memory_dir):
    options = FreezeOptions(hook("before", f"touch {point}/by-hook"), hook("after", f"touch {point}/thawed"))
    frozen = Reflink(options).freeze(device.inspect(disk), "x")
    assert log(memory_dir) == ["before", "after"] and frozen.consistency == "application"
    assert (point / "by-hook").exists() and (point / "thawed").exists()  # neither could be made on a frozen filesystem


def test_a_command_that_succeeds_makes_a_volume_application_consistent_on_which_nothing_is_mounted(disk, hook):
    assert Reflink(FreezeOptions(hook("before"))).freeze(device.inspect(disk), "x").consistency == "application"
    assert Reflink(FreezeOptions((), hook("after"))).freeze(device.inspect(disk), "x").consistency == "crash"


@pytest.mark.parametrize("script, said", [("echo no database >&2; exit 3", "exit 3: no database"), ("kill -9 $$", "killed by signal 9")])
def test_a_command_that_fails_ends_the_freeze_and_is_undone(disk, point, hook, memory_dir, script, said):
    with pytest.raises(SnapshotError, match=said) as caught:
        Reflink(FreezeOptions(hook("before", script), hook("after"))).freeze(device.inspect(disk), "x")
    assert caught.value.code == "freeze-hook" and disk.path in caught.value.message
    assert log(memory_dir) == ["before", "after"] and is_writable(point) and left_behind(disk) == []


def test_a_command_that_is_not_there_is_named(disk):
    with pytest.raises(SnapshotError, match="/nowhere/hook failed: No such file"):
        Reflink(FreezeOptions(("/nowhere/hook",))).freeze(device.inspect(disk), "x")


def test_one_that_never_stops_talking_is_ended_in_time_and_what_it_says_is_not_kept(disk, hook):
    backend = Reflink(FreezeOptions(hook("pre", "exec yes much"), hook("post"), 0.5))
    with pytest.raises(SnapshotError, match="killed at its time limit: much") as raised:
        backend.freeze(device.inspect(disk), "run-1")
    assert raised.value.code == "freeze-hook"


def test_one_that_hangs_is_killed_with_all_that_it_started(disk, point, hook, memory_dir):
    pid = memory_dir / "pid"
    options = FreezeOptions(hook("before", f"sleep 1000 & echo $! >{pid}; wait"), hook("after"), limit_s=3.0)
    with pytest.raises(SnapshotError, match="killed at its time limit"):
        Reflink(options).freeze(device.inspect(disk), "x")
    eventually(lambda: not is_running(int(pid.read_text())))
    assert log(memory_dir) == ["before", "after"] and is_writable(point)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("end", ["exit 1", "sleep 1000"])
def test_one_that_freezes_the_filesystem_itself_and_fails_or_hangs_leaves_it_thawed(disk, point, hook, end):
    options = FreezeOptions(hook("before", f"fsfreeze -f {point}; {end}"), limit_s=1.0)
    with pytest.raises(SnapshotError):
        Reflink(options).freeze(device.inspect(disk), "x")
    assert freeze_state(point) == "thawed" and is_writable(point)


def test_one_that_freezes_the_filesystem_itself_and_one_that_thaws_it(disk, point, hook):
    options = FreezeOptions(hook("before", f"fsfreeze -f {point}"), hook("after", f"fsfreeze -u {point}"))
    assert Reflink(options).freeze(device.inspect(disk), "x").consistency == "application"
    assert is_writable(point)


def test_the_second_command_that_fails_is_told_and_the_snapshot_goes(disk, point, hook):
    with pytest.raises(SnapshotError, match="its freeze_after command .* failed: exit 4"):
        Reflink(FreezeOptions((), hook("after", "exit 4"))).freeze(device.inspect(disk), "x")
    assert is_writable(point) and left_behind(disk) == []


def test_an_agent_that_is_killed_while_it_is_frozen_leaves_it_thawed_and_the_command_undone(disk, point, hook, memory_dir):
    before, after = hook("before"), hook("after")
    status, _ = elsewhere(FREEZE, disk, before[0], after[0], crash="snapshot-frozen:1")
    assert status == -9
    assert is_writable(point)
    eventually(lambda: log(memory_dir) == ["before", "after"])


def test_an_agent_that_is_killed_while_the_command_hangs_leaves_it_ended_and_undone(disk, point, hook, memory_dir):
    before, after = hook("before", f"echo $$ >{memory_dir}/pid; fsfreeze -f {point}; touch {memory_dir}/frozen; exec sleep 1000"), hook("after")
    environment = os.environ | {"PYTHONPATH": str(Path(qrep.__file__).parents[1])}
    agent = subprocess.Popen([sys.executable, "-c", FREEZE, disk.path, before[0], after[0]], env=environment)
    eventually((memory_dir / "frozen").exists)
    agent.send_signal(signal.SIGKILL)
    agent.wait(30)
    eventually(lambda: log(memory_dir) == ["before", "after"])
    eventually(lambda: not is_running(int((memory_dir / "pid").read_text())))
    assert is_writable(point)


def test_several_volumes_are_at_rest_at_one_moment(xfs, loop_device, filesystem, hook, memory_dir):
    disks = [loop_device(backing=image(xfs, name, 64 * MIB)) for name in ("one.img", "two.img")]
    points = [filesystem("ext4", device=disk) for disk in disks[:1]]
    subjects = [quiet.Subject(device.inspect(disk), FreezeOptions(hook(f"before-{at}"), hook(f"after-{at}"))) for at, disk in enumerate(disks)]
    with quiet.together(subjects) as consistencies:
        assert freeze_state(points[0]) == "frozen" and consistencies == ["application", "application"]
        tokens = [Reflink().freeze(subject.device, "x", quieted=state).token for subject, state in zip(subjects, consistencies, strict=True)]
    assert is_writable(points[0]) and all(Reflink().find(token).consistency == "application" for token in tokens)
    assert log(memory_dir) == ["before-0", "before-1", "after-1", "after-0"]


def test_where_the_second_of_several_cannot_be_brought_to_rest_the_first_is_undone(xfs, loop_device, hook, memory_dir):
    disks = [loop_device(backing=image(xfs, name, 64 * MIB)) for name in ("one.img", "two.img")]
    scripts = ["exit 0", "exit 1"]
    subjects = [
        quiet.Subject(device.inspect(disk), FreezeOptions(hook(f"before-{at}", script), hook(f"after-{at}")))
        for at, (disk, script) in enumerate(zip(disks, scripts, strict=True))
    ]
    with pytest.raises(SnapshotError, match=disks[1].path), quiet.together(subjects):
        pytest.fail("it was not refused")
    assert log(memory_dir) == ["before-0", "before-1", "after-1", "after-0"]
