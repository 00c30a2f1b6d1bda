"""points.json, damaged in every way that still is a file: what cannot be believed is as if it were not there, and nothing fails on it."""

import json

import pytest

from qrep import sealed
from qrep.source.shared import NAME as SHARED
from qrep.source.shared import SharedTokens
from qrep.store import Directory
from qrep.target.points import NAME, Points

NEW = bytes(range(16))
WHOLE = {"counter": 7, "fuzzy": True, "frozen_at_ns": 1, "committed_at_ns": 2, "consistency": "crash", "name": "before"}
DAMAGED = [b"", b"{", b"null", b"5", b"[1, 2]", b"\xff\xfe", b"[" * 5000, b'{"a": ' * 5000, json.dumps({NEW.hex(): WHOLE}).encode()]
DAMAGED += [sealed.dump(content) for content in (None, 5, [1, 2], "x", {NEW.hex(): "x"})] + [sealed.dump({NEW.hex(): WHOLE}).replace(b"7", b"5")]
DAMAGED += [sealed.dump({NEW.hex(): WHOLE | {key: wrong}}) for key in WHOLE for wrong in (None, [], 1.5)] + [sealed.dump({NEW.hex(): WHOLE | {"more": 1}})]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_one_tells_nothing(tmp_path, content):
    with Directory(tmp_path) as directory:
        sealed.write(directory, NAME, {NEW.hex(): WHOLE})
        assert Points(directory).facts(NEW, 1) == WHOLE
        directory.write(NAME, content)
        points = Points(directory)
        assert points.facts(NEW, 1)["counter"] == 1 and not points.aged([NEW])[0].sure
        assert points.facts(NEW, 1)["fuzzy"] is None, "a sync point of which nothing is known is not called frozen"
        directory.write(SHARED, content)
        assert SharedTokens(directory).tokens() == []
