"""Data connections that come and go while a run is going: what is committed is the source, whoever carried it."""

import re
import socket
import threading
import time

import pytest
from flow.harness import MIB, Site, b3sum, packaged

from qrep._native.bucket import Bucket
from qrep.errors import Interrupted, Unreachable
from qrep.protocol.transport import DataConnection
from qrep.source import lanes as source_lanes
from qrep.source.flow import Run

pytestmark = pytest.mark.root
SIZE, GRANULE = 24 * MIB, MIB // 4  # sixteen lanes can hold a third of it
WAIT_S = 30


class Paced(Run):
    """A run whose data connections have a rate each: rates[slot], the last one for all further slots. refuse: slots that cannot be had.

    joined: the slots that were connected, in order. Told: codes of the events, with their data.
    """

    def __init__(self, site, rates, *, refuse=(), **options):
        self.site, self.rates, self.refuse, self.joined, self.told = site, rates, set(refuse), [], []
        super().__init__(site.make_run_request(**options), site.local.dial, self._pair, observer=self)
        self.report = self.error = None
        self.thread = threading.Thread(target=self._go, daemon=True)

    def event(self, code, text, **data):
        self.told.append((code, data.get("connection")))

    def _pair(self, token, slot):
        if slot in self.refuse:
            raise Unreachable(f"slot {slot} has no route")
        here, there = socket.socketpair()
        index = self.site.local.rendezvous.deliver(token, lambda index: DataConnection(there, index))
        if index is None:
            here.close()
            there.close()
            raise Unreachable("nobody waits")
        self.joined.append(slot)
        return DataConnection(here, index, bucket=Bucket(self.rates[min(slot, len(self.rates) - 1)]))

    def _go(self):
        try:
            self.report = self.run()
        except Interrupted as err:
            self.error = err

    def go(self):
        self.thread.start()
        return self

    def connections(self, state="up"):
        return [entry for entry in self.progress()["connections"] if entry["state"] == state]

    def until(self, condition):
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline and self.thread.is_alive(), f"it did not come about: {self.progress()['connections']}"
            time.sleep(0.01)

    def until_up(self, count):
        self.until(lambda: len(self.progress()["connections"]) == len(self.connections()) == count)

    def finish(self):
        """All rates off; the report."""
        for lane in list(self._lanes._going.values()) if self._lanes is not None else ():
            connection = lane.connection
            if connection is not None and connection.native.bucket is not None:
                connection.native.bucket.set_rate(0)
        self.rates = [0]
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive() and self.error is None
        return self.report


@pytest.fixture
def full(loop_device, memory_dir, random_source, undo_after):
    """Loop devices of 24 MiB; the source holds nothing but data."""
    source, target = loop_device(SIZE), loop_device(SIZE)
    with open(source, "r+b") as file:
        file.write(random_source.randbytes(SIZE))
    made = Site(memory_dir, source, target, granule_size=GRANULE).open()
    undo_after.callback(made.close)
    return made


def same(site, report):
    assert report.root == b3sum(site.target_path) == b3sum(site.source) == packaged(site.target_path)


def test_a_run_grows_from_one_connection_to_sixteen_and_shrinks_to_one(full):
    run = Paced(full, [64 << 10], connections=1).go()
    run.until_up(1)
    run.set_connections(16)
    run.until_up(16)
    assert [entry["number"] for entry in run.connections()] == list(range(1, 17))
    run.set_connections(1)
    for bucket in (lane.connection.native.bucket for lane in list(run._lanes._going.values()) if lane.slot):
        bucket.set_rate(0)  # what they have taken is soon sent
    run.until_up(1)
    run.set_connections(3)
    run.until_up(3)
    report = run.finish()
    same(full, report)
    assert report.interruptions == 0 and report.counter == 1
    assert sorted(run.joined) == sorted([*range(16), 1, 2])


def test_a_connection_in_the_middle_is_removed_and_the_later_ones_move_up(full):
    run = Paced(full, [256 << 10, 257 << 10, 258 << 10], connections=3).go()
    run.until_up(3)
    first = {lane.slot: lane for lane in run._lanes._going.values()}
    run.set_connections(2, removed=1)
    first[1].connection.native.bucket.set_rate(0)
    run.until_up(2)
    assert {first[0].slot, first[2].slot} == {0, 1} and first[0].slot == 0
    run.set_connections(3)
    run.until_up(3)
    report = run.finish()
    same(full, report)
    assert report.interruptions == 0


def test_what_a_removed_connection_has_taken_is_sent_by_it_and_nothing_twice(full):
    run = Paced(full, [2 * MIB], connections=4).go()
    run.until_up(4)
    run.set_connections(1)
    run.until(lambda: len(run.progress()["connections"]) == 1)
    report = run.finish()
    same(full, report)
    assert SIZE <= report.sent < SIZE + MIB // 4


def test_a_connection_removed_before_it_came_is_not_missed(full):
    run = Paced(full, [MIB], connections=1).go()
    run.until_up(1)
    run.set_connections(8)
    run.set_connections(2)
    run.set_connections(2, removed=0)
    run.until_up(2)
    same(full, run.finish())


def test_a_connection_that_cannot_be_had_leaves_its_work_to_the_others_and_is_tried_again(full, monkeypatch):
    monkeypatch.setattr(source_lanes, "RETRY_S", 0.3)
    run = Paced(full, [MIB], connections=3, refuse=[1]).go()
    run.until(lambda: len(run.connections()) == 2 and [entry["text"] for entry in run.connections("down")] == ["slot 1 has no route"])
    run.until(lambda: ("connection-down", 2) in run.told)
    run.refuse.clear()
    run.until_up(3)
    run.until(lambda: ("connection-up", 2) in run.told)
    report = run.finish()
    same(full, report)
    assert report.interruptions == 0 and run.told.count(("connection-down", 2)) == 1


def test_a_run_no_connection_can_be_had_for_is_interrupted_and_resumed(full):
    run = Paced(full, [0], connections=2, refuse=[0, 1])
    refused = []

    def event(code, text, **data):
        refused.append((code, text))
        if code == "run-interrupted":
            run.refuse.clear()

    run.event = event
    report = run.go().finish()
    same(full, report)
    assert report.interruptions == 1
    assert re.search("slot [01] has no route$", next(text for code, text in refused if code == "run-interrupted"))
    assert not any(code.startswith("connection") for code, _ in refused)


def test_one_of_four_that_dies_costs_a_session_and_what_was_applied_is_not_sent_again(xfs, memory_dir, random_source, undo_after):
    from qrep.volumes.reflink import Reflink

    source, target = xfs / "db.img", memory_dir / "copy.img"
    source.write_bytes(random_source.randbytes(SIZE))
    target.write_bytes(bytes(SIZE))
    with Site(memory_dir, source, target) as site:
        run = Paced(site, [2 * MIB], connections=4, backend=Reflink()).go()
        run.until(lambda: run.progress()["sent"] > 6 * MIB)
        lane = next(iter(run._lanes._going.values()))
        lane.connection.interrupt()
        run.until(lambda: ("run-interrupted", None) in run.told)
        run.until_up(4)
        report = run.finish()
        same(site, report)
    assert report.interruptions == 1 and report.resumed
    # At most what four lanes held and had under way: two granules each, and a socket's buffer.
    assert report.sent < SIZE + 4 * (2 * MIB + MIB // 2)


def test_a_slow_connection_carries_its_share_and_does_not_hold_the_others_back(full):
    slow, fast = MIB // 2, 5 * MIB
    run = Paced(full, [fast, fast, fast, slow], connections=4).go()
    counted = {}
    while run.thread.is_alive():
        for entry in run.progress()["connections"]:
            counted[entry["number"] - 1] = max(counted.get(entry["number"] - 1, 0), entry["sent"])
        time.sleep(0.02)
    same(full, run.report)
    # All would take 24 / 15.5 = 1.5 s. In lock step with the slow one 6 / 0.5 = 12 s; with two granules of it at the end 2.5 s.
    assert run.report.seconds < 9
    assert 0 < counted[3] <= 4 * MIB and min(counted[0], counted[1], counted[2]) > counted[3]


def test_the_wanted_number_holds_for_the_next_session_too(full):
    run = Paced(full, [MIB], connections=1).go()
    run.until_up(1)
    run.set_connections(3)
    run.until_up(3)
    run._lanes.interrupt()
    run.until(lambda: ("run-interrupted", None) in run.told)
    run.until_up(3)
    same(full, run.finish())


def test_stopping_while_connections_are_being_added_keeps_what_was_applied(full):
    run = Paced(full, [2 * MIB], connections=1).go()
    run.until(lambda: run.progress()["sent"] > MIB)
    run.set_connections(16)
    run.stop()
    run.thread.join(WAIT_S)
    assert isinstance(run.error, Interrupted)
    report = full.run()
    same(full, report)


class Stuck(Paced):
    """Its second connection, while nothing has been interrupted, waits until it is let through."""

    def __init__(self, *args, **options):
        self.waiting, self.through = threading.Event(), threading.Event()
        super().__init__(*args, **options)

    def _pair(self, token, slot):
        if slot == 1 and ("run-interrupted", None) not in self.told:
            self.waiting.set()
            self.through.wait(2 * WAIT_S)
        return super()._pair(token, slot)


def test_a_run_that_loses_its_path_while_a_connection_is_being_made_does_not_wait_for_that(full):
    """Fail-over took 10.2 s for 5.2 (H8, seed 20261201, scenario 5)."""
    run = Stuck(full, [MIB], connections=2).go()
    assert run.waiting.wait(WAIT_S)
    run.until(lambda: len(run.connections()) == 1)
    run._link.channel.close()
    run.until(lambda: ("run-interrupted", None) in run.told)
    run.until_up(2)
    run.through.set()
    report = run.finish()
    same(full, report)
    assert report.interruptions == 1
