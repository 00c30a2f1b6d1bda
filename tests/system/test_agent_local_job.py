"""A job whose two volumes are on the same host needs no peer and no port."""

import pytest
from agents import MIB, b3sum

pytestmark = pytest.mark.root
SIZE = 24 * MIB


def test_a_local_job_runs_verifies_and_rolls_back_in_one_agent(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, 8 * MIB)
    a = agents.agent("site-a")
    a.qrep("volume", "add", "db", source)
    a.qrep("volume", "add", "copy", target)
    a.qrep("job", "create", "db", "--source", "db", "--target", "copy", "--connections", 3)
    estimate = a.qrep("start", "db", "-n")["db"]
    assert estimate["full"] and estimate["would_send"] == 8 * MIB

    first = a.run()
    assert first["root"] == b3sum(target) == b3sum(source)
    fill(source, MIB)
    estimate = a.qrep("start", "db", "-n")["db"]
    assert not estimate["full"] and estimate["would_send"] == MIB and estimate["changed_since"]
    assert a.run()["root"] == b3sum(target) == b3sum(source)
    assert a.qrep("verify", "db", "--independent")["equal"]
    a.qrep("snapshot", "rollback", "copy@1", "-y")
    assert b3sum(target) == first["root"]

    (job,) = a.qrep("status")["jobs"]
    assert job["local"] and job["role"] == "source"
    a.kill()
    a.start()
    assert a.run()["root"] == b3sum(target) == b3sum(source)

    a.qrep("job", "delete", "db", "-y")
    assert a.qrep("status")["jobs"] == []
    assert a.qrep("volume", "show", "copy")["role"] == "replica", "its sync points are still there"
    a.qrep("volume", "remove", "copy", "-y")
    a.qrep("volume", "remove", "db", "-y")
    assert b3sum(target) == b3sum(source)
    codes = set(a.codes())
    assert {"volume-added", "job-created", "pair-created", "pair-deleted", "job-deleted", "volume-removed", "agent-started"} <= codes
