"""Writes of the dead: a process is killed with a write under way to a slow device, and whoever comes next has to wait until it has landed (R1, INV-D)."""

import random
import select
import time

import oracle

NOT_YET_S = 0.3  # for so long the successor is watched; it must not go on, however long that is
REAPED_S = 5.0
LIMIT_S = 120.0


class Early(AssertionError):
    """The successor went to work while a dead process's write was under way."""


def until(condition, what):
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not so after {LIMIT_S:g} s")
        time.sleep(0.002)


def says_nothing(process, seconds):
    return not select.select([process.stdout], [], [], seconds)[0]


def run_until_detained(cuts, chance, defect=""):
    """A run of which one write to the target's device is under way, on and on. Returns (target, source), or None if there were not so many writes."""
    scene, data = cuts.scene, cuts.scene.devices["data"]
    scene.defect = defect
    target = scene.start("target")
    scene.defect = ""
    ready = scene.ready(target)
    data.record(data=False)
    data.detain(chance.randint(1, max(1, cuts.requests["data"].write // 2)))
    source = scene.start("source", ready["port"])
    until(lambda: data.counts().detained or source.poll() is not None, "a write is under way, or the run is over")
    if data.counts().detained:
        return target, source
    data.detain(0)
    scene.finish(target)
    scene.stop_all()
    return None


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
    scene.defect = defect
    successor = scene.start("target")
    scene.defect = ""
    if defect:  # it does not wait, as the canary is to show
        scene.ready(successor)
    elif not says_nothing(successor, NOT_YET_S):
        raise Early(f"the successor went on while a write of its predecessor was under way: {successor.readline()}")
    data.land()
    until(lambda: not data.counts().detained, "the write has landed")
    if defect:
        scene.holds(scene.images[before[0]])
    if scene.ready(successor) is None:
        raise oracle.Wrong(f"the target is not in service: {successor.errors()}")
    scene.stop_all()
    in_order(data.log())
    cuts.recovered(before, before[0])
    scene.complete(cuts.image)
    return True


def in_order(log):
    """INV-D: nothing of the successor had begun when the write landed. The one that was under way longest is the dead one's."""
    landed = max((record for record in log if record.kind == "write"), key=lambda record: record.done - record.begun)
    for record in log[log.index(landed) + 1 :]:
        if landed.begun < record.begun < landed.done:
            raise Early(f"a request at {record.begun} ns was before the dead process's write landed at {landed.done} ns")


def superseded(cuts, number, defect=""):
    """A source is killed with a write of its session under way; the next session is not served before that has landed (INV-F, R12). False: as zombie()."""
    chance, scene, data = random.Random(f"{cuts.seed}:superseded:{number}"), cuts.scene, cuts.scene.devices["data"]
    cuts.change(chance)
    processes = run_until_detained(cuts, chance, defect)
    if processes is None:
        return False
    target, source = processes
    source.kill()
    source.wait()
    second = scene.start("source", scene.port)
    if not says_nothing(second, LIMIT_S if defect else NOT_YET_S):
        raise Early(f"a session ended while a write of the one before it was under way: {second.communicate()}")
    data.land()
    out, err = second.communicate()
    if second.returncode:
        raise oracle.Wrong(f"the session after the one that was killed failed: {out} {err}")
    scene.finish(target)
    scene.stop_all()
    scene.images[scene.committed()[0]] = cuts.image
    scene.holds(cuts.image)
    scene.maps_are_true()
    return True
