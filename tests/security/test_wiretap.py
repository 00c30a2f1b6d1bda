"""Who listens on the wire learns sizes and times, and nothing else."""

import pytest
from agents import MIB, b3sum, inside
from cables import Cables, addresses
from security.wiretap import Listener, leaks

from qrep._native import hasher

pytestmark = pytest.mark.root
SIZE, LEAF, GRANULE = 8 * MIB, 4096, MIB
PATTERN = b"the content of a block that nobody else may read "


@pytest.fixture
def cables(undo_after):
    try:
        return undo_after.enter_context(Cables([0]))
    except RuntimeError as err:
        pytest.skip(f"no network namespaces here: {err}")


def secrets_of(content, root, devices):
    """{what: bytes} that must not be on the wire."""
    found = {"content": PATTERN, "root": bytes.fromhex(root)}
    for place in (0, 7 * LEAF, GRANULE, 5 * GRANULE):
        found[f"digest of the leaf at {place}"] = hasher.subtree(content[place : place + LEAF], place, LEAF)
        start = place // GRANULE * GRANULE
        found[f"digest of the granule at {start}"] = hasher.subtree(content[start : start + GRANULE], start, LEAF)
    return found | {f"name {name}": str(name).encode() for name in (*devices, "ledger", "archive", "nightly", "site-a", "site-b")}


@pytest.mark.parametrize("trusted", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["encrypted", "a path that both trust"])
def test_of_a_full_run_neither_content_nor_digests_nor_names_are_on_the_wire(agents, loop_device, cables, trusted):
    """Where both administrators trust the path the content is heard: that this listener hears at all is shown by it."""
    source, target = loop_device(SIZE), loop_device(SIZE)
    content = b"".join((PATTERN + b"%d " % number).ljust(128, b".") for number in range(SIZE // 128))[:SIZE]
    with open(source, "r+b") as file:
        file.write(content)
    a, b = (agents.agent(name, host=address, prefix=inside(space)) for name, address, space in zip(("site-a", "site-b"), addresses(0), cables.spaces, strict=True))
    with Listener(cables.spaces[0], "cable-0") as listener:
        a.qrep("peer", "add", "site-b", f"{b.host}:{b.port}", "-y")
        b.qrep("peer", "add", "site-a", f"{a.host}:{a.port}", "-y")
        if trusted:
            a.qrep("peer", "set", "site-b", "--trusted")
            b.qrep("peer", "set", "site-a", "--trusted")
        a.qrep("volume", "add", "ledger", source, "--granule", "1M")
        b.qrep("volume", "add", "archive", target, "--accept", "site-a")
        a.qrep("job", "create", "nightly", "--source", "ledger", "--target", "site-b:archive", "--connections", 2)
        root = a.run("nightly")["root"]
        assert a.qrep("verify", "nightly")
    assert root == b3sum(target)
    found = leaks(listener.heard, secrets_of(content, root, (source, target)))
    assert len(listener.heard) > SIZE // 2 and not listener.dropped
    assert ("content" in found) if trusted else (found == []), found
