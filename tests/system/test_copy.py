"""`qrep copy` here: real devices, cut off in the middle, repeated, refused; a stranger's b3sum has the last word."""

import os
import signal
import subprocess

import pytest
from agents import wait_until
from cli_process import Terminal
from copying import MIB, Copier, b3sum, fill, kill, wait_until_changed, wait_until_written
from machine import is_free, run

pytestmark = pytest.mark.root


@pytest.fixture
def copier(memory_dir):
    return Copier(memory_dir)


@pytest.fixture
def source(loop_device, random_source):
    device = loop_device(64 * MIB)
    fill(device, random_source, 0, 20 * MIB)
    fill(device, random_source, 40 * MIB, 4 * MIB)
    return device


def test_a_copy_equals_its_source_and_a_repeat_sends_only_what_changed(copier, source, loop_device, random_source):
    target = loop_device(64 * MIB)
    first = copier(source, target)
    assert first["root"] == b3sum(target) == b3sum(source)
    unchanged = copier(source, target)
    assert unchanged["changed"] == 0 and unchanged["root"] == first["root"]
    fill(source, random_source, 30 * MIB, 8192)
    second = copier(source, target)
    assert second["changed"] == 8192  # two leaves of 4 KiB
    assert second["root"] == b3sum(target) == b3sum(source) != first["root"]


def test_dry_run_says_how_much_and_changes_nothing(copier, source, loop_device, random_source):
    target = loop_device(64 * MIB)
    before = b3sum(target)
    assert copier(source, target, "-n")["full"] is True
    assert b3sum(target) == before and not (copier.directory / "near").exists()
    copier(source, target)
    fill(source, random_source, MIB, 4096)
    plan = copier(source, target, "-n")
    assert plan == {"would_send": 4096, "size": 64 * MIB, "full": False, "changed_since": None, "seconds": None, "limit_bytes_per_s": None}


def test_a_file_that_is_missing_is_made_sparse_with_the_size_of_the_source(copier, source, xfs):
    target = xfs / "new.img"
    assert copier(source, target)["root"] == b3sum(target)
    status = target.stat()
    assert status.st_size == 64 * MIB and status.st_blocks * 512 <= 26 * MIB and status.st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("size", "code"), [(0, "too-small"), (512, "too-small"), (8191, "too-small")])
def test_a_source_of_less_than_two_leaves_is_refused_and_no_target_is_made(copier, memory_dir, size, code):
    source, target = memory_dir / "small.img", memory_dir / "new.img"
    source.write_bytes(b"x" * size)
    assert copier(source, target, code=5)["error"]["code"] == code and not target.exists()


def test_a_copy_that_was_killed_goes_on_and_ends_right(copier, source, memory_dir):
    target = memory_dir / "new.img"
    process = copier.start(source, target, "--rate", "8M")
    wait_until_changed(target)
    kill(process)
    assert copier(source, target)["root"] == b3sum(target) == b3sum(source)


def test_a_repeat_that_was_killed_leaves_the_old_or_the_new_content_after_the_next(copier, source, loop_device, random_source):
    target = loop_device(64 * MIB)
    copier(source, target)
    fill(source, random_source, 0, 16 * MIB)
    process = copier.start(source, target, "--rate", "8M")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.2)
    kill(process)
    assert copier(source, target)["root"] == b3sum(target) == b3sum(source)


def killed_repeat(copier, source, target, random_source):
    """A committed copy, and a second one that is killed while it writes the first 16 MiB of the target; the kernel has ended what it was doing."""
    first = copier(source, target)
    fill(source, random_source, 0, 16 * MIB)
    process = copier.start(source, target, "--rate", "4M")
    wait_until_written(target, first["root"])
    kill(process)
    wait_until(lambda: is_free(target))
    assert b3sum(target) != b3sum(source), "it was to be killed in the middle"


def test_a_file_that_is_made_anew_after_a_kill_is_not_taken_for_the_one_that_was_removed(copier, source, ext4, random_source):
    target = ext4 / "new.img"
    killed_repeat(copier, source, target, random_source)
    inode = target.stat().st_ino
    target.unlink()
    assert copier(source, target)["root"] == b3sum(target) == b3sum(source)
    assert target.stat().st_ino == inode, "this filesystem was to use the inode again"


def test_a_file_that_is_made_anew_after_a_copy_is_not_asked_for(copier, source, ext4):
    target = ext4 / "new.img"
    copier(source, target)
    inode = target.stat().st_ino
    target.unlink()
    assert copier(source, target)["root"] == b3sum(target) == b3sum(source)
    assert target.stat().st_ino == inode, "this filesystem was to use the inode again"


@pytest.mark.parametrize("first", [True, False], ids=["first", "repeat"])
def test_what_someone_wrote_after_a_kill_is_found_by_comparing(copier, source, loop_device, random_source, first):
    target = loop_device(64 * MIB)
    if first:
        before = b3sum(target)
        process = copier.start(source, target, "--rate", "4M")
        wait_until_written(target, before)
        kill(process)
    else:
        killed_repeat(copier, source, target, random_source)
    fill(target, random_source, 41 * MIB, MIB)
    fill(target, random_source, 60 * MIB, MIB)
    result = copier(source, target)
    assert result["root"] == b3sum(target) == b3sum(source)
    assert result["sent"] < 24 * MIB, "digests were compared, not everything was sent"


def test_a_filesystem_that_someone_made_after_a_kill_is_overwritten_only_when_said(copier, source, loop_device, random_source):
    target = loop_device(64 * MIB)
    killed_repeat(copier, source, target, random_source)
    run("mkfs.ext4", "-q", "-F", target)
    before = b3sum(target)
    error = copier(source, target, code=5)["error"]
    assert error["code"] == "needs-confirmation" and "ext4" in error["message"] and b3sum(target) == before
    assert copier(source, target, "-y")["root"] == b3sum(target) == b3sum(source)


def test_the_filesystem_of_the_source_is_not_asked_for_after_a_kill(copier, source, loop_device, random_source):
    target = loop_device(64 * MIB)
    run("mkfs.ext4", "-q", "-F", source)
    first = copier(source, target)
    fill(source, random_source, 40 * MIB, 16 * MIB)
    process = copier.start(source, target, "--rate", "4M")
    wait_until_written(target, first["root"])
    kill(process)
    assert copier(source, target)["root"] == b3sum(target) == b3sum(source)


def test_what_was_left_of_a_state_that_was_being_forgotten_is_not_believed(copier, source, loop_device, random_source):
    target = loop_device(64 * MIB)
    killed_repeat(copier, source, target, random_source)
    fill(target, random_source, 41 * MIB, MIB)
    (record,) = copier.directory.rglob("copy.json")
    record.unlink()
    assert copier(source, target)["root"] == b3sum(target) == b3sum(source)


def test_a_device_that_is_in_use_keeps_the_state_of_a_copy_that_was_killed(copier, source, loop_device, random_source):
    target = loop_device(64 * MIB)
    killed_repeat(copier, source, target, random_source)
    states = copier.directory / "near" / "copies" / "targets"
    before = sorted(states.rglob("*"))
    descriptor = os.open(target.path, os.O_RDWR | os.O_EXCL)
    try:
        assert copier(source, target, "-y", code=5)["error"]["code"] == "target-in-use" and sorted(states.rglob("*")) == before
    finally:
        os.close(descriptor)


def test_ctrl_c_stops_in_order_and_says_how_to_go_on(copier, source, memory_dir):
    target = memory_dir / "new.img"
    process = copier.start(source, target, "--rate", "4M")
    wait_until_changed(target)
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "the same command goes on with a first copy" in err
    assert copier(source, target)["root"] == b3sum(target)


def test_a_rate_is_kept(copier, source, memory_dir):
    # 24 MiB of data at 16 MiB/s with at most half a second of burst: at least 1 s
    assert copier(source, memory_dir / "x", "--rate", "16M")["seconds"] >= 1.0


def test_a_target_that_someone_wrote_is_overwritten_only_when_said(copier, source, loop_device, random_source):
    target = loop_device(64 * MIB)
    copier(source, target)
    fill(target, random_source, 50 * MIB, 4096)
    error = copier(source, target, code=5)["error"]
    assert error["code"] == "needs-confirmation" and "written by someone else" in error["message"]
    before = b3sum(target)
    assert copier(source, target, "-n")["full"] and b3sum(target) == before, "a dry run asks nothing and writes nothing"
    result = copier(source, target, "-y")
    assert result["root"] == b3sum(target) == b3sum(source)
    assert result["sent"] < 20 * MIB, "digests were compared, not everything was sent"


def test_a_target_that_was_attached_anew_is_compared_not_believed(copier, source, loop_device):
    target = loop_device(64 * MIB)
    copier(source, target)
    target.detach()
    with open(target.backing, "r+b") as file:
        file.write(b"not what it was")
    again = loop_device(backing=target.backing)
    assert copier(source, again, "-y")["root"] == b3sum(again) == b3sum(source)


def test_a_filesystem_is_overwritten_only_after_an_answer_that_names_it(copier, source, loop_device):
    target = loop_device(64 * MIB)
    run("mkfs.ext4", "-q", "-F", target)
    before = b3sum(target)
    assert "ext4" in copier(source, target, code=5)["error"]["message"]
    env = {name: copier.env[name] for name in ("QREP_STATE_DIR", "QREP_CONFIG_DIR")}
    terminal = Terminal("/none", "copy", str(source), str(target), **env).expect("[y/N]").type("n\n")
    assert terminal.end() == 130 and str(target) in terminal.seen and b3sum(target) == before
    terminal = Terminal("/none", "copy", str(source), str(target), **env).expect("[y/N]").type("y\n")
    assert terminal.end(60) == 0 and b3sum(target) == b3sum(source)


def test_mounted_too_small_same_and_claimed_targets_are_refused_whatever_is_given(copier, source, loop_device, mount):
    small, mounted, claimed = loop_device(32 * MIB), loop_device(64 * MIB), loop_device(64 * MIB)
    run("mkfs.ext4", "-q", "-F", mounted)
    mount(mounted)
    descriptor = os.open(claimed.path, os.O_RDWR | os.O_EXCL)
    try:
        for target, reason in ((small, "target-too-small"), (mounted, "target-mounted"), (source, "same-device"), (claimed, "target-in-use")):
            assert copier(source, target, "-y", code=5)["error"]["code"] == reason
    finally:
        os.close(descriptor)
    odd = loop_device(64 * MIB).backing.with_name("odd.img")
    odd.write_bytes(bytes(12345))
    error = copier(odd, odd.with_name("odd-copy.img"), code=5)["error"]
    assert error["code"] == "sector-size" and error["hint"] == "make the source a multiple of 512 bytes"
    assert not odd.with_name("odd-copy.img").exists()
    assert copier("/nowhere", small, code=7)["error"]["code"] == "no-such-device"
    assert copier(source, "/dev/qrep-no-such", code=5)["error"]["code"] == "no-such-device"


def test_another_source_takes_over_a_target_only_when_said(copier, source, loop_device, random_source):
    other, target = loop_device(64 * MIB), loop_device(64 * MIB)
    fill(other, random_source, 0, 3 * MIB)
    copier(source, target)
    assert "is the copy of" in copier(other, target, code=5)["error"]["message"]
    assert copier(other, target, "-y")["root"] == b3sum(target) == b3sum(other)


def test_a_replica_of_the_agent_is_refused_also_while_the_agent_is_down(copier, source, loop_device):
    from qrep import config, device

    target = loop_device(64 * MIB)
    volume = config.Volume(id="ab" * 16, device=str(target), identity=device.identity(device.inspect(str(target))))
    config.Config(copier.env["QREP_CONFIG_DIR"]).save("volumes", "db", volume)
    os.makedirs(f"{copier.env['QREP_STATE_DIR']}/targets/{volume.id}", mode=0o700)
    assert copier(source, target, "-y", code=5)["error"]["code"] == "target-is-volume"
