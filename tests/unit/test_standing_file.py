"""standing.json of a volume, damaged in every way that still is a file: refused as a whole, before anything relies on it."""

import json
import os

import pytest

from qrep import sealed
from qrep.daemon import standing
from qrep.errors import DamagedError, QrepError

WHOLE = {
    "id": "a" * 32, "role": "replica", "job_id": "b" * 32, "job": "db", "peer": "", "other": "db", "other_id": "c" * 32, "why": "", "at": 1.0, "size": 1 << 20,
    "leaf": 4096, "granule": 8192, "sync_points": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff" * 40, b"[" * 16000, b"x" * (17 << 10), sealed.dump(WHOLE | {"role": "king"}), sealed.dump(WHOLE | {"before": {"id": 1}}),
     sealed.dump(WHOLE).replace(b"4096", b"4097"), json.dumps(WHOLE).encode()],
    ids=["nothing", "half", "no text", "deep", "large", "another role", "a damaged one of before", "a digit has rotted", "without its digest"],
)
def test_a_damaged_one_is_refused(tmp_path, content):
    (tmp_path / standing.NAME).write_bytes(sealed.dump(WHOLE))
    assert standing.load(tmp_path).job == "db"
    (tmp_path / standing.NAME).write_bytes(content)
    with pytest.raises(DamagedError):
        standing.load(tmp_path)


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_bytes(sealed.dump(WHOLE))
    os.symlink(tmp_path / "elsewhere", tmp_path / standing.NAME)
    with pytest.raises((QrepError, OSError)):
        standing.load(tmp_path)
