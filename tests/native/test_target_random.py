"""Random sessions: several lanes of every kind, cut and stopped anywhere, undo stores too small, and the way back from all of it."""

import os
import random
import threading

import pytest
from target_rig import HAS_VALUE, IS_ZERO, LEAF, SEGMENT, Target, granule_value

from qrep._native import hasher, undo
from qrep._native.wire import LAST

ROUNDS = 10
KINDS = ["socket", "stream", "pipes"]


def send_pass(session, granule, kind, frame_leaves):
    """One pass over a granule, without a value: the target has to find it by itself."""
    source = session.source
    leaves = source.geometry.granule_leaves(granule)
    if kind == "zero":
        source.zero(granule)
    elif kind == "full":
        step = 1 << (min(frame_leaves, 64).bit_length() - 1)
        for first in range(0, leaves, step):
            start, data = source.node(granule, first, min(step, leaves - first))
            flags = LAST if first + step >= leaves else 0
            session.send(source.writer.full(granule, first, len(data), hasher.subtree(data, start, LEAF), flags, None) + data)
    else:
        runs = [(leaf, 1, False) for leaf in range(0, leaves, 2)][:frame_leaves]
        data, digest = source.runs_parts(granule, runs)
        session.send(source.writer.runs(granule, runs, len(data), digest, LAST, None) + data)


def feed(session, granules, frame_leaves, dice):
    for granule in dice.choices(granules, k=2 * len(granules)) if granules else []:
        send_pass(session, granule, dice.choice(["full", "full", "runs", "runs", "zero"]), frame_leaves)
        if dice.random() < 0.01:
            return session.hang_up()
        if dice.random() < 0.005:
            session.target.run.stop()
    session.source.end()
    return None


def check_map(target):
    """INV-I: what the map claims to know is what the device holds."""
    device, size = target.device, target.geometry.granule_size
    for granule in range(target.geometry.granules):
        state = target.run.fresh_states[granule]
        if target.run.marked[granule] != 2:
            continue
        if state & HAS_VALUE:
            assert target.value(granule) == granule_value(target.geometry, device, granule), granule
        if state & 3 == IS_ZERO:
            assert not any(device[granule * size : (granule + 1) * size]), granule


@pytest.mark.parametrize("overlap", [False, True], ids=["granules-apart", "lanes-overlap"])
def test_every_session_leaves_a_true_map_and_a_way_back(memory_dir, backend, undo_after, random_source, overlap):
    for round_ in range(ROUNDS):
        dice = random.Random(random_source.randrange(1 << 32))
        directory = memory_dir / str(round_)
        directory.mkdir()
        granule_size = LEAF * dice.choice([2, 4, 64])
        size = dice.choice([3, 9, 40]) * granule_size + dice.choice([0, 512, LEAF, LEAF + 1536])
        old = bytearray(dice.randbytes(size))
        for start in range(0, size, LEAF):
            if dice.random() < 0.3:
                old[start : start + LEAF] = bytes(len(old[start : start + LEAF]))
        device = directory / "device"
        device.write_bytes(old)
        frame_limit, undo_limit = dice.choice([LEAF, 4 * LEAF, 4 << 20]), dice.choice([1 << 40, SEGMENT * dice.choice([1, 2, 3, 4])])
        place = {}
        for _ in range(dice.choice([1, 2, 3])):
            target = Target(directory, device, None, size, granule_size=granule_size, ring_backend=backend, undo_limit=undo_limit,
                            punch=dice.random() < 0.5, frame_limit=frame_limit, **place)
            undo_after.callback(target.close)
            content, lanes = bytearray(dice.randbytes(size)), dice.choice([1, 2, 4])
            sessions = [target.serve(content, kind=dice.choice(KINDS), index=index) for index in range(lanes)]
            feeders = []
            for index, session in enumerate(sessions):
                granules = [g for g in range(target.geometry.granules) if overlap or g % lanes == index]
                arguments = (session, granules, max(1, frame_limit // LEAF), random.Random(dice.random()))
                feeders.append(threading.Thread(target=feed, args=arguments))
                feeders[-1].start()
            for feeder in feeders:
                feeder.join(30)
                assert not feeder.is_alive(), "a lane neither reads nor hangs up"
            for session in sessions:
                if session.ours.fileno() >= 0:
                    session.ours.shutdown(1)  # for those that were stopped while they waited
                session.result(15)
            failure = target.run.failure()
            assert failure is None or failure[0] in ("connection", "undo-space"), failure
            if not overlap:
                check_map(target)
            place = {"undo_next": target.run.undo_next, "undo_sequence": target.run.undo_sequence}
        found = undo.scan(target.undo_fd, os.fstat(target.undo_fd).st_size, target.undo_header())
        assert found.damaged is None
        undo.restore(target.device_fd, target.undo_fd, undo.restore_order(found.batches), size, is_file=True, ring_backend=backend)
        assert target.device == old, f"round {round_}"
        target.close()
