"""A source whose key is good and whose intentions are not: its session ends, the device holds its last sync point, other jobs notice nothing."""

import os
import struct

import pytest
from agents import MIB, Agents, b3sum
from intruder import admitted, read_message
from machine import loop_devices
from security.hand import Control, ask

from qrep._native import hasher, wire
from qrep._native.wire import LAST, FrameWriter, Geometry
from qrep.daemon import asks, tls
from qrep.protocol import messages as say
from qrep.protocol.records import TargetRecord
from qrep.protocol.target_machine import TargetMachine

pytestmark = pytest.mark.root
SIZE, LEAF, GRANULE = 8 * MIB, 4096, MIB
GEOMETRY = Geometry(SIZE, LEAF, GRANULE)
TOP, HALF = 0xFFFFFFFF, 1 << 63


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    """(site-a, site-b, targets): jobs db and other, each run once, and again at the end."""
    directory = tmp_path_factory.mktemp("agents")
    names = ("db", "other")
    for name in names:
        (directory / f"{name}-source").write_bytes(os.urandom(SIZE))
        (directory / f"{name}-target").write_bytes(bytes(SIZE))
    paths = [directory / f"{name}-{end}" for name in names for end in ("source", "target")]
    with loop_devices(*paths) as devices, Agents(directory) as agents:
        a, b = agents.pair()
        targets = {}
        for name, source, target in zip(names, devices[::2], devices[1::2], strict=True):
            targets[name] = target
            a.qrep("volume", "add", name, source, "--granule", "1M")
            b.qrep("volume", "add", name, target, "--accept", "site-a")
            a.qrep("job", "create", name, "--source", name, "--target", f"site-b:{name}", "--connections", 1)
            a.run(name)
        yield a, b, targets
        for name in names:
            assert a.run(name)["root"] == b3sum(targets[name])
        assert "Traceback" not in a.log + b.log and not b.events("volume-damaged")


class Attempt:
    """A session that has begun an attempt, and its data connection, by hand. alone: it has not said Begin."""

    def __init__(self, a, b, name="db", number=None):
        self.control = Control(a, b, name)
        self.state = self.control.hello()
        while isinstance(self.state, say.Stale):
            self.state = self.control.hello(epoch=self.state.max_epoch + 1)
        if self.state.open_attempt:
            self.say(say.Abort(0, "by hand"))
        self.b = b
        self.number = number or int.from_bytes(os.urandom(7), "little") | 1

    def say(self, message):
        answer = self.control.say(message)
        while isinstance(answer, say.Progress):
            answer = self.control.hear()
        return answer

    def hear(self):
        answer = self.control.hear()
        while isinstance(answer, say.Progress):
            answer = self.control.hear()
        return answer

    def begin(self, **changed):
        fields = dict(base=self.state.committed, new=os.urandom(16), attempt=self.number, connections=1, frame_limit=MIB)
        self.began = self.say(say.Begin(**fields | changed))
        return self.began

    def join(self):
        stream = admitted(self.b, self.control.identity, tls.DATA)
        stream.sendall(say.encode(say.Join(token=self.began.tokens[0])))
        assert isinstance(read_message(stream), say.Joined)
        self.writer = FrameWriter(GEOMETRY, self.number, self.began.session, 0, self.began.key)
        return stream

    def sealed(self, *, kind=1, flags=LAST, run_count=0, granule=0, attempt=None, data_size=16 * LEAF, first_leaf=0, span=0):
        """A header with these fields, whatever they are, and the right tag."""
        head = struct.pack(
            "<IHHIIQQQQII32s32sII", 0x50455251, 1, kind, flags, run_count, granule, attempt or self.number, self.began.session, 0, data_size, first_leaf,
            hasher.hash(b""), bytes(32), span, 0,
        )  # fmt: skip
        return head + hasher.keyed(self.began.key, head)

    def frame(self, place=0, seed=7):
        data = bytes([seed]) * (16 * LEAF)
        return self.writer.full(0, place * 16, len(data), hasher.subtree(data, place * len(data), LEAF), 0) + data

    def close(self):
        self.control.close()


@pytest.fixture
def attempt(replicas):
    """An Attempt of job db; the devices of both jobs are as they were, afterwards."""
    a, b, targets = replicas
    before = {name: b3sum(target) for name, target in targets.items()}
    made = Attempt(a, b)
    yield made
    made.close()
    a.run("db")  # what it left open is given up
    assert {name: b3sum(target) for name, target in targets.items()} == before, "nothing that was not committed is there"


LIES = {
    "past the end": {"granule": SIZE // GRANULE}, "at an offset of 2^63": {"granule": HALF}, "at an offset that overflows": {"granule": HALF // GRANULE},
    "more than a frame": {"data_size": TOP}, "more than a granule": {"data_size": 2 * GRANULE}, "a leaf behind the granule": {"first_leaf": TOP},
    "so many runs": {"kind": 2, "run_count": TOP}, "so many granules of zeroes": {"kind": 3, "data_size": 0, "span": TOP}, "another attempt": {"attempt": 3},
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_frame_with_a_good_tag_that_lies_ends_the_session_and_writes_nothing(attempt, lie):
    attempt.begin()
    with attempt.join() as stream:
        stream.sendall(attempt.sealed(**LIES[lie]))
        answer = attempt.hear()
        assert isinstance(answer, say.Nak) and answer.code == "frame", answer


def test_data_whose_digest_is_another_is_not_written(attempt):
    attempt.begin()
    with attempt.join() as stream:
        frame = bytearray(attempt.frame())
        frame[-1] ^= 1
        stream.sendall(frame + attempt.frame(place=1))
        answer = attempt.hear()
        assert isinstance(answer, say.Nak) and answer.code == "frame", answer


@pytest.mark.parametrize("message", [say.Prepare(5, 0, bytes(32), False, 0, "", ""), say.Commit(5), say.AddConnections(5, 1), say.Resume(5, 1, MIB, True)], ids=lambda each: type(each).__name__)
def test_what_comes_before_begin_is_refused(attempt, message):
    answer = attempt.say(message)
    assert isinstance(answer, say.Nak | say.Error), answer
    assert attempt.b.job is not None


def test_prepare_with_another_manifest_is_refused_and_nothing_can_be_committed(attempt):
    attempt.begin()
    with attempt.join() as stream:
        stream.sendall(attempt.frame() + attempt.writer.end())
        answer = attempt.say(say.Prepare(attempt.number, 1, b"w" * 32, False, 0, "", ""))
        assert isinstance(answer, say.Nak), answer
        refused = attempt.say(say.Commit(attempt.number))
        assert isinstance(refused, say.Nak | say.Error), refused


def test_commit_is_done_once(replicas):
    """The second one finds nothing that is prepared; the generation and the number of sync points stay."""
    a, b, targets = replicas
    made = Attempt(a, b, "other")
    made.begin()
    with made.join() as stream:
        stream.sendall(made.writer.end())
        count, manifest = wire.manifest(bytes(SIZE // GRANULE), bytes(SIZE // GRANULE), bytes(32 * (SIZE // GRANULE)))
        assert count == 0
        assert isinstance(made.say(say.Prepare(made.number, 0, manifest, False, 0, "", "")), say.Prepared)
        committed = made.say(say.Commit(made.number))
        assert isinstance(committed, say.Committed)
        assert isinstance(made.say(say.Commit(made.number)), say.Nak | say.Error)
    points = b.qrep("snapshot", "other")
    assert [point["point"] for point in points].count(committed.new.hex()) <= 1
    made.close()


def test_a_generation_is_not_begun_twice_or_on_another_base_or_with_an_id_that_was(attempt):
    assert attempt.begin(base=b"b" * 16).code == "base"
    assert attempt.begin(new=attempt.state.committed).code == "id"
    assert attempt.begin(attempt=0) is None or attempt.began.code in ("id", "protocol")


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_begun_and_given_up_again_and_again_costs_no_memory_and_no_descriptor(replicas, count):
    a, b, targets = replicas
    before = b3sum(targets["db"])
    made = Attempt(a, b)

    def held():
        return len(os.listdir(f"/proc/{b.process.pid}/fd"))

    def resident():
        with open(f"/proc/{b.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    for number in range(count):
        made.number = 1000 + number
        assert isinstance(made.begin(), say.Began), made.began
        assert isinstance(made.say(say.Abort(made.number, "changed my mind")), say.Aborted)
        if number == 20:
            first = resident(), held()
    assert resident() - first[0] <= 64 * MIB and held() <= first[1] + 2
    assert b3sum(targets["db"]) == before and len(b.events()) < 2000
    made.close()


@pytest.mark.parametrize("count", [5000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_the_machine_takes_any_number_of_them(count):
    """Without devices: what it keeps does not grow."""
    record = TargetRecord(volume_id=b"v" * 16, size=SIZE, leaf_size=LEAF, granule_size=GRANULE, committed_id=b"t" * 16, committed_counter=5)
    machine = TargetMachine(record, capacity=SIZE, sector_size=512, chain=(b"t" * 16,))
    machine.start(False)
    machine.connected("a")
    machine.message("a", say.Hello(1, 1, b"j" * 16, b"v" * 16, 1, SIZE, LEAF, GRANULE, 512, False, []))
    for number in range(1, count + 1):
        machine.message("a", say.Begin(b"t" * 16, number.to_bytes(16, "little"), number, 1, LEAF))
        machine.message("a", say.Abort(number, "no"))
        if machine.phase == "recovering":
            machine.undo_restored()
        assert machine.phase == "idle"
    assert machine.record.committed_id == b"t" * 16 and len(machine.record.history) <= 12 and len(machine.chain) == 1


def test_a_pair_and_a_volume_of_another_job_are_not_reached_with_this_ones_id(replicas):
    a, b, targets = replicas
    with Control(a, b, "db") as control:
        other = Control(a, b, "other")
        answer = control.hello(volume_id=bytes.fromhex(other.job["target_volume"]))
        other.close()
        assert isinstance(answer, say.Error) and answer.code == "wrong-volume"
    for question in (asks.DeletePair(job_id="f" * 32), asks.Standing(job_id="../x")):
        answer = ask(b, control.identity, question)
        assert answer is None or answer.error.code == "no-such-pair"
