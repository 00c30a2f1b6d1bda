"""Two agents in two network namespaces: leaves that are twice in a frame cross once, and random changes cost little more than themselves."""

import os

import pytest
from agents import MIB, b3sum
from system.cables import Cables
from system.pathscene import over_cables

from qrep._native.wire import HEADER_SIZE

pytestmark = pytest.mark.root
SIZE, LEAF = 32 * MIB, 4096


def put(path, leaves):
    """Write {leaf: bytes} to a device."""
    with open(path, "r+b", buffering=0) as device:
        for leaf, data in leaves.items():
            os.pwrite(device.fileno(), data, leaf * LEAF)
        os.fsync(device.fileno())


@pytest.fixture
def scene(agents, loop_device, undo_after):
    cables = Cables(undo_after)
    return over_cables(agents, cables, loop_device(SIZE), loop_device(SIZE), SIZE, job=("--compress", "off")), cables


def test_duplicates_cross_once_and_both_sides_are_equal_and_say_what_was_saved(scene, random_source):
    scene, cables = scene
    a, source, target = scene.a, scene.source, scene.target
    blocks = [random_source.randbytes(LEAF) for _ in range(8)]
    unique = {leaf: random_source.randbytes(LEAF) for leaf in range(0, SIZE // LEAF, 2)}
    put(source, unique | {leaf: random_source.choice(blocks) for leaf in range(1, SIZE // LEAF, 2)})
    before = cables.sent(1)
    report = a.run()
    assert report["root"] == b3sum(target) == b3sum(source)
    # All but at most eight of the odd leaves of a frame; one of 1 MiB or more has 128 of them.
    assert SIZE // 2 * 15 // 16 <= report["copies"] < SIZE // 2 and report["changed"] == SIZE
    assert report["sent"] < SIZE - report["copies"] + SIZE // 100
    assert cables.sent(1) - before < report["sent"] + 2 * MIB
    shown = a.text("status", "db")[0]
    assert "as copies)" in shown, shown
    # A differential run, which keeps before-images at the target: the same content in many places.
    put(source, {leaf: blocks[leaf % 3] for leaf in random_source.sample(range(0, SIZE // LEAF, 2), 200)})
    changed = a.run()
    assert changed["root"] == b3sum(target) == b3sum(source)
    assert changed["copies"] >= changed["changed"] // 2 and changed["sent"] < changed["changed"] // 2


def test_random_changes_of_one_leaf_cost_at_most_a_tenth_more_than_themselves_on_the_wire(scene, random_source):
    scene, cables = scene
    a, source, target = scene.a, scene.source, scene.target
    put(source, {0: random_source.randbytes(SIZE)})
    a.run()
    put(source, {leaf: random_source.randbytes(LEAF) for leaf in random_source.sample(range(SIZE // LEAF), 1024)})
    before = cables.sent(1)
    report = a.run()
    wire = cables.sent(1) - before
    assert report["root"] == b3sum(target) == b3sum(source)
    assert report["changed"] == 1024 * LEAF and report["copies"] == 0
    print(f"frames {report['sent'] / report['changed']:.4f}, with TLS, TCP, IP and control {wire / report['changed']:.4f} of what was changed")
    assert report["sent"] <= report["changed"] * 1.01 + 8 * HEADER_SIZE
    assert wire <= report["changed"] * 1.1
