"""What a job does besides running: say how much a run would send, and compare both sides."""

from qrep.errors import Interrupted, QrepError
from qrep.jobs.shown import iso

ENOUGH = 1 << 20  # bytes: the speed of a run that sent less says nothing of one that sends more


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
        rate = limit or (last["report"].get("rate_bytes_per_s") if last and last["report"].get("sent", 0) >= ENOUGH else None)
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
    """A verification, as JobRunner follows it: stopping it is closing its channel, too."""

    def __init__(self, request, dial, **options):
        from qrep.source.verify import Verification

        self._dial, self._channel, self._stopped = dial, None, False
        self.verification = Verification(request, self._connect, **options)
        self.progress = self.verification.progress

    def _connect(self):
        self._channel = self._dial()
        if self._stopped:
            self._channel.close()
        return self._channel

    def stop(self):
        self._stopped = True
        self.verification.stop()
        if self._channel is not None:
            self._channel.close()


def verify(runner, task, cause="", **options):
    """Compare both sides at the last sync point. The caller has called begin("verify"). cause: why, if nobody asked for it. options: of
    source.verify.Verification."""
    verifies, check = runner.verifies, None
    try:
        verifies.begin(bool(cause))
        if cause:
            runner.events.add("verify-started", cause, job=runner.name)
        check = _Check(runner.request(), runner.dial, **options)
        runner.follow(check)
        task.progress = runner.progress
        report = check.verification.run()
    except QrepError as error:
        if runner.stopping:
            if verifies.interrupted(runner.leaving, check.verification.reached if check else 0) and not runner.leaving:
                runner.events.add("verify-gave-way", "a run is due", job=runner.name)
            raise Interrupted(f"{runner.name}: the verify was stopped; the next one goes on from there") from error
        verifies.failed()
        runner.events.add("verify-failed", error.message, job=runner.name, reason=error.code)
        raise
    else:
        result = _told(runner, report)
        verifies.finished(result)
        return result
    finally:
        runner.end()


def _told(runner, report):
    found = report.as_dict()
    last = runner.db.last_run(runner.settings.id)
    extents = found["differences"]
    if not report.ok and not any(found[kind] for kind in ("differences", "map_differences", "source_damage")):
        # The leaves agree and the roots do not: one of the two hashes is wrong, and nothing is proved.
        extents = found["differences"] = [{"offset": 0, "size": report.geometry.size}]
    repair = found["repair"]
    if repair and repair["healed_leaves"] and not repair["dry_run"]:
        text = f"{_said(repair['healed'])} of the target healed with what the source still holds"
        runner.events.add("verify-healed", text, job=runner.name, extents=repair["healed"][:100], places=len(repair["healed"]))
    if report.ok:
        runner.events.add("verify-equal", f"generation {report.counter}", job=runner.name, root=report.root)
    else:
        kinds = {"differences": "of the target differ", "source_damage": "of the source's frozen image differ", "map_differences": "differ in the maps"}
        text = "; ".join(f"{_said(found[kind])} {words}" for kind, words in kinds.items() if found[kind])
        runner.events.add("verify-differs", text, job=runner.name, extents=extents[:100], places=len(extents))
    found["equal"] = report.ok
    found["last_sync_point"] = iso(last["report"].get("frozen_at_ns")) if last else None
    return found


def _said(extents):
    size = sum(extent["size"] for extent in extents)
    return f"{size} bytes in {len(extents)} place{'s' if len(extents) > 1 else ''}, from {extents[0]['offset']} on,"
