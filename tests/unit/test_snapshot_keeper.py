"""Snapshots that wait for the next run are given back before they fill the space of the volume that they are of."""

import threading
from types import SimpleNamespace

from qrep.daemon.snapshotkeeper import SnapshotKeeper, tokens_of
from qrep.protocol.records import RunRecord
from qrep.source.kept import Kept
from qrep.source.runrecord import RunFile
from qrep.volumes import registry
from qrep.volumes.base import SnapshotError

JOB = "ab" * 16


class Pool:
    """A backend whose space is full, or not."""

    watched, full = True, False

    def __init__(self):
        self.there = {"lvm-thin:kept", "lvm-thin:record"}

    def find(self, token):
        return token if token in self.there else None

    def check(self, token):
        if self.full:
            raise SnapshotError(f"{token} is nearly full", code="snapshot-full")

    def release(self, token):
        self.there.discard(token)


def test_what_a_job_keeps_is_given_back_when_its_space_is_nearly_full_and_not_before(tmp_path, monkeypatch):
    directory = tmp_path / "sources" / JOB
    directory.mkdir(parents=True)
    kept = Kept(directory, None)
    kept.remember(bytes(16), "lvm-thin:kept", True, 0, bytes(32))
    kept.close()
    file = RunFile(directory)
    file.save(RunRecord(epoch=1, base=bytes(16), new=bytes([1]) * 16, attempt=1, snapshot="lvm-thin:record", fuzzy=False, frozen_at_ns=1, mixed=False))
    file.close()
    assert tokens_of(directory) == ["lvm-thin:kept", "lvm-thin:record"] and tokens_of(tmp_path / "nowhere") == []
    pool, told = Pool(), []
    monkeypatch.setitem(registry.BACKENDS, "lvm-thin", pool)
    node = SimpleNamespace(
        jobs=SimpleNamespace(active=lambda: [("db", SimpleNamespace(settings=SimpleNamespace(id=JOB)))]), state=SimpleNamespace(path=str(tmp_path)),
        events=SimpleNamespace(add=lambda code, text, **data: told.append((code, data["job"]))),
    )  # fmt: skip
    keeper = SnapshotKeeper(node)
    keeper.look_now()
    assert len(pool.there) == 2 and told == []
    pool.full = True
    keeper.look()
    for thread in threading.enumerate():
        if thread.name == "snapshot keeper":
            thread.join(20)
    assert pool.there == set() and told == [("snapshot-given-back", "db")] * 2
    keeper.look_now()  # they are gone
    assert len(told) == 2
