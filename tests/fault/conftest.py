"""Fixtures of the kill tests: one nest of processes per session, scenes of two loop devices or of an image file that can be frozen."""

import pytest
from fault.nest import Nest
from fault.scene import MIB, SIZE, Scene, changed, mixed


@pytest.fixture(scope="session")
def nest():
    made = Nest()
    yield made
    made.close()


@pytest.fixture
def scene(nest, loop_device, memory_dir, random_source, undo_after):
    """A scene whose source holds an image that was never replicated."""
    made = Scene(nest, loop_device(SIZE), loop_device(SIZE), memory_dir / "state")
    undo_after.callback(made.stop_all)
    made.first = mixed(4 * MIB, random_source) + bytes(2 * MIB)
    made.write(made.first)
    return made


def with_one_generation(made, random_source):
    made.complete(made.first)
    made.second = changed(made.first, random_source)
    made.write(made.second)
    made.images[2] = made.second
    return made


@pytest.fixture
def committed(scene, random_source):
    """A scene with one committed generation, and a source that has changed since."""
    return with_one_generation(scene, random_source)


@pytest.fixture
def frozen(nest, xfs, loop_device, memory_dir, random_source, undo_after):
    """As `committed`, but the source is an image file of which every run takes a clone."""
    return image_scene(nest, xfs, loop_device, memory_dir, random_source, undo_after, "reflink")


@pytest.fixture
def hinted(nest, xfs, loop_device, memory_dir, random_source, undo_after):
    """As `frozen`, and the clone of the last committed generation is kept, so that the next run reads only what has changed since."""
    return image_scene(nest, xfs, loop_device, memory_dir, random_source, undo_after, "hints")


def image_scene(nest, xfs, loop_device, memory_dir, random_source, undo_after, backend):
    image = xfs / "db.img"
    image.write_bytes(bytes(SIZE))
    made = Scene(nest, image, loop_device(SIZE), memory_dir / "state", backend=backend)
    undo_after.callback(made.stop_all)
    made.first = mixed(4 * MIB, random_source) + bytes(2 * MIB)
    made.write(made.first)
    return with_one_generation(made, random_source)
