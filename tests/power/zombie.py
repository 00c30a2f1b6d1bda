"""Writes of the dead: a process is killed with a write under way to a slow device, and whoever comes next has to wait until it has landed (R1, R12).

Who wrote what is told by its content: what comes next never writes what the one before it wrote there.
"""

import json
import random
import select
import time

import blake3
import oracle
from fault.scene import SIZE

WINDOW, WINDOW_S = 2, 0.5  # runs: for so long as that many would take, and this at least, whoever comes next is watched before the write lands
REAPED_S = 5.0
LIMIT_S = 120.0


class Early(AssertionError):
    """Who came next went to work while a write of the one before it was under way."""


def until(condition, what):
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not so after {LIMIT_S:g} s")
        time.sleep(0.002)


def run_until_detained(cuts, chance, defect=""):
    """A run of which one write to the target's device is under way, on and on. Returns (target, source), or None if there were not so many writes."""
    scene, data = cuts.scene, cuts.scene.devices["data"]
    scene.watch()
    scene.defect = defect
    target = scene.start("target")
    scene.defect = ""
    ready = scene.ready(target)
    data.detain(chance.randint(1, max(1, cuts.requests["data"].write // 2)))
    source = scene.start("source", ready["port"])
    until(lambda: data.counts().detained or source.poll() is not None, "a write is under way, or the run is over")
    if data.counts().detained:
        return target, source
    data.detain(0)
    scene.finish(target)
    scene.stop_all()
    scene.judge()
    return None


def while_detained(cuts, image, start):
    """Start a process while a write of the content of `image` is under way, watch it, and let the write land. Returns the process, which has waited."""
    data, since = cuts.scene.devices["data"], time.monotonic_ns()
    process = start()
    spoke = select.select([process.stdout], [], [], max(WINDOW_S, WINDOW * cuts.length))[0]
    data.land()
    until(lambda: not data.counts().detained, "the write has landed")
    one_writer(data.log(), image, since)
    if spoke:
        raise Early(f"who came next said something while a write of the one before it was under way: {process.readline()}")
    return process


def zombie(cuts, number, defect=""):
    """The target is killed, its successor waits, the write lands, and the successor recovers. False: nothing was under way. Raises AssertionError."""
    chance, scene, data = random.Random(f"{cuts.seed}:zombie:{number}"), cuts.scene, cuts.scene.devices["data"]
    before = cuts.change(chance)
    processes = run_until_detained(cuts, chance)
    if processes is None:
        return False
    target, source = processes
    target.kill()
    source.communicate()
    try:
        target.wait(REAPED_S)
    except TimeoutError:  # the write is not io_uring's: then reaping itself waits for it
        data.land()
        scene.stop_all()
        return False
    since = time.monotonic_ns()
    scene.defect = defect
    successor = while_detained(cuts, cuts.image, lambda: scene.start("target"))
    scene.defect = ""
    if scene.ready(successor) is None:
        raise oracle.Wrong(f"the target is not in service: {successor.errors()}")
    scene.stop_all()
    one_writer(data.log(), cuts.image, since)
    scene.judge()
    cuts.recovered(before, before[0])
    scene.complete(cuts.image)
    return True


def superseded(cuts, number, defect=""):
    """A source is killed with a write of its session under way; the next session, of a source that holds something else in every leaf, is not served
    before that has landed (INV-F, R12). False: as zombie()."""
    chance, scene, data = random.Random(f"{cuts.seed}:superseded:{number}"), cuts.scene, cuts.scene.devices["data"]
    before = cuts.change(chance)
    processes = run_until_detained(cuts, chance, defect)
    if processes is None:
        return False
    target, source = processes
    source.kill()
    source.wait()
    first, since = cuts.image, time.monotonic_ns()
    cuts.hold(chance.randbytes(SIZE))
    second = while_detained(cuts, first, lambda: scene.start("source", scene.port))
    out, err = second.communicate()
    if second.returncode:
        raise oracle.Wrong(f"the session after the one that was killed failed: {out} {err}")
    assert json.loads(out)["root"] == blake3.blake3(cuts.image).hexdigest()
    scene.finish(target)
    scene.stop_all()
    one_writer(data.log(), first, since)
    scene.judge()
    assert scene.committed()[0] == before[0] + 1
    scene.holds(cuts.image)
    scene.maps_are_true()
    return True


def one_writer(log, image, since):
    """INV-D, INV-F: whatever was written of `image`, by the one who had a write under way at `since`, is done before anybody asks anything else of the device."""
    theirs, others = [], []
    for record in log:
        is_theirs = record.kind != "flush" and written(record) == image[record.offset : record.offset + record.size]
        (theirs if is_theirs else others).append(record)
    assert any(record.begun < since < record.done for record in theirs), "no write of the one before was under way"
    landed = max(record.done for record in theirs)
    early = [record for record in others if record.begun < landed]
    if early:
        raise Early(f"{len(early)} requests, the first a {early[0].kind} at {early[0].begun} ns, came before a write of the one before landed at {landed} ns")


def written(record):
    return record.data if record.kind == "write" else bytes(record.size)
