"""The tables of states.py, and the document made from them."""

from pathlib import Path

import pytest

from qrep import states

ROOT = Path(__file__).resolve().parents[2]


def test_the_document_is_what_the_tables_say():
    assert (ROOT / "docs" / "STATES.md").read_text() == states.document(), "run: python -m qrep.states > docs/STATES.md"


@pytest.mark.parametrize(("title", "table", "first"), states.TITLES, ids=lambda value: value if isinstance(value, str) else "")
def test_every_phase_exists_and_can_be_reached(title, table, first):
    targets = {target for events in table.values() for names in events.values() for target in names}
    anywhere = {"closed", "failed"} if table is states.SOURCE else set()
    assert targets <= set(table)
    assert set(table) - {first} <= targets | anywhere
