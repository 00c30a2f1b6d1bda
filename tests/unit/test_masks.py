"""Runs and places of a mask are those that a loop over its bytes finds."""

import itertools
import random

import pytest

from qrep import masks


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("size", [0, 1, 2, 63, 1000])
def test_runs_and_places_are_what_a_loop_finds(kind, size):
    drawn = random.Random(size)
    for share in (0, 0.02, 0.5, 0.98, 1):
        data = kind(drawn.randrange(3) if drawn.random() < share else 7 for _ in range(size))
        mask = data.translate(masks.table(lambda byte: byte & 3 != 3))
        places = [place for place, byte in enumerate(data) if byte & 3 != 3]
        assert masks.places(mask) == places
        grouped = itertools.groupby(enumerate(places), lambda pair: pair[1] - pair[0])
        runs = [[place for _, place in group] for _, group in grouped]
        assert list(masks.runs(mask)) == [(run[0], run[-1] + 1) for run in runs]
