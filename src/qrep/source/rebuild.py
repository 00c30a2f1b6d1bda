"""The source of a job whose disk was carried to another host: asks whether the volume offered is that clone, and if it is makes the job go on there.

The map of the clone says what generation N held. A volume that holds just that is generation N there, too. One that was changed on the way is a
generation of its own, whose map is that of N but for the granules that differ: a run from there sends what differs, and nothing else.
That map is written whole into a directory of its own, named by the volume, before the volume is adopted; the job's file, which names the volume,
is what makes it count. So whatever dies, the old map or the new one is there, and the next try finds out which.
"""

import os
import queue
import secrets
import shutil
from dataclasses import dataclass
from random import SystemRandom

from qrep import digesttree
from qrep.crashpoint import crashpoint
from qrep.digestmap import LEAVES, NO_ID, DigestMap
from qrep.digesttree import page_offset
from qrep.errors import ProtocolError, Refused
from qrep.protocol import messages as say
from qrep.protocol.rebuild import Judge
from qrep.source.link import Link, expect
from qrep.store import write_all

ROOT_ZEROES = 8 << 30  # bytes of zeroes whose values may be computed for the root


def map_directory(run_directory, volume_id):
    """Of the map that a rebuild onto a volume made."""
    return os.path.join(run_directory, f"map-{volume_id.hex()}")


@dataclass
class Outcome:
    """volume_id: of the volume that was adopted, or would be. verdict: None where it had been adopted before. root: of what it holds, if that is known."""

    volume_id: bytes
    generation: bytes
    counter: int
    size: int
    verdict: object = None
    root: bytes | None = None


class Rebuild:
    """request: RunRequest of the job; its map is that of the clone. offer: say.Offer. dial(): a fresh control channel to the host of the volume.

    frozen_at_ns, fuzzy: of the generation that the map describes. where: the volume, for people.
    """

    def __init__(self, request, offer, dial, *, frozen_at_ns, fuzzy, where, check_only=False):
        self.request, self.offer, self._where, self._check_only = request, offer, where, check_only
        self._frozen_at_ns, self._fuzzy = frozen_at_ns, fuzzy
        self.geometry = request.geometry
        self._events = queue.SimpleQueue()
        self._link = Link(dial, self._events)
        self._map = self._judge = None

    def progress(self):
        """As Run.progress(), as far as it applies."""
        judge = self._judge
        if judge is None:
            return {"phase": "connecting", "percent": 0.0, "read": 0}
        done = judge.compared / self.geometry.granules
        return {"phase": judge.phase, "percent": round(100 * done, 1), "read": int(done * self.geometry.size)}

    def run(self):
        """An Outcome. Raises Refused (not-the-clone, with the percentage that matches) and whatever else keeps the volume from being it; nothing
        was written to it then."""
        request = self.request
        self._map = DigestMap(request.map_directory, self.geometry, request.volume_id)
        try:
            if self._map.tag == NO_ID or digesttree.has_unknown(self._map.states):
                raise Refused(
                    f"what the clone of {request.device.path} held is not known here any more ({self._map.reason or 'no map'})",
                    hint="qrep job create NAME --initial compare makes a new job, whose first run sends what differs", code="map-lost",
                )  # fmt: skip
            self._link.open()
            offered = self._ask(self.offer, say.Offered)
            if offered.committed != NO_ID:
                return Outcome(offered.volume_id, offered.committed, offered.counter, offered.size)
            verdict = self._compare()
            if not verdict.is_clone:
                self._refuse(verdict)
            generation, counter = (self._map.tag, self._map.counter) if verdict.exact else (secrets.token_bytes(16), self._map.counter + 1)
            outcome = Outcome(offered.volume_id, generation, counter, offered.size, verdict)
            if not self._check_only:
                self._adopt(outcome)
            return outcome
        finally:
            self._link.hang_up()
            self._map.close()

    def _compare(self):
        self._judge = judge = Judge(self.geometry, self._map, SystemRandom(), self._keep_page)
        question = judge.first()
        while judge.verdict is None:
            if question is not None:
                self._link.send(question)
            question = judge.answer(self._expect(say.Sampled, say.Digests, say.Leaves))
        return judge.verdict

    def _keep_page(self, granule, state, page):
        """Beside the page of what the clone held, which stays."""
        write_all(self._map.leaves_fd, page, page_offset(self.geometry, granule, state))

    def _refuse(self, verdict):
        percent = int(100 * verdict.share)  # rounded down: 100 % would not be refused
        sampled = " (a sample was read)" if verdict.by_sample else ""
        error = Refused(
            f"{self._where} is not the clone of {self.offer.job}: {percent} % of it matches",
            hint=f"nothing was written to it{sampled}; name the volume that the moved disk is there, or add it with qrep volume add", code="not-the-clone",
        )  # fmt: skip
        self._link.send(say.Abort(0, error.message))
        raise error

    def _adopt(self, outcome):
        self._write_map(outcome)
        crashpoint("rebuild-map-durable")
        exact = outcome.verdict.exact
        question = say.Adopt(outcome.generation, outcome.counter, self._frozen_at_ns if exact else 0, self._fuzzy if exact else False)
        if self._ask(question, say.Adopted).generation != outcome.generation:
            raise ProtocolError("another generation was adopted than the one that was named")
        crashpoint("rebuild-told")

    def _write_map(self, outcome):
        """The map of what the volume holds, for runs to it. Leaf values are shared with the clone's map: a page counts only for the value it is of."""
        directory = map_directory(self.request.run_directory, outcome.volume_id)
        if os.path.isdir(directory):
            shutil.rmtree(directory)
        DigestMap(directory, self.geometry, outcome.volume_id).close()
        os.unlink(os.path.join(directory, LEAVES))
        os.link(os.path.join(self.request.map_directory, LEAVES), os.path.join(directory, LEAVES))
        judge = self._judge
        fresh = DigestMap(directory, self.geometry, outcome.volume_id)
        try:
            outcome.root = root = digesttree.root(self.geometry, judge.states, judge.values, fresh.leaves_fd, ROOT_ZEROES)
            fresh.write_pending(outcome.generation, NO_ID, outcome.counter, judge.states, judge.values, root)
            fresh.fold(outcome.generation)
        finally:
            fresh.close()

    def _ask(self, question, answer):
        self._link.send(question)
        return self._expect(answer)

    def _expect(self, *answers):
        return expect(self._events, *answers)
