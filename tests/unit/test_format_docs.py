"""The offset tables of the documents have no gaps and are as long as the structures."""

import re
from pathlib import Path

import pytest

from qrep._native import disk, wire

DOCS = Path(__file__).parents[2] / "docs"
TABLES = {  # document, the first field's note -> bytes of the structure up to its variable part
    ("DISK_FORMAT.md", "QPERSBLK"): disk.SUPERBLOCK_SIZE,
    ("DISK_FORMAT.md", "QREPUNDO"): disk.UNDO_HEADER_SIZE,
    ("DISK_FORMAT.md", "QREPBTCH"): disk.UNDO_BATCH_SIZE,
    ("DISK_FORMAT.md", "QREPPMAP"): disk.MAP_HEADER_SIZE,
    ("PROTOCOL.md", "QREP"): wire.HEADER_SIZE,
}


@pytest.mark.parametrize(("document", "magic"), TABLES, ids=[magic for _, magic in TABLES])
def test_a_table_has_no_gaps_and_the_size_of_its_structure(document, magic):
    lines = (DOCS / document).read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if f"| `{magic}` |" in line)
    end = 0
    for line in lines[start:]:
        row = re.match(r"\| (\d+) \| (\d+)(?: x (\d+))? \|", line)
        if not row:
            break
        assert int(row[1]) == end, line
        end += int(row[2]) * int(row[3] or 1)
    assert end == TABLES[document, magic]
