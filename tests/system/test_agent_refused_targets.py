"""Targets that are refused through the whole stack: exit 5, a code, a way out, and not one byte of the device is changed."""

import itertools
import os

import pytest
from agents import MIB, Agents, b3sum
from machine import need_tool, partitioned, run

pytestmark = pytest.mark.root
SIZE = 8 * MIB
numbers = itertools.count()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with Agents(tmp_path_factory.mktemp("agents")) as agents:
        yield agents.pair()


@pytest.fixture
def source(loop_device, fill):
    device = loop_device(SIZE)
    fill(device, MIB)
    return device


@pytest.fixture
def refuses(pair, source):
    """refuses(target, code): site-a may not replicate `source` onto `target` of site-b, with or without -y. Returns the error."""
    a, b = pair
    made = []

    def attempt(target, code, *, source=source, asked="", compared=None):
        """asked: the code when -y would be enough, which is then not tried. compared: bytes, of a device that others write to."""
        name = f"v{next(numbers)}"
        before = b3sum(target, compared)
        for agent, device, more in ((a, source, []), (b, target, ["--accept", "site-a"])):
            agent.qrep("volume", "add", name, device, *more)
            made.append((agent, name))
        command = ["job", "create", name, "--source", name, "--target", f"site-b:{name}"]
        for more, wanted in (("-n", code), ("", asked or code), *([] if asked else [("-y", code)])):
            error = a.refused(*command, *more.split())
            assert (error["code"], error["exit"]) == (wanted, 5), error
            assert error["hint"]
        assert b3sum(target, compared) == before
        assert not (b.state / "targets").exists() or not any((b.state / "targets").rglob("superblock"))
        assert a.qrep("job") == [] and b.db_pairs() == []
        return error

    yield attempt
    for agent, name in made:
        agent.qrep("volume", "remove", name, "-y")


def test_one_that_is_a_sector_too_small(refuses, source, loop_device):
    target = loop_device(SIZE - 512)
    error = refuses(target, "target-too-small")
    assert str(target) in error["message"] and "512 bytes too small" in error["message"]


def test_a_mounted_one(refuses, filesystem, loop_device):
    target = loop_device(128 * MIB)
    point = filesystem("ext4", device=target, options="ro")  # nobody else writes to it
    error = refuses(target, "target-mounted")
    assert str(point) in error["message"]


def test_one_that_is_swapped_on(refuses, loop_device, undo_after):
    target = loop_device(SIZE)
    run("mkswap", target)
    try:
        run("swapon", target)
    except RuntimeError as err:
        pytest.skip(f"no swap here: {err}")
    undo_after.callback(run, "swapoff", target)
    refuses(target, "target-in-use", compared=4096)  # the swap header; the rest is the kernel's to write


def test_one_that_something_is_stacked_on(refuses, loop_device):
    target = loop_device(SIZE)
    upper = loop_device(backing=target.path)
    error = refuses(target, "target-in-use")
    assert upper.path in error["message"]


def test_one_that_another_process_claims(refuses, loop_device, undo_after):
    """As device-mapper, md and LVM hold their members."""
    target = loop_device(SIZE)
    undo_after.callback(os.close, os.open(target, os.O_RDWR | os.O_EXCL))
    refuses(target, "target-in-use")


@pytest.mark.parametrize("tool, size", [
    (["mkfs.ext4", "-q", "-F"], SIZE), (["mkfs.xfs", "-q", "-f"], 320 * MIB), (["pvcreate", "-qq", "-y", "--zero", "y"], SIZE),
    (["mkswap"], SIZE), (["parted", "-s", "--script"], 64 * MIB),
])  # fmt: skip
def test_one_that_carries_a_signature_and_was_not_named(refuses, loop_device, tool, size):
    need_tool(tool[0])
    target = loop_device(size, partscan=tool[0] == "parted")
    if tool[0] == "parted":
        partitioned(target)
    else:
        run(*tool, target)
    assert "carries" in refuses(target, "signature", asked="needs-confirmation")["message"]


def test_sectors_of_4096_bytes_under_a_source_that_is_no_multiple_of_them(refuses, loop_device, fill):
    source = loop_device(SIZE + 1536)
    error = refuses(loop_device(SIZE + MIB, 4096), "sector-size", source=source)
    assert "last 1536 bytes" in error["message"]


def test_a_read_only_one(refuses, loop_device, memory_dir):
    backing = memory_dir / "ro.img"
    backing.write_bytes(b"r" * SIZE)
    refuses(loop_device(backing=backing, read_only=True), "target-read-only")
