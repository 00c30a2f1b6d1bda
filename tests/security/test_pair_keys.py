"""A pair belongs to a key: who comes later under the same name, with a key that is pinned as well, has nothing of it."""

import pytest
from agents import MIB, Agents, b3sum, wait_until
from intruder import identity_of
from security.hand import Control, ask, job_of

from qrep.daemon import asks
from qrep.protocol import messages as say

pytestmark = pytest.mark.root
SIZE = 8 * MIB


def test_a_host_of_the_same_name_and_another_key_has_no_say_in_a_pair_and_the_volume_is_free_again(agents, loop_device, fill, memory_dir):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, MIB)
    a, b = agents.replica(source, target)
    root, job = a.run()["root"], job_of(a)
    a.terminate()
    with Agents(memory_dir / "later") as others:
        later = others.agent("site-a")
        b.qrep("peer", "remove", "site-a", "-y")
        b.qrep("peer", "add", "site-a", f"{later.host}:{later.port}", "-y")
        thief = identity_of(later)
        for question in (
            asks.DeletePair(job_id=job["id"]), asks.ChangePair(job_id=job["id"], sync_points=0, keep=""), asks.Standing(job_id=job["id"]),
            asks.GiveBack(job_id=job["id"]), asks.PinPoint(job_id=job["id"], point="0" * 32),
        ):  # fmt: skip
            assert ask(b, thief, question).error.code == "no-such-pair", question
        with Control(a, b, identity=thief) as control:
            assert control.hello().code == "not-paired"
        assert len(b.db_pairs()) == 1 and b3sum(target) == root and len(b.qrep("snapshot", "db")) == 1

        b.qrep("volume", "remove", "db", "-y")  # its own administrator is not barred by what nobody can delete any more
        assert b.db_pairs() == [] and b3sum(target) == root


def test_a_hello_that_is_refused_does_not_end_the_session_that_is_going(agents, loop_device, fill):
    """A second connection with the same key: what it says is refused, and the run of the first one never notices."""
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target, source_volume=("--granule", "1M"), link_rate=6 * MIB)
    a.qrep("start", "db")
    wait_until(lambda: agents.link.carried > MIB)
    for changed in ({"epoch": 1 << 62}, {"version_min": 9, "version_max": 9}, {"size": 2 * SIZE}, {"leaf_size": 12345}, {"volume_id": b"v" * 16}):
        with Control(a, b) as control:
            assert isinstance(control.hello(**changed), say.Error), changed
    wait_until(lambda: a.job()["counter"] == 1)
    assert not {"run-interrupted", "run-resumed"} & set(a.codes()) and b3sum(target) == b3sum(source)
