"""qrep's own records of a target volume are damaged: it is out of service and says so, everything else serves, nothing is written."""

import pytest
from agents import MIB, b3sum

pytestmark = pytest.mark.root
SIZE = 24 * MIB


def test_a_superblock_with_both_slots_damaged_takes_its_volume_out_of_service_until_it_is_added_anew(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target)
    root = a.run()["root"]
    b.kill()
    (superblock,) = (b.state / "targets").rglob("superblock")
    superblock.write_bytes(b"\xff" * superblock.stat().st_size)
    b.start()
    assert b.events("volume-damaged")[0]["volume"] == "db"
    job = b.job()
    assert job["state"] == "failed" and job["problem"]["code"] == "damaged" and "qrep volume remove db" in job["problem"]["action"]
    assert b.qrep("volume", "show", "db")["problem"]["code"] == "damaged"
    error = a.refused("start", "db", "--wait")
    assert error["code"] == "damaged" and a.job()["state"] == "failed"
    assert b3sum(target) == root

    a.qrep("job", "delete", "db", "-y")
    b.qrep("volume", "remove", "db", "-y")
    b.qrep("volume", "add", "db", target, "--accept", "site-a")
    a.qrep("job", "create", "db", "--source", "db", "--target", "site-b:db", "--initial", "compare", "-y")
    report = a.run()
    assert report["root"] == b3sum(target) == root and report["changed"] == 0, "compared, and nothing had to be sent"
