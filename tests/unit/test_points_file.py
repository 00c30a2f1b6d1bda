"""points.json, damaged in every way that still is a file: what cannot be believed is as if it were not there, and nothing fails on it."""

import json

import pytest

from qrep.source.shared import NAME as SHARED
from qrep.source.shared import SharedTokens
from qrep.store import Directory
from qrep.target.points import NAME, Points

NEW = bytes(range(16))
WHOLE = {"counter": 7, "fuzzy": True, "frozen_at_ns": 1, "committed_at_ns": 2, "consistency": "crash", "name": "before"}
DAMAGED = [b"", b"{", b"null", b"5", b"[1, 2]", b"\xff\xfe", b"[" * 5000, b'{"a": ' * 5000, json.dumps({NEW.hex(): "x"}).encode()]
DAMAGED += [json.dumps({NEW.hex(): WHOLE | {key: wrong}}).encode() for key in WHOLE for wrong in (None, [], 1.5)] + [json.dumps({NEW.hex(): WHOLE | {"more": 1}}).encode()]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_one_tells_nothing(tmp_path, content):
    with Directory(tmp_path) as directory:
        directory.write(NAME, json.dumps({NEW.hex(): WHOLE}).encode())
        assert Points(directory).facts(NEW, 1) == WHOLE
        directory.write(NAME, content)
        assert Points(directory).facts(NEW, 1)["counter"] == 1 and Points(directory).aged([NEW])[0].time_ns == 0
        directory.write(SHARED, content)
        assert SharedTokens(directory).tokens() == []
