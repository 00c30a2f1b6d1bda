"""Pairs: what a job that asks for one cannot take from another one."""

from types import SimpleNamespace

import pytest

from qrep import store
from qrep.daemon.grants import Grants
from qrep.daemon.pairs import Pairs
from qrep.daemon.roles import Roles
from qrep.errors import Refused

ID = "7" * 32
PAIR = {"job": "db", "source": "db", "volume": "db", "size": 4096, "sync_points": 7}


@pytest.fixture
def pairs(tmp_path):
    tmp_path.chmod(0o700)
    keys = {"a": "key of a", "b": "key of b"}
    with store.Directory(tmp_path) as directory:
        node = SimpleNamespace(
            name="t", grants=Grants(directory), peers=SimpleNamespace(fingerprint=lambda name: keys.get(name, "")),
            attachments=SimpleNamespace(of_volume=lambda name: []), jobs=SimpleNamespace(sources=lambda: []),
        )  # fmt: skip
        yield Pairs(node)


def ask(pairs, peer, volume="web"):
    volume = SimpleNamespace(name=volume, role=lambda: "replica")
    pairs._check_free(volume, f"t:{volume.name}", SimpleNamespace(job_id=ID), peer)


@pytest.mark.parametrize("thief", ["b", None])
def test_a_job_id_that_is_another_hosts_takes_no_pair_from_it(pairs, thief):
    pairs.node.grants.add_pair(ID, peer="a", fingerprint="key of a", **PAIR)
    with pytest.raises(Refused) as refused:
        ask(pairs, thief)
    assert refused.value.code == "job-id-taken"
    ask(pairs, "a")  # its own job moves to another volume


def test_nor_what_is_noted_of_a_copy(pairs):
    pairs.node.grants.add_once(ID, peer="a", fingerprint="key of a", volume_id="v")
    with pytest.raises(Refused, match="another host has a job of this id"):
        ask(pairs, "b")
    ask(pairs, "a")


def test_the_id_of_a_pair_that_is_nobodys_is_free(pairs):
    pairs.node.grants.add_pair(ID, peer="a", fingerprint="an older key of a", **PAIR)
    ask(pairs, "b")


def test_a_pair_that_is_nobodys_is_promoted_only_where_there_is_no_other_one_of_its_job(pairs):
    node = pairs.node
    node.pairs, node.jobs.all_by_name = pairs, dict
    roles = Roles.__new__(Roles)
    roles.node, roles._of_pair = node, lambda pair: pair["volume"]
    node.grants.add_pair(ID, peer="a", fingerprint="an older key of a", **PAIR)
    assert roles.parts("db") == "db"
    node.grants.add_pair("8" * 32, peer="a", fingerprint="key of a", **PAIR | {"volume": "web"})
    assert roles.parts("db") == "web"
    node.grants.add_pair("9" * 32, peer="b", fingerprint="key of b", **PAIR | {"volume": "ftp"})
    with pytest.raises(Refused, match="2 hosts have a job db"):
        roles.parts("db")


def test_a_peer_that_was_removed_while_it_asked_gets_no_pair(pairs):
    question = SimpleNamespace(job_id=ID, **PAIR, keep="", once=False)
    with pytest.raises(Refused, match="does not know this host any more"):
        pairs.note(question, "c")
    assert pairs.node.grants.pairs() == []
    pairs.note(question, "a")
    assert pairs.node.grants.pair(ID)["fingerprint"] == "key of a"
