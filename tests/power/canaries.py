"""Defects of devices and of qrep that the judges of the power cuts have to notice by what comes of them."""

import functools
import random

from power import flushes, zombie
from power.writelog import order

KEEP_ALL = {"data": 100, "undo": 100, "state": 100}


def after_a_commit(cuts, number, *, lost, lying="", defect=""):
    """A run that is committed, and then the power goes: what of device `lost` was not flushed is lost."""
    chance, scene = random.Random(f"{cuts.seed}:canary:{number}"), cuts.scene
    before = cuts.change(chance)
    if lying:
        scene.devices[lying].lie()
    scene.defect = defect
    scene.complete(cuts.image)
    scene.defect = ""
    scene.lose_power(("target",), chance, KEEP_ALL | {lost: 0})
    cuts.recovered(before, before[0] + 1)


def before_a_commit(cuts, number, *, lost, lying=""):
    """All is written, nothing committed, when the target dies, and then the power goes."""
    chance, scene = random.Random(f"{cuts.seed}:canary:{number}"), cuts.scene
    before = cuts.change(chance)
    if lying:
        scene.devices[lying].lie()
    scene.run(crash_target="target-flush-done:1")
    scene.lose_power(("target",), chance, KEEP_ALL | {lost: 0})
    cuts.recovered(before, before[0])


def killed_when_it_has_recovered(cuts, number, *, defect=""):
    """The target dies before a commit, and again once it has put everything back and has cleared `open`; what was put back is lost if it is in a cache."""
    chance, scene = random.Random(f"{cuts.seed}:canary:{number}"), cuts.scene
    before = cuts.change(chance)
    scene.run(crash_target="target-flush-done:1")
    scene.defect = defect
    # The defective one flushes only when the undo file is gone, too.
    target = scene.start("target", crash="target-flush-before:1" if defect else "undo-prune-before:1")
    scene.defect = ""
    scene.ready(target)
    target.wait()
    scene.lose_power(("target",), chance, KEEP_ALL | {"data": 0})
    cuts.recovered(before, before[0])


def killed_when_the_source_is_told(cuts, number, *, defect=""):
    """The target is killed between its answer to the commit and its next flush."""
    chance, scene = random.Random(f"{cuts.seed}:canary:{number}"), cuts.scene
    before = cuts.change(chance)
    scene.defect = defect
    codes = scene.run(crash_target="store-write-unflushed:2")  # the first is the map of what is about to be committed
    scene.defect = ""
    if codes != [0, -9]:
        raise RuntimeError(f"the target was to die right after the commit; source and target ended with {codes}")
    scene.lose_power(("target",), chance, KEEP_ALL | {"state": 0})
    cuts.recovered(before, before[0] + 1)


def watched(cuts, number, *, arrange=None, defect=""):
    """A run to its end. arrange: of the write log."""
    scene = cuts.scene
    cuts.change(random.Random(f"{cuts.seed}:canary:{number}"))
    scene.watch()
    scene.defect = defect
    scene.complete(cuts.image)
    scene.defect = ""
    scene.judge(**({"arrange": arrange} if arrange else {}))


def undo_flushed_last(events):
    """A write log in which every flush of the undo store comes after all that was written to the device."""
    return sorted(events, key=lambda event: (event[1] == "undo" and event[3].kind == "flush", order(event)))


def failed_flush(cuts, number, *, defect=""):
    flushes.failed_flush(cuts, ("data", 1), defect)


def zombie_write(cuts, number, *, defect=""):
    while not zombie.zombie(cuts, number, defect):
        number += 1


def superseded_session(cuts, number, *, defect=""):
    while not zombie.superseded(cuts, number, defect):
        number += 1


# name: what is done, how, and what is wrong then; without that it has to pass.
CANARIES = {
    "the device of the target lies about flushes": (after_a_commit, {"lost": "data"}, {"lying": "data"}),
    "the device of the superblock lies about flushes": (after_a_commit, {"lost": "state"}, {"lying": "state"}),
    "the device of the undo store lies about flushes": (before_a_commit, {"lost": "undo"}, {"lying": "undo"}),
    "the undo store is flushed after the writes it covers": (watched, {}, {"arrange": undo_flushed_last}),
    "the device is not flushed before a commit": (after_a_commit, {"lost": "data"}, {"defect": "no_device_flush"}),
    "the superblock is not flushed": (killed_when_the_source_is_told, {}, {"defect": "superblock_not_flushed"}),
    "open is cleared before the restored device is flushed": (
        killed_when_it_has_recovered, {}, {"defect": "open_is_cleared_before_the_restored_device_is_flushed"},
    ),
    "a failed flush is passed over": (failed_flush, {}, {"defect": "failed_flush_is_passed_over"}),
    "a failed flush is tried again": (failed_flush, {}, {"defect": "failed_flush_is_tried_again"}),
    "recovery does not take the claim": (zombie_write, {}, {"defect": "no_claim"}),
    "a session does not wait for the writes of the one before it": (superseded_session, {}, {"defect": "lanes_not_drained"}),
    "a thread of the target dies of an exception": (watched, {}, {"defect": "a_thread_dies_of_an_exception"}),
    "the target leaves a file to the garbage collector": (watched, {}, {"defect": "a_file_is_left_open"}),
    "the target never closes a descriptor": (watched, {}, {"defect": "a_descriptor_is_left_open"}),
}  # fmt: skip


def complaint(name, cuts, *, seeded=True):
    """What a judge says of the canary, "" if it is not noticed; not seeded: of the same without what is wrong. `cuts` is to be restored then."""
    act, how, wrong = CANARIES[name]
    try:
        cuts.judged(functools.partial(act, **how, **(wrong if seeded else {})), cuts, list(CANARIES).index(name))
    except AssertionError as err:
        return f"{type(err).__name__}: {err}"
    return ""


def plainly(name):
    """What the canary is without its defect, (act, how): several have it in common."""
    act, how, _wrong = CANARIES[name]
    return act, tuple(how.items())
