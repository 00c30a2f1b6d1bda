"""A host gets a new key, in the order that SECURITY.md gives: its jobs go on, sync points stay, and only what changed is sent."""

import pytest
from agents import MIB, b3sum

pytestmark = [pytest.mark.root, pytest.mark.slow]
SIZE = 16 * MIB


def test_a_source_gets_a_new_key_and_its_replica_keeps_its_sync_points(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target)
    a.run()
    fill(source, MIB)
    a.run()
    points = b.qrep("snapshot", "db")

    a.terminate()
    for name in ("node.key", "node.pem"):
        (a.state / "keys" / name).unlink()
    a.start()
    assert a.refused("start", "db", "--wait")["code"] == "not-pinned"
    b.qrep("peer", "remove", "site-a", "-y")
    b.qrep("peer", "add", "site-a", f"{a.host}:{a.port}", "-y")
    assert a.refused("start", "db", "--wait")["code"] == "not-paired", "what the old key was given, the new one is not"
    a.qrep("job", "delete", "db", "-y")
    a.qrep("job", "create", "db", "--source", "db", "--target", "site-b:db", "--initial", "compare")
    fill(source, 64 << 10, offset=3 * MIB)
    report = a.run()
    assert report["root"] == b3sum(target) == b3sum(source)
    assert report["changed"] == 64 << 10, "what is equal was not sent again"
    assert [point["point"] for point in b.qrep("snapshot", "db")][1:] == [point["point"] for point in points]
