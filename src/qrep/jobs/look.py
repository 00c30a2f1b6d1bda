"""What a job does besides running: say how much a run would send, and compare both sides."""

from qrep.errors import Interrupted, QrepError
from qrep.jobs.shown import iso


class _Scan:
    """The native run of an estimate, as JobRunner follows it."""

    def __init__(self, run, size):
        self._run, self._size = run, size

    def stop(self):
        self._run.stop()

    def progress(self):
        counters = self._run.counters()
        return {
            "phase": "scanning", "percent": round(100 * min(1.0, counters["read"] / self._size), 1), "read": counters["read"],
            "hashed": counters["hashed"], "zero": counters["zero"], "changed": counters["changed"], "unreadable": 0,
        }  # fmt: skip


def estimate(runner, task):
    """How much a run would send now. The caller has called begin("estimate")."""
    from qrep.source import estimate as engine

    try:
        size = runner.settings.size
        task.progress = runner.progress
        found = engine.estimate(runner.request(), on_run=lambda run: runner.follow(_Scan(run, size)))
        if runner.stopping:
            raise Interrupted(f"{runner.name}: the estimate was stopped")
        last = runner.db.last_run(runner.settings.id)
        limit = (runner.limit() or {}).get("rate_bytes_per_s")
        rate = limit or (last["report"].get("rate_bytes_per_s") if last else None)
        return {
            "would_send": found.would_send,
            "size": size,
            "full": found.full,
            "changed_since": iso(last["report"].get("frozen_at_ns")) if last else None,
            "seconds": found.would_send / rate if rate else None,
            "limit_bytes_per_s": limit,
        }
    finally:
        runner.end()


class _Check:
    """A verification, as JobRunner follows it: stopping it is closing its channel."""

    def __init__(self, request, dial, independent):
        from qrep.source.verify import Verification

        self._dial, self._channel, self._stopped = dial, None, False
        self.verification = Verification(request, self._connect, independent=independent)
        self.progress = self.verification.progress

    def _connect(self):
        self._channel = self._dial()
        if self._stopped:
            self._channel.close()
        return self._channel

    def stop(self):
        self._stopped = True
        if self._channel is not None:
            self._channel.close()


def verify(runner, task, independent):
    """Compare both sides at the last sync point. The caller has called begin("verify")."""
    try:
        check = _Check(runner.request(), runner.dial, independent)
        runner.follow(check)
        task.progress = runner.progress
        report = check.verification.run()
    except QrepError as error:
        if runner.stopping:
            raise Interrupted(f"{runner.name}: the verify was stopped") from error
        runner.events.add("verify-failed", error.message, job=runner.name, reason=error.code)
        raise
    else:
        return _told(runner, report)
    finally:
        runner.end()


def _told(runner, report):
    extents = _extents(report)
    last = runner.db.last_run(runner.settings.id)
    if not report.ok and not extents:
        # The leaves agree and the roots do not: one of the two hashes is wrong, and nothing is proved.
        extents = [{"offset": 0, "size": report.size}]
    if extents:
        size = sum(extent["size"] for extent in extents)
        text = f"{size} bytes differ in {len(extents)} places, from {extents[0]['offset']} on"
        runner.events.add("verify-differs", text, job=runner.name, extents=extents[:100], places=len(extents))
    else:
        runner.events.add("verify-equal", f"generation {report.counter}", job=runner.name, root=report.root)
    return {
        "equal": not extents,
        "differences": extents,
        "generation": report.generation,
        "counter": report.counter,
        "root": report.root,
        "target_root": report.target_root,
        "independent": report.independent,
        "last_sync_point": iso(last["report"].get("frozen_at_ns")) if last else None,
    }


def _extents(report):
    """What differs as extents of bytes, neighbours joined; never beyond the end of the volume."""
    whole, extents = report.granule_size // report.leaf_size, []
    for granule, leaves in report.differences:
        for leaf in range(whole) if leaves is None else leaves:
            offset = granule * report.granule_size + leaf * report.leaf_size
            size = min(report.leaf_size, report.size - offset)
            if size <= 0:
                continue
            if extents and extents[-1]["offset"] + extents[-1]["size"] == offset:
                extents[-1]["size"] += size
            else:
                extents.append({"offset": offset, "size": size})
    return extents
