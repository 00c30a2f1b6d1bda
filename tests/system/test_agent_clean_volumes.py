"""Two agents in two network namespaces: a volume that was never written is not copied, one that was only erased is scanned and not copied."""

import os

import pytest
from agents import MIB, b3sum
from machine import image, run
from system.cables import Cables
from system.pathscene import over_cables

from qrep._native.wire import HEADER_SIZE

pytestmark = pytest.mark.root
SIZE = 128 * MIB


@pytest.fixture
def cables(undo_after):
    return Cables(undo_after)


def test_a_volume_that_was_never_written_is_not_copied_and_both_sides_say_why(agents, xfs, loop_device, memory_dir, cables):
    backing = image(xfs, "db.img", size=SIZE)
    source, target = loop_device(backing=backing), loop_device(SIZE)
    scene = over_cables(agents, cables, source, target, SIZE)
    a, b = scene.a, scene.b
    b.qrep("volume", "add", "new", image(memory_dir, "new.img", size=SIZE), "--accept", "site-a")
    a.qrep("volume", "add", "new", image(xfs, "new.img", size=SIZE))
    create = ("job", "create", "new", "--source", "new", "--target", "site-b:new")
    text, _code = a.text(*create, "-n")
    assert a.qrep(*create)["clean"]
    assert "new was never written; that is proved on both sides and nothing is copied" in text
    before = cables.sent(1)
    for name in ("db", "new"):
        report = a.run(name)
        assert report["clean"] and (report["read"], report["changed"], report["frames"]) == (0, 0, 2)  # END on each of two connections
    assert os.stat(memory_dir / "new.img").st_blocks == 0, "the target image stays sparse"
    assert report["root"] == b3sum(b.qrep("volume", "show", "new")["device"])
    assert "nothing was copied" in a.text("status", "new")[0] and "nothing was copied" in a.text("job", "show", "db")[0]
    sent = cables.sent(1) - before
    print(f"two clean volumes of {SIZE // MIB} MiB: {sent} bytes on the wire")
    assert sent < MIB // 2
    # What is written then travels, and nothing else.
    with open(source, "r+b") as file:
        file.seek(100 * MIB)
        file.write(b"x" * MIB)
        file.flush()
        os.fsync(file.fileno())
    report = a.run()
    assert not report["clean"] and report["changed"] == MIB
    assert report["root"] == b3sum(target)


def test_a_target_that_holds_something_is_no_clean_volume_and_is_made_zero(agents, xfs, loop_device, fill, cables):
    source, target = image(xfs, "db.img", size=SIZE), loop_device(SIZE)
    fill(target, 3 * MIB, 50 * MIB)
    a = over_cables(agents, cables, source, target, SIZE).a
    report = a.run()
    assert not report["clean"] and report["changed"] == 3 * MIB and report["sent"] == report["frames"] * HEADER_SIZE
    assert report["root"] == b3sum(target) == b3sum(source)


def test_a_volume_that_was_only_erased_is_scanned_and_nothing_crosses_for_its_zeroes(agents, xfs, loop_device, cables):
    """Erased: zeroes were written to all of it, so the filesystem has data everywhere."""
    backing = image(xfs, "db.img", size=SIZE)
    run("dd", "if=/dev/zero", f"of={backing}", "bs=1M", f"count={SIZE // MIB}", "conv=notrunc,fsync")
    source, target = loop_device(backing=backing), loop_device(SIZE)
    a = over_cables(agents, cables, source, target, SIZE, job=("--hints", "off")).a
    before = cables.sent(1)
    report = a.run()
    assert not report["clean"], "it was written: nobody says that it never was"
    assert report["read"] == report["zero"] == SIZE
    sent = cables.sent(1) - before
    print(f"an erased volume of {SIZE // MIB} MiB: {report['sent']} bytes of frames, {sent} bytes on the wire")
    assert report["sent"] == report["frames"] * HEADER_SIZE, "there is nothing in any frame"
    assert sent < 256 << 10
    before = cables.sent(1)
    report = a.run()
    assert report["read"] == SIZE and report["changed"] == 0 and cables.sent(1) - before < 256 << 10
    assert report["root"] == b3sum(target)
