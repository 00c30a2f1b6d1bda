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


def test_an_agent_whose_remembered_state_has_rotted_serves_tells_and_lets_nobody_write_who_might_not(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target)
    a.run()
    b.kill()
    pairs = (b.state / "pairs.a").read_bytes()
    (b.state / "pairs.a").write_bytes(pairs.replace(b'"peer": "site-a"', b'"peer": "site-c"'))
    for name in ("state.db", "state.db-wal"):
        (b.state / name).write_bytes(b"\xff" * 8192)
    b.start()
    assert a.events("records-damaged") == [], "nothing was there before"
    assert "pairs.a" in b.events("records-healed")[0]["text"] and "state.db" in b.events("records-damaged")[0]["text"]
    assert (b.state / "pairs.a").read_bytes() != pairs and [pair["peer"] for pair in b.db_pairs()] == ["site-a"]
    fill(source, MIB)
    assert a.run()["root"] == b3sum(target) == b3sum(source)

    b.kill()
    for name in ("pairs.a", "pairs.b"):
        (b.state / name).write_bytes(pairs[:-1])
    code, _out, err = b.run_command("--config-dir", b.config, "--state-dir", b.state, "check")
    assert code == 2 and "pairs.a" in err + _out and "pairs.b" in err + _out
    with pytest.raises(AssertionError, match="who may write to volumes here cannot be told"):
        b.start()

    for name in ("pairs.a", "pairs.b"):
        (b.state / name).unlink()
    b.start()
    assert "pairs.a and pairs.b were gone" in b.events("records-damaged")[-1]["text"] and a.refused("start", "db", "--wait")["code"] == "not-paired"
