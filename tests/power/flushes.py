"""Flushes that fail: the process ends, nothing is made of it, and no second flush makes it good (R2, INV-S)."""

import json
import random

FLUSH_FAILED = 71  # exit code, docs/FAILURES.md


class Retried(AssertionError):
    """Something was done after a failed flush."""


def failed_flush(cuts, flush, defect=""):
    """A run in which a flush, (name of the device, nth), of the target fails, and then the power goes. False: there were not so many. Raises AssertionError.

    Of the target's own device what that flush was to make durable is lost, and the next flush would succeed. Filesystems do not survive this, nor a torn
    write at such a time: ext4 notes its error in two sectors with one checksum, past its journal. So all that was written to theirs is kept.
    """
    name, nth = flush
    chance, scene, device = random.Random(f"{cuts.seed}:{name}:{nth}"), cuts.scene, cuts.scene.devices[name]
    before = cuts.change(chance)
    scene.watch()
    scene.defect = defect
    target = scene.start("target")
    target.may_end = {0, FLUSH_FAILED}
    scene.defect = ""
    ready = scene.ready(target)
    device.fail("flush", nth, lose=name == "data")
    source = scene.start("source", ready["port"])
    text = source.communicate()[0]
    code = scene.finish(target)
    met = any(record.error for record in device.log())
    if met:
        nothing_after(scene.devices["data"].log())
        if code != FLUSH_FAILED and name == "data":
            raise Retried(f"flush {nth} of {name} failed, and the target ended with {code}: {target.errors()}")
    scene.lose_power(("target",), chance, keep={} if name == "data" else {name: 100})
    scene.stop_all()
    acknowledged = text.strip().endswith("}") and "counter" in json.loads(text)
    cuts.recovered(before, before[0] + 1 if acknowledged else before[0])
    scene.complete(cuts.image)
    return met


def nothing_after(log):
    """INV-S for a device that qrep alone writes: a failed flush is the last that is asked of it."""
    failed = next((record for record in log if record.kind == "flush" and record.error), None)
    if failed is not None and any(record.begun > failed.done for record in log):
        raise Retried(f"the flush at {failed.begun} ns failed, and {sum(record.begun > failed.done for record in log)} requests came after it")


def of_a_run():
    """Flushes of all devices of the target: a run flushes its own once, and each of the others a dozen times at least."""
    return [("data", 1), *((name, nth) for nth in range(1, 13) for name in ("undo", "state"))]
