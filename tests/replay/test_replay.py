"""Power cuts replayed from what the kernel's dm-log-writes recorded of qrep: a small recording kept here, its canaries, and the reading of logs and traces."""

import random
from pathlib import Path

import pytest
from replay import dmlog, recording, trace
from replay.canaries import CANARIES, caught
from replay.replayer import Replayer, points

RECORDED = Path(__file__).with_name("small.rec")  # made by python -m replay.guest; made anew when a disk format changes
CUTS = 20


@pytest.fixture(scope="module")
def recorded():
    return recording.Recording.load(RECORDED)


@pytest.fixture(scope="module")
def replayer(recorded, tmp_path_factory):
    with Replayer(recorded, tmp_path_factory.mktemp("replay"), 1) as made:
        yield made


@pytest.mark.root
def test_a_power_cut_at_any_moment_of_the_recording_leaves_a_committed_generation(replayer, seed):
    chosen = random.Random(seed).sample(points(replayer.recording, seed, 0), CUTS)
    for point in chosen:
        print(point)
        replayer.check(point)


@pytest.mark.root
@pytest.mark.parametrize("seed_it", CANARIES, ids=lambda seed_it: seed_it.__name__)
def test_a_log_or_a_recovery_with_a_defect_is_reported(replayer, seed_it):
    assert caught(replayer, seed_it)


# What is durable when, by hand: two writes, a flush that covers only the first, a FUA write.


@pytest.fixture
def device():
    def write(number, queued, done, fua=False):
        return recording.Write(number * 512, 512, bytes([number + 1]) * 512, fua, queued, done)

    return recording.Device(bytes(4096), [write(0, 1, 2), write(1, 3, 6), write(2, 9, 10, fua=True)], [(4, 7)])


@pytest.mark.parametrize(
    ("time", "keep", "there"),
    [(3, "none", ()), (3, "all", (0,)), (7, "none", ()), (8, "none", (0,)), (8, "all", (0, 1)), (10, "none", (0,)), (11, "none", (0, 2)), (11, "all", (0, 1, 2))],
)
def test_what_a_device_holds_after_a_cut_is_what_was_flushed_and_what_happened_to_be_written(device, time, keep, there):
    image = device.image(time, keep, random.Random(1))
    assert [number for number in range(8) if any(image[number * 512 : (number + 1) * 512])] == list(there)


def test_what_was_not_flushed_tears_between_sectors_but_not_in_places_that_are_written_whole():
    writes = [recording.Write(0, 8192, b"x" * 8192, False, 1, 2)]
    seen = {bytes(recording.Device(bytes(8192), writes, []).image(3, "some", random.Random(seed)))[::512] for seed in range(20)}
    assert len(seen) == 20
    whole = recording.Device(bytes(8192), writes, [], [(1024, 2048)])
    assert {whole.image(3, "some", random.Random(seed)) for seed in range(20)} == {bytes(8192), b"x" * 8192}


def test_a_recording_is_the_same_after_it_was_kept(recorded, tmp_path):
    recorded.save(tmp_path / "again")
    again = recording.Recording.load(tmp_path / "again")
    assert (again.plan, again.marks, again.boundaries()) == (recorded.plan, recorded.marks, recorded.boundaries())
    for name, device in recorded.devices.items():
        assert again.devices[name].writes == device.writes and again.devices[name].base == device.base


# The kernel's log and trace. The text of the trace is as the kernel prints it.

TRACE = """
 python-1 [000] ..... 1.0: block_bio_queue: 254,0 WS 8 + 1 [python]
 python-1 [000] ..... 1.1: block_bio_queue: 254,0 R 0 + 8 [python]
 <idle>-0 [000] ..... 1.2: block_bio_complete: 254,0 WS 8 + 1 [0]
 python-1 [000] ..... 1.3: tracing_mark_write: begin 1
 python-1 [000] ..... 1.4: block_bio_queue: 254,0 FWS 0 + 0 [python]
 <idle>-0 [000] ..... 1.5: block_bio_complete: 254,0 FWS 0 + 0 [0]
 jbd2-9   [000] ..... 1.6: block_bio_queue: 254,0 FWFSM 16 + 1 [jbd2]
 <idle>-0 [000] ..... 1.7: block_bio_complete: 254,0 WFSM 16 + 1 [0]
 python-1 [000] ..... 1.8: block_bio_queue: 254,0 DS 24 + 1 [python]
"""
LOG = [
    dmlog.Entry(4096, 512, 0, b"a" * 512),
    dmlog.Entry(0, 0, dmlog.FLUSH, b""),
    dmlog.Entry(0, 0, dmlog.MARK, b"", "begin-1"),
    dmlog.Entry(0, 0, dmlog.FLUSH | dmlog.FUA, b""),
    dmlog.Entry(8192, 512, dmlog.FUA, b"b" * 512),
    dmlog.Entry(12288, 512, dmlog.DISCARD, b""),
    dmlog.Entry(0, 0, dmlog.MARK, b"", "dm-log-writes-end"),
]


def join(tmp_path, log=LOG, text=TRACE):
    (tmp_path / "log").write_bytes(dmlog.written(log))
    return recording.joined((1, 2, 3), f"devices data=254,0\n{text}", {"data": bytes(16384)}, {"data": tmp_path / "log"})


def test_log_and_trace_together_say_what_was_written_when(tmp_path):
    made = join(tmp_path)
    (device,) = made.devices.values()
    assert made.marks == [(4, "begin 1")] and device.flushes == [(5, 6), (7, 8)] and made.boundaries() == [6, 8]
    assert [(write.offset, write.data[:1], write.fua, write.durable) for write in device.writes] == [
        (4096, b"a", False, 6), (8192, b"b", True, 8), (12288, b"", False, float("inf")),
    ]  # fmt: skip
    assert device.writes[1].queued == 8, "nothing of a write with a flush before it is there before that flush has ended"


@pytest.mark.parametrize("broken", [LOG[1:], LOG[:1] + LOG[2:], LOG[:2] + LOG[3:], [*LOG[:4], LOG[4]._replace(flags=0), *LOG[5:]], [*LOG[:5], *LOG[6:]]])
def test_a_log_that_does_not_fit_the_trace_is_refused(tmp_path, broken):
    with pytest.raises(trace.BadTrace):
        join(tmp_path, broken)


def test_a_trace_that_lost_events_or_has_an_end_without_a_beginning_is_refused(tmp_path):
    with pytest.raises(trace.BadTrace, match="nobody had asked"):
        join(tmp_path, text=TRACE.replace("1.0: block_bio_queue", "1.0: other"))
    with pytest.raises(trace.BadTrace, match="LOST"):
        join(tmp_path, text="CPU:0 [LOST 12 EVENTS]\n" + TRACE)


@pytest.mark.parametrize("cut", [3, 511, 600, 1100, 3000])
def test_a_log_that_is_cut_off_is_refused(tmp_path, cut):
    (tmp_path / "log").write_bytes(dmlog.written(LOG)[:cut])
    with pytest.raises(dmlog.BadLog):
        list(dmlog.entries(tmp_path / "log"))


def test_something_else_than_a_log_is_refused(tmp_path):
    (tmp_path / "log").write_bytes(b"x" * 4096)
    with pytest.raises(dmlog.BadLog, match="magic"):
        list(dmlog.entries(tmp_path / "log"))
