"""Volumes that a job writes once (mode copy), at their target: each is given back when the first generation is committed.

The grants decide. A row of `once` without a generation: the pair is there, and the volume is a replica as any other. It was made while that volume was
open and held no generation, so that whatever is there later is of this pair; a volume of which that is not so is never given back. With a generation: it
was committed and the volume is nobody's replica any more; the row goes on telling the source so, which may not have heard of the commit. A crash
between the two is made good at the next start.
"""

import contextlib

from qrep.crashpoint import crashpoint
from qrep.errors import NotFound, QrepError, Refused
from qrep.protocol import messages as say
from qrep.protocol.transport import Disconnected
from qrep.store import Directory
from qrep.target.pulse import Pulse

HELLO_S = 30.0


def over(name, counter=None):
    """The Refused of whoever wants more of a copy that was made."""
    which = f" (generation {counter})" if counter else ""
    return Refused(
        f"{name} is a copy that was made{which}, and its target was given back",
        hint=f"a copy is made once; for another one: qrep job delete {name}, then qrep job create, which compares with --initial compare",
        code="copy-finished",
    )


class Once:
    """node: the Node. Thread-safe: one volume is given back under its lock."""

    def __init__(self, node):
        self.node = node

    # ---- the pair ----

    @staticmethod
    def check(volume, where):
        """Refuse a volume with sync points: they would go when it is given back. Raises what keeps a replica from telling."""
        if volume.is_replica() and volume.replica().status()["committed_id"]:
            raise Refused(
                f"{where} has sync points, which would be lost when it is given back",
                hint=f"there: qrep volume remove {volume.name}, and add it again, if they are not needed; or use --mode async",
                code="has-sync-points",
            )

    def begin(self, job_id, peer, volume, where):
        """volume: open. Raises as check(): an earlier run of this job may have been committed since."""
        with volume.replica().lock:
            self.check(volume, where)
            self.node.grants.add_once(
                job_id, peer=peer or "", fingerprint=self._fingerprint(peer), volume_id=volume.settings.id
            )

    def forget(self, job_id, peer):
        """The job was deleted."""
        row = self.node.grants.once(job_id)
        if row is not None and (row["peer"], row["fingerprint"]) == (peer or "", self._fingerprint(peer)):
            self.node.grants.drop_once(job_id)

    # ---- given back ----

    def give_back(self, job_id, peer):
        """Let the volume of a committed copy go. Again: nothing more happens. Raises NotFound, Refused while nothing is committed."""
        row = self._row(job_id, peer)
        pair = self.node.grants.pair(job_id)
        if pair is None:
            return {"generation": row["generation"], "counter": row["counter"]}
        volume = self.node.volumes.get(pair["volume"])
        with volume.lock:
            row = self._row(job_id, peer)
            if row["generation"]:  # another thread did it meanwhile
                return {"generation": row["generation"], "counter": row["counter"]}
            target = volume.replica()
            status = target.status()
            if not status["committed_id"] or status["open"]:
                raise Refused(f"{volume.name}: nothing is committed yet", hint="run the job first", code="not-committed")
            if row["volume_id"] != volume.settings.id or status["sync_points"]:  # a copy is committed once, and nothing was there before
                raise Refused(
                    f"{volume.name} holds more than the copy of this job, and is not given back",
                    hint=f"there: qrep volume remove {volume.name}, if its sync points are not needed", code="has-sync-points",
                )  # fmt: skip
            self.node.note_root(target)
            crashpoint("copy-committed")
            self.node.grants.finish_once(job_id, status["committed_id"], status["committed_counter"])
            crashpoint("copy-given-back")
            volume.forget_target()
        self.node.events.add(
            "target-given-back", f"the copy of job {pair['job']} is made; the device is free", volume=volume.name, job=pair["job"],
            generation=status["committed_id"],
        )  # fmt: skip
        return {"generation": status["committed_id"], "counter": status["committed_counter"]}

    def look_after(self, volume):
        """A session with this volume has ended, or the agent starts: what was committed once is given back, whether its source says so or not."""
        for pair in self.node.grants.pairs(volume):
            row = self.node.grants.once(pair["job_id"])
            if row is None or row["generation"]:
                continue
            target = self.node.volumes.get(volume).target
            status = target.status() if target is not None else None
            if status is not None and status["committed_id"] and not status["open"]:
                with contextlib.suppress(Refused, NotFound):  # it was given back, or the pair deleted, this moment
                    self.give_back(pair["job_id"], pair["peer"] or None)

    def settle(self):
        """At start, before any device is claimed: what was decided and not done. A volume that is another job's replica since is left alone."""
        from qrep.target.superblock import SuperblockFile

        decided = {row["generation"]: row for row in self.node.grants.all_once() if row["generation"]}
        paired = {pair["volume"] for pair in self.node.grants.pairs()}
        for volume in self.node.volumes.all():
            if not decided or not volume.is_replica() or volume.name in paired:
                continue
            with Directory(volume.directory) as directory:
                file = SuperblockFile(directory)
                try:
                    block = file.load()
                except QrepError:
                    continue  # damaged: recovery says so
                finally:
                    file.close()
            if block is not None and decided.get(block.committed_id.hex(), {}).get("volume_id") == volume.settings.id:
                volume.forget_target()
                self.node.events.add("target-given-back", "the copy is made; the device is free", volume=volume.name, generation=block.committed_id.hex())

    # ---- what its source is told ----

    def is_over(self, job_id):
        row = self.node.grants.once(job_id)
        return row is not None and bool(row["generation"])

    def tell(self, channel, hello, peer):
        """Answer the session of a copy whose volume was given back: it is committed, and there is no more. Returns whether this was one.

        hello: the first message; None: it is still to come, of a job of this host.
        """
        with contextlib.ExitStack() as closing:
            if hello is None:
                closing.callback(channel.close)
                hello = channel.receive(HELLO_S)
            row = self.node.grants.once(hello.job_id.hex()) if isinstance(hello, say.Hello) else None
            if row is None or not row["generation"] or (row["peer"], row["fingerprint"]) != (peer or "", self._fingerprint(peer)):
                return False
            closing.callback(channel.close)
            with contextlib.suppress(Disconnected), Pulse(channel, lambda: say.Beat(busy="", received=0, written=0, undo=0)):
                self._answer(channel, hello, row)
            return True

    @staticmethod
    def _answer(channel, hello, row):
        if hello.volume_id.hex() != row["volume_id"]:
            channel.send(say.Error(code="wrong-volume", message="the copy was made to another volume than the one that was named", hint=""))
            return
        channel.send(
            say.State(
                version=say.VERSION_MAX, committed=bytes.fromhex(row["generation"]), counter=row["counter"], size=hello.size,
                leaf_size=hello.leaf_size, granule_size=hello.granule_size, role=say.REPLICA, history=[], open_new=say.NO_ID, open_attempt=0,
                resumable=False, sector_size=1, max_epoch=hello.epoch, features=[],
            )
        )  # fmt: skip
        while True:
            if isinstance(channel.receive(HELLO_S), say.Ping):
                channel.send(say.Pong())
                continue
            refusal = over("this job")
            channel.send(say.Error(code=refusal.code, message=refusal.message, hint="on its source: qrep job delete"))
            return

    def _fingerprint(self, peer):
        return self.node.peers.fingerprint(peer) if peer else ""

    def _row(self, job_id, peer):
        row = self.node.grants.once(job_id)
        if row is None or (row["peer"], row["fingerprint"]) != (peer or "", self._fingerprint(peer)):
            raise NotFound("no such pair here", code="no-such-pair")
        return row
