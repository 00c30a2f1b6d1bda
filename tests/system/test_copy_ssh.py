"""`qrep copy` to another host: a real sshd on loopback, both ways for the data, either end killed in the middle."""

import os
import signal
import subprocess
import time

import pytest
from cli_process import Terminal
from copying import MIB, Copier, b3sum, fill, kill, wait_until_changed
from machine import run
from sshd import Sshd

pytestmark = pytest.mark.root
WAYS = pytest.mark.parametrize("way", [(), ("--direct",)], ids=["over ssh", "direct"])


@pytest.fixture
def copier(memory_dir, undo_after):
    sshd = Sshd(memory_dir)
    undo_after.callback(sshd.stop)
    return Copier(memory_dir, sshd)


@pytest.fixture
def source(memory_dir, random_source):
    path = memory_dir / "source.img"
    with open(path, "wb") as file:
        file.truncate(64 * MIB)
    fill(path, random_source, 0, 24 * MIB)
    return path


@WAYS
def test_a_copy_over_ssh_equals_its_source_and_a_repeat_sends_only_what_changed(copier, source, loop_device, random_source, way):
    target = loop_device(64 * MIB)
    assert copier(source, target, *way)["root"] == b3sum(target) == b3sum(source)
    fill(source, random_source, 3 * MIB, 4096)
    second = copier(source, target, "--connections", "4", *way)
    assert second["changed"] == 4096 and second["root"] == b3sum(target) == b3sum(source)
    assert copier(source, target, "-n", *way)["would_send"] == 0


@WAYS
def test_the_near_end_killed_in_the_middle_and_repeated(copier, source, memory_dir, way):
    target = memory_dir / "target.img"
    process = copier.start(source, target, "--rate", "8M", *way)
    wait_until_changed(target)
    kill(process)
    assert copier(source, target, *way)["root"] == b3sum(target) == b3sum(source)


@WAYS
def test_the_far_end_killed_in_the_middle_is_started_again_by_the_same_command(copier, source, memory_dir, way):
    target = memory_dir / "target.img"
    process = copier.start(source, target, "--rate", "8M", "--json", *way)
    wait_until_changed(target)
    os.kill(copier.far_pid(), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert b3sum(target) == b3sum(source) and b3sum(target) in out
    assert "run-interrupted" in err


@pytest.mark.parametrize("when", ["target-write-done:2", "superblock-write-durable:2"], ids=["while it writes", "when it has committed"])
def test_the_far_end_killed_in_a_repeat_is_started_again_and_compares(copier, source, loop_device, random_source, when):
    target = loop_device(64 * MIB)
    copier(source, target)
    fill(source, random_source, 4 * MIB, 8 * MIB)
    script = copier.directory / "far-qrep"
    # Each copy starts two: one is asked, one serves.
    script.write_text(script.read_text().replace("exec ", f"[ $(wc -l < {copier.far_pids}) = 4 ] && export QREP_CRASH={when}\nexec "))
    result = copier(source, target)
    assert len(copier.far_pids.read_text().split()) == 5, "the far end was to be killed once"
    assert result["root"] == b3sum(target) == b3sum(source)
    # Neither of the two sends more than the 8 MiB that were changed; all of the device's data are 24 MiB and more.
    assert result["sent"] < 2 * 8 * MIB + MIB // 2, "digests were compared, not everything was sent"


def test_refusals_of_the_far_end_come_back_with_their_codes_and_its_question_to_the_near_terminal(copier, source, loop_device):
    target = loop_device(64 * MIB)
    run("mkfs.ext4", "-q", "-F", target)
    assert "ext4" in copier(source, target, code=5)["error"]["message"]
    assert copier(source, loop_device(32 * MIB), "-y", code=5)["error"]["code"] == "target-too-small"
    env = {name: copier.env[name] for name in ("QREP_STATE_DIR", "QREP_CONFIG_DIR")}
    terminal = Terminal("/none", "copy", str(source), f"127.0.0.1:{target}", *copier.remote, **env).expect("[y/N]").type("y\n")
    assert terminal.end(60) == 0 and b3sum(target) == b3sum(source)


def test_a_host_that_is_not_there_or_has_no_qrep_is_told_apart(copier, source):
    copier.remote[-1] = "/nowhere/qrep"
    assert copier(source, "/tmp/x", code=4)["error"]["code"] == "no-remote-qrep"
    copier.remote[-1] = "echo hello; cat >/dev/null; :"
    assert copier(source, "/tmp/x", code=1)["error"]["message"] == "the other end does not speak qrep"
    copier.sshd.stop()
    error = copier(source, "/tmp/x", code=4)["error"]
    assert "cannot be reached" in error["message"] and error["hint"]


def test_nothing_is_left_behind(copier, source, memory_dir):
    import tempfile

    before = set(os.listdir(tempfile.gettempdir()))
    copier(source, memory_dir / "a.img")
    copier(source, memory_dir / "b.img", "--direct")
    process = copier.start(source, memory_dir / "c.img", "--direct", "--rate", "8M")
    wait_until_changed(memory_dir / "c.img")
    far = copier.far_pid()
    kill(process)
    for _ in range(200):
        if not os.path.exists(f"/proc/{far}"):
            break
        time.sleep(0.05)
    left = set(os.listdir(tempfile.gettempdir())) - before
    assert not {name for name in left if name.startswith(("qrep-serve", "qrep-copy"))}
    with pytest.raises(ProcessLookupError):
        os.kill(copier.far_pid(), 0)


def test_ctrl_c_while_ssh_hangs_ends_at_once(copier, source, memory_dir):
    hanging = memory_dir / "hanging-ssh"
    hanging.write_text("#!/bin/sh\nexec sleep 600\n")
    hanging.chmod(0o755)
    copier.remote[1] = str(hanging)
    process = copier.start(source, "/tmp/x")
    for _ in range(200):
        if subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, check=False).returncode == 0:
            break
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
