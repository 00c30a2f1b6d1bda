"""Where the batches of an undo file are, in the order in which they were logged, in memory that does not grow with their number.

A source decides how small its frames are, so there may be a batch for each page of the file. What is kept of a segment (16 MiB) is when its first and its
last batch were logged and where it ends, 28 bytes, 70 while they are iterated, and of the first REMEMBERED batches their places; the places of others are
looked for again when their segment's turn comes. A segment belongs to one lane, which fills one at a time: as many are in turn at once as there were lanes.
"""

import errno
import heapq
import os
from array import array

from qrep._native import disk, undo

SEGMENT = disk.UNDO_SEGMENT_SIZE
WINDOW = 16 * SEGMENT  # looked through at once: 64 Ki batches at most
REMEMBERED = 1 << 16  # batches: some 12 MiB


class Places:
    """The batches of an undo file that grows no more: iterated in the order of restoring, latest first; reversed() is the order of logging.

    descriptor: of the file, stays the caller's, and open for as long as this is used. header: disk.UndoHeader, whose batches count.
    size: bytes of all batches. damaged: first place whose batch was flushed and is lost, or None. Raises OSError; iterating raises undo.RestoreError
    where what was there is not there any more.
    """

    def __init__(self, descriptor, header):
        self._descriptor, self._header = descriptor, header
        self._file_size = os.fstat(descriptor).st_size
        segments = -(-self._file_size // SEGMENT)
        self._first, self._last = (array("Q", bytes(8 * segments)) for _ in range(2))  # sequence; valid where there are batches
        self._counts, self._ends = array("I", bytes(4 * segments)), array("Q", bytes(8 * segments))
        self._remembered, self._count = {}, 0
        self.size, self.damaged = 0, None
        for start in range(SEGMENT, self._file_size, WINDOW):
            found = undo.scan(descriptor, min(start + WINDOW, self._file_size), header, start=start)
            if self.damaged is None:
                self.damaged = found.damaged
            self._note(found.batches)

    def _note(self, batches):
        """batches: in file order, of whole segments."""
        room = self._count + len(batches) <= REMEMBERED
        for place in batches:
            number = place.position // SEGMENT
            if not self._counts[number]:
                self._first[number] = self._last[number] = place.sequence
            self._first[number] = min(self._first[number], place.sequence)
            self._last[number] = max(self._last[number], place.sequence)
            self._ends[number] = max(self._ends[number], place.position + place.size)
            self._counts[number] += 1
            self.size += place.size
            if room:
                self._remembered.setdefault(number, []).append(place)
        self._count += len(batches)

    def __len__(self):
        return self._count

    def __iter__(self):
        return self._merged(newest=True)

    def __reversed__(self):
        return self._merged(newest=False)

    def end(self, number):
        """Where the last batch of a segment ends; 0: it has none."""
        return self._ends[number]

    def _merged(self, newest):
        """Segments are taken up when the first of their batches is due."""
        due, sign = (self._last, -1) if newest else (self._first, 1)
        waiting = sorted((number for number, count in enumerate(self._counts) if count), key=due.__getitem__, reverse=not newest)
        taken = []  # heap of (rank, segment, place, those after it)
        while waiting or taken:
            while waiting and (not taken or sign * due[waiting[-1]] < taken[0][0]):
                self._push(taken, sign, waiting[-1], self._of_segment(waiting.pop(), newest))
            if taken:
                _rank, number, place, others = heapq.heappop(taken)
                yield place
                self._push(taken, sign, number, others)

    @staticmethod
    def _push(taken, sign, number, places):
        place = next(places, None)
        if place is not None:
            heapq.heappush(taken, (sign * place.sequence, number, place, places))

    def _of_segment(self, number, newest):
        """An iterator over its batches. What is looked for again has to be what was found."""
        places = self._remembered.get(number)
        if places is None:
            start = number * SEGMENT
            try:
                places = undo.scan(self._descriptor, min(start + SEGMENT, self._file_size), self._header, start=start).batches
            except OSError as err:
                raise undo.RestoreError(err.errno, start) from err
            if len(places) != self._counts[number]:
                raise undo.RestoreError(errno.EBADMSG, start)
        order = undo.restore_order(places)
        return iter(order) if newest else reversed(order)
