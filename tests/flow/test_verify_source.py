"""Verify with a source that keeps the frozen image of the last sync point: it is read, too, and it is what a repair takes its leaves from."""

import os

import pytest
from flow.harness import GRANULE, LEAF, MIB, Site, b3sum, write_at
from flow.test_verify import target_map

from qrep.rehash import own_page, tree_of
from qrep.source.found import correct
from qrep.source.hints import kept
from qrep.source.verify import verify
from qrep.volumes.reflink import Reflink

pytestmark = pytest.mark.root
SIZE = 12 * MIB
PER_GRANULE = GRANULE // LEAF


@pytest.fixture
def site(xfs, loop_device, memory_dir, random_source, undo_after):
    """An image file of which every run takes a clone, and the last one is kept. One generation is committed."""
    image = xfs / "db.img"
    image.write_bytes(random_source.randbytes(9 * MIB) + bytes(3 * MIB))
    made = Site(memory_dir, image, loop_device(SIZE))
    undo_after.callback(made.close)
    made.options = {"backend": Reflink(), "hints": True}
    made.open()
    made.run(**made.options)
    return made


def check(site, **options):
    return verify(site.make_run_request(**site.options), site.local.dial, **options)


def frozen_image(site):
    _tag, token = kept(site.make_run_request().run_directory)
    return token.partition(":")[2]


def damage(path, *leaves, data=b"rot"):
    with open(path, "r+b") as file:
        for leaf in leaves:
            os.pwrite(file.fileno(), data, leaf * LEAF)
        os.fsync(file.fileno())


def test_both_sides_read_their_own_device_and_both_are_told_of(site):
    found = check(site)
    assert found.ok and found.source_read and found.read_source == found.read_target == SIZE and found.digests == 1
    site.close()
    damage(site.target_path, 100, 600)
    damage(frozen_image(site), 300, SIZE // LEAF - 1)
    site.open()
    found = check(site)
    told = found.as_dict()
    assert found.leaves == [100, 600] and not found.ok
    assert [place["offset"] // LEAF for place in told["target_damage"]] == [100, 600]
    assert [place["offset"] // LEAF for place in told["source_damage"]] == [300, SIZE // LEAF - 1]
    assert told["map_differences"] == [] and told["note"] == ""


def test_rot_of_the_source_alone_is_told_and_the_target_is_well(site):
    damage(frozen_image(site), 300)
    found = check(site)
    assert not found.ok and found.leaves == [] and found.root == found.target_root == b3sum(site.target_path)
    assert found.as_dict()["source_damage"] == [{"offset": 300 * LEAF, "size": LEAF}] and found.as_dict()["differences"] == []


def test_a_map_of_the_source_that_is_wrong_is_told_from_a_target_that_is(site):
    """Both devices hold the same, so it is the map."""
    source_map = site.source_map(SIZE)
    correct(source_map, {777: bytes([7]) * 32}, set())
    source_map.close()
    found = check(site)
    told = found.as_dict()
    assert found.leaves == [] and set(found.result.source_map) == {777} and not found.ok
    assert told["map_differences"] == [{"offset": 777 * LEAF, "size": LEAF}] and told["differences"] == told["source_damage"] == []
    page = own_page(tree_of(target_map(site)), 777 // PER_GRANULE)
    assert found.result.to_put_right()[0] == {777: bytes(page[777 % PER_GRANULE * 32 :][:32])}


def test_a_repair_takes_its_leaves_from_the_frozen_image_when_the_source_has_moved_on(site):
    right = b3sum(site.target_path)
    site.close()
    damage(site.target_path, 100, 600, 700)
    damage(frozen_image(site), 700)  # here neither end has it any more
    site.open()
    for leaf in (100, 600, 700):
        write_at(site.source, leaf * LEAF, b"newer")
    found = check(site, repair=True)
    assert found.repair["healed_leaves"] == 2 and found.leaves == [700]
    assert found.as_dict()["source_damage"] == [{"offset": 700 * LEAF, "size": LEAF}], "the same rot at both ends is rot"
    site.close()
    with open(site.target_path, "rb") as file:
        held = file.read()
    assert len([leaf for leaf in range(SIZE // LEAF) if held[leaf * LEAF :][:3] == b"rot"]) == 1
    site.open()
    assert site.run(**site.options).root == b3sum(site.source) == b3sum(site.target_path) != right


def test_an_image_that_is_gone_or_of_another_generation_is_not_read(site):
    os.unlink(frozen_image(site))
    found = check(site)
    assert found.ok and not found.source_read and found.read_source == 0
    assert found.as_dict()["note"] == "the source's copy of that moment is gone: only the target was read"
