"""qrep stop keeps what was applied, and qrep start goes on from there; over several connections."""

import pytest
from agents import MIB, b3sum, wait_until

pytestmark = pytest.mark.root
SIZE = 24 * MIB


def test_stop_keeps_what_was_applied_and_start_resumes_it_over_more_connections(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target, source_volume=("--granule", "1M"), link_rate=10 * MIB)
    a.qrep("start", "db")
    wait_until(lambda: agents.link.carried > SIZE // 2)
    assert "kept" in a.qrep("stop", "db")["db"]["text"]
    before = agents.link.carried
    assert a.job()["state"] == "stopped" and a.job()["problem"]["action"].startswith("qrep start db")
    assert a.qrep("stop", "db")["db"]["text"] == "nothing was running"

    a.qrep("job", "set", "db", "--connections", "5")
    report = a.run()
    assert report["resumed"] and report["root"] == b3sum(target) == b3sum(source)
    assert agents.link.carried - before < SIZE * 0.8
    assert a.codes().count("run-stopped") == 1


def test_a_job_that_runs_is_not_started_twice(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, _b = agents.replica(source, target, link_rate=10 * MIB)
    a.qrep("start", "db")
    for command in (["start", "db"], ["verify", "db"], ["start", "db", "-n"], ["job", "delete", "db", "-y"]):
        error = a.refused(*command)
        assert error["code"] == "busy" and "db is running already" in error["message"]
    a.qrep("stop", "db")
