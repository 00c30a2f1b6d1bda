"""A volume with sync points never becomes one that is written once and given back, which would take them all away, below any floor."""

import os

import pytest
from agents import MIB, b3sum, wait_until
from intruder import identity_of
from security.hand import Control, ask, job_of

from qrep.daemon import asks

pytestmark = pytest.mark.root
SIZE = 8 * MIB


@pytest.fixture
def away(agents, loop_device, fill, memory_dir):
    """(a, b, path): job db was run three times, and its target, an image file, was not there when b started; now it is back, and nobody has looked."""
    source, image = loop_device(SIZE), memory_dir / "replica.img"
    image.write_bytes(bytes(SIZE))
    a, b = agents.replica(source, str(image), volume=("--keep-points", 5))
    for offset in range(3):
        fill(source, 64 << 10, offset=offset * MIB)
        a.run()
    a.terminate()
    b.end()
    os.rename(image, memory_dir / "elsewhere")
    b.start()
    wait_until(lambda: "volume-missing" in b.codes())
    os.rename(memory_dir / "elsewhere", image)
    return a, b, image


def once(a, **changed):
    job = job_of(a)
    fields = {
        "job_id": job["id"], "job": "db", "source": "site-a:db", "volume": "db", "size": job["size"], "leaf": job["leaf"], "granule": job["granule"],
        "sync_points": 0, "keep": "", "overwrite": True, "check_only": False, "once": True,
    }  # fmt: skip
    return asks.CreatePair(**fields | changed)


@pytest.mark.parametrize("check_only", [True, False])
def test_a_device_that_was_away_when_the_agent_started_does_not_hide_what_it_holds(away, check_only):
    a, b, image = away
    refused = ask(b, identity_of(a), once(a, check_only=check_only)).error
    assert refused is not None and refused.code == "has-sync-points"
    with Control(a, b) as control:
        control.hello()
    assert ask(b, identity_of(a), asks.GiveBack(job_id=job_of(a)["id"])).error.code == "no-such-pair"
    assert len(b.qrep("snapshot", "db")) == 3 and "target-given-back" not in b.codes()
    assert ask(b, identity_of(a), once(a, once=False, leaf=8192)).error.code == "other-shape", "nor its shape"
    a.start()
    assert a.run()["root"] == b3sum(image) and len(b.qrep("snapshot", "db")) == 4


def test_while_a_device_is_away_nobody_can_tell_and_it_is_refused(away, memory_dir):
    a, b, image = away
    os.rename(image, memory_dir / "elsewhere")
    assert ask(b, identity_of(a), once(a)).error is not None
    os.rename(memory_dir / "elsewhere", image)
    with Control(a, b) as control:
        control.hello()
    assert len(b.qrep("snapshot", "db")) == 3


def test_a_pair_that_is_no_copy_any_more_is_not_given_back(agents, loop_device, fill):
    """The same job is asked for once more, before anything was committed: as one that goes on."""
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, MIB)
    a, b = agents.replica(source, target)
    identity = identity_of(a)
    for question in (once(a), once(a, once=False, sync_points=7)):
        assert ask(b, identity, question).error is None
    a.run()
    fill(source, MIB, 2 * MIB)
    a.run()
    assert len(b.qrep("snapshot", "db")) == 2 and "target-given-back" not in b.codes()
