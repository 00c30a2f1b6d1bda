"""One bit of a conversation is flipped, anywhere, and a lane of a target must find it; nothing is written but of whole frames before it."""

import contextlib
import random
from pathlib import Path

from target_rig import KEY, LEAF, Target, mixed_content

from qrep._native import hasher
from qrep._native.wire import HEADER_SIZE

GRANULE = 4 * LEAF
SIZE = 5 * GRANULE + LEAF + 512


class Flips:
    """directory: on tmpfs. forged: the canary: a flip in a frame's data is put right in digest, value and tag, as if the lane looked at none of them."""

    def __init__(self, directory, seed, forged=False):
        self.directory, self.seed, self.forged = Path(directory), seed, forged
        self.old = mixed_content(30, SIZE)
        self.content = bytearray(random.Random(seed).randbytes(SIZE))
        self.content[2 * GRANULE : 4 * GRANULE] = bytes(2 * GRANULE)
        self.content[GRANULE + LEAF : GRANULE + 2 * LEAF] = self.old[GRANULE + LEAF : GRANULE + 2 * LEAF]
        self.content[GRANULE + 3 * LEAF : 2 * GRANULE] = self.old[GRANULE + 3 * LEAF : 2 * GRANULE]
        self.device = self.directory / "flips.device"
        self.device.touch()

    def _conversation(self, source):
        """[(bytes of a frame, the ranges it writes)]: every kind of frame."""
        frames = []
        source.send = frames.append
        source.full(0)
        source.runs(1, [(0, 1, False), (2, 1, False)])
        source.zero(2, 2)
        source.full(4, 0, 2, last=False)
        source.full(4, 2, 2)
        source.full(5)
        source.end()
        ranges = [
            [(0, GRANULE)], [(GRANULE, LEAF), (GRANULE + 2 * LEAF, LEAF)], [(2 * GRANULE, 2 * GRANULE)], [(4 * GRANULE, 2 * LEAF)],
            [(4 * GRANULE + 2 * LEAF, 2 * LEAF)], [(5 * GRANULE, LEAF + 512)], [],
        ]  # fmt: skip
        return list(zip(frames, ranges, strict=True))

    @staticmethod
    def _answered(session):
        """Whether the target answers that all is well, by an END of its own and by its word."""
        session.ours.settimeout(20)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while len(answer) < HEADER_SIZE and (part := session.ours.recv(HEADER_SIZE - len(answer))):
                answer += part
        return session.result() == 0 or len(answer) == HEADER_SIZE

    def _wrong(self, device, pieces):
        """The first byte that is neither what it was nor, within `pieces`, what was sent whole before the flip; None: there is none. A piece is old or new as a whole."""
        expected = bytearray(self.old)
        for start, size in pieces:
            if device[start : start + size] == self.content[start : start + size]:
                expected[start : start + size] = self.content[start : start + size]
        return next((place for place in range(SIZE) if device[place] != expected[place]), None) if device != expected else None

    def trial(self, number):
        """Why the flip was not found as it must be, or None. Half of them in headers, which are a small part of the bytes."""
        rng = random.Random(f"{self.seed}-{number}-flip")
        target = Target(self.directory, self.device, bytes(self.old), granule_size=GRANULE, undo_path=str(self.directory / "flips.undo"))
        try:
            session = target.serve(self.content)
            frames = self._conversation(session.source)
            which = 0 if self.forged else rng.randrange(len(frames))
            frame = bytearray(frames[which][0])
            place = rng.randrange(HEADER_SIZE) if rng.random() < 0.5 else rng.randrange(len(frame))
            if self.forged:
                place = rng.randrange(HEADER_SIZE, len(frame))
            frame[place] ^= 1 << rng.randrange(8)
            if self.forged:
                frame[56:88] = frame[88:120] = hasher.subtree(bytes(frame[HEADER_SIZE:]), 0, LEAF)
                frame[128:160] = hasher.keyed(KEY, bytes(frame[:128]))
            session.send(b"".join(bytes(frame) if index == which else each for index, (each, _pieces) in enumerate(frames)))
            where = f"trial {number}: byte {place} of frame {which}"
            if self._answered(session):
                return f"{where}: not noticed"
            wrong = self._wrong(target.device, [piece for _bytes, pieces in frames[:which] for piece in pieces])
            if wrong is not None:
                return f"{where}: noticed, but byte {wrong} was written"
            return None
        finally:
            target.close()
            (self.directory / "flips.undo").unlink(missing_ok=True)
            (self.directory / "leaves").unlink(missing_ok=True)
