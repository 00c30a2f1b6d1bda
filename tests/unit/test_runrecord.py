"""The run record of a source: as it was saved, or as if there were none."""

import pytest

from qrep import sealed
from qrep.protocol.records import RunRecord
from qrep.source.runrecord import RunFile

RECORD = RunRecord(
    epoch=7, base=bytes([1]) * 16, new=bytes([2]) * 16, attempt=(1 << 64) - 1, snapshot="reflink:/a/.qrep-snapshots/b@c~d", fuzzy=False,
    frozen_at_ns=123, mixed=False,
)  # fmt: skip


@pytest.fixture
def run_file(tmp_path, undo_after):
    made = RunFile(tmp_path / "job")
    undo_after.callback(made.close)
    return made


def test_what_was_saved_is_loaded_until_it_is_cleared(run_file):
    assert run_file.load() is None
    run_file.save(RECORD)
    assert run_file.load() == RECORD
    run_file.clear()
    assert run_file.load() is None


@pytest.mark.parametrize("change", [
    {"epoch": -1}, {"epoch": "7"}, {"epoch": True}, {"attempt": 1 << 64}, {"base": "00"}, {"new": "xyz"}, {"snapshot": None}, {"fuzzy": 1},
    {"more": 1},
], ids=str)  # fmt: skip
def test_a_record_with_a_wrong_field_is_as_none(run_file, tmp_path, change):
    run_file.save(RECORD)
    path = tmp_path / "job" / "run.json"
    path.write_bytes(sealed.dump({**sealed.load(path.read_bytes(), ""), **change}))
    assert run_file.load() is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x00" * 100, *map(sealed.dump, ([], None, {}))])
def test_rubbish_is_as_none(run_file, tmp_path, content):
    run_file.save(RECORD)
    (tmp_path / "job" / "run.json").write_bytes(content)
    assert run_file.load() is None
