"""A sparse image file of 16 TiB with little data, between two agents in two network namespaces: it takes what the data takes, not what the size would."""

import os
from pathlib import Path

import pytest
from agents import MIB, inside
from system.cables import ADDRESSES, Cables

pytestmark = pytest.mark.root
SIZE, GRANULE, PIECE = 16 << 40, 8 * MIB, 64 << 10
MEMORY = 64 * MIB  # more than at the start, beside the buffers: the map alone would be 66 MiB, and there are several copies of it in a run
BUFFERS = 64 * MIB


def peak(agent):
    """Bytes, the most that the agent has had resident."""
    lines = Path(f"/proc/{agent.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def put(path, pieces):
    with open(path, "r+b", buffering=0) as image:
        for offset, data in pieces.items():
            os.pwrite(image.fileno(), data, offset)
        os.fsync(image.fileno())


def holds(path, pieces):
    with open(path, "rb", buffering=0) as image:
        return all(os.pread(image.fileno(), len(data), offset) == data for offset, data in pieces.items())


def on_disk(path):
    """Bytes that a directory takes."""
    return sum(os.lstat(entry).st_blocks * 512 for entry in Path(path).rglob("*"))


@pytest.fixture
def scene(agents, xfs, undo_after):
    """(agent of the source, agent of the target, source, target): job db, not yet run."""
    cables, images = Cables(undo_after), [str(xfs / "source.img"), str(xfs / "target.img")]
    for image in images:
        Path(image).touch()
        os.truncate(image, SIZE)
    a, b = (
        agents.agent(name, host="0.0.0.0", port=7414, prefix=inside(space)) for name, space in zip(("site-a", "site-b"), cables.spaces, strict=True)
    )
    here, there = ADDRESSES[0]
    a.qrep("peer", "add", "site-b", there, "-y")
    b.qrep("peer", "add", "site-a", f"{here}:7414", "-y")
    a.qrep("volume", "add", "db", images[0])
    b.qrep("volume", "add", "db", images[1], "--accept", "site-a")
    a.qrep("job", "create", "db", "--source", "db", "--target", "site-b:db")
    return a, b, *images


def test_a_volume_of_16_tib_takes_the_memory_the_room_and_the_reads_of_its_data(scene, random_source):
    a, b, source, target = scene
    before = {}
    places = random_source.sample(range(SIZE // GRANULE), 16)
    data = {place * GRANULE + 12288: random_source.randbytes(PIECE) for place in places}
    put(source, data)
    for agent in (a, b):
        before[agent] = peak(agent)
    first = a.run()
    assert holds(target, data)
    assert first["read"] <= 16 * GRANULE and first["sent"] < 16 * PIECE + 8192 * 160 and first["changed"] <= SIZE
    unchanged = a.run()
    assert unchanged["changed"] == 0 and unchanged["read"] <= 16 * GRANULE
    changed = {offset + 4096: random_source.randbytes(4096) for offset in data}
    put(source, changed)
    report = a.run()
    assert report["changed"] == 16 * 4096 and holds(target, changed)
    for agent in (a, b):
        assert peak(agent) < before[agent] + BUFFERS + MEMORY, "flat"
        assert on_disk(agent.state) < 32 * MIB, "holes in the map, too"
        agent.terminate()
        agent.start()
    again = a.run()
    assert again["changed"] == 0 and again["counter"] == 4, "the maps were believed after a restart"
    point = next(point for point in b.qrep("snapshot", "db") if point["counter"] == 2)
    b.qrep("snapshot", "rollback", f"db@{point['point']}", "-y")
    assert holds(target, data)
