"""A source that verifies believes nothing of what a target says of places, counts and lengths, and takes no more of it than it asked for."""

import threading

import pytest

from qrep._native.wire import Geometry
from qrep.digestmap import DigestMap
from qrep.errors import ProtocolError
from qrep.protocol import messages as say
from qrep.protocol.transport import Disconnected, local_pair
from qrep.source.request import RunRequest
from qrep.source.verify import Verification

LEAF, GRANULE, SIZE = 4096, 65536, 4 * 65536 + 512
T, VOLUME, JOB, DIGEST = b"t" * 16, b"v" * 16, b"j" * 16, bytes(32)
GRANULES = 5


class Device:
    path, size, io_alignment = "/dev/none", SIZE, 512


def checked(first=0, count=GRANULES, bad=(), whole=(), unreadable=(), done=True):
    return say.Checked(first, count, SIZE, list(bad), list(whole), list(unreadable), 0, done)


GOOD = checked()
LIES = {
    "a piece that was not asked for": [checked(first=1, count=4)],
    "more granules than there are": [checked(count=6)],
    "a piece of nothing": [checked(count=0, done=False)],
    "done before the end": [checked(count=2)],
    "not done at the end": [checked(done=False)],
    "a leaf beyond the end": [checked(bad=[say.BadLeaf(65, DIGEST)])],
    "a leaf of another piece": [checked(count=1, done=False, bad=[say.BadLeaf(16, DIGEST)])],
    "a granule of another piece": [checked(count=1, done=False, whole=[1])],
    "a place beyond the end": [checked(unreadable=[say.Extent(SIZE - 512, 1024)])],
    "a place of another piece": [checked(count=1, done=False, unreadable=[say.Extent(GRANULE, LEAF)])],
    "a place between leaves": [checked(unreadable=[say.Extent(512, 512)])],
    "nodes of another level": [GOOD, say.Nodes(3, b"\1", DIGEST)],
    "too many nodes": [GOOD, say.Nodes(7, b"\1\1", DIGEST * 2)],
    "a node of no kind": [GOOD, say.Nodes(7, b"\3", DIGEST)],
    "a word that was not asked for": [say.Repaired(0, True, "")],
}  # fmt: skip


def verification(tmp_path, says):
    """A Verification whose target says these messages after its State, whatever it is asked."""
    request = RunRequest(
        job_id=JOB, volume_id=VOLUME, device=Device, backend=None, map_directory=str(tmp_path / "map"), run_directory=str(tmp_path),
        leaf_size=LEAF, granule_size=GRANULE,
    )  # fmt: skip
    digest_map = DigestMap(request.map_directory, Geometry(SIZE, LEAF, GRANULE), VOLUME)
    digest_map.write_pending(T, say.NO_ID, 1, bytearray(b"\x21" * GRANULES), bytearray(32 * GRANULES))
    digest_map.fold(T)
    digest_map.close()

    def target(channel):
        try:
            hello = channel.receive(10)
            channel.send(say.State(1, T, 1, SIZE, LEAF, GRANULE, 1, [], say.NO_ID, 0, False, 512, hello.epoch, []))
            for message in says:
                channel.send(message)
            while True:
                channel.receive(10)
        except (Disconnected, TimeoutError):
            channel.close()

    def dial():
        here, there = local_pair()
        threading.Thread(target=target, args=(there,), daemon=True).start()
        return here

    return Verification(request, dial)


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_ends_the_connection(tmp_path, lie):
    with pytest.raises(ProtocolError):
        verification(tmp_path, LIES[lie]).run()


def test_leaf_values_of_another_granule_or_length_are_refused(tmp_path):
    for number, page in enumerate((say.Leaves(1, bytes(16 * 32)), say.Leaves(0, bytes(15 * 32)))):
        ours = verification(tmp_path / str(number), [checked(whole=[0]), say.Nodes(7, b"\1", DIGEST), page])
        with pytest.raises(ProtocolError):
            _with_pages(ours)


def _with_pages(ours):
    """Our own map knows leaf values, so theirs are asked for."""
    import qrep.source.verify as module

    before, module.own_page = module.own_page, lambda tree, granule: bytearray(16 * 32)
    try:
        ours.run()
    finally:
        module.own_page = before
