"""Every attack of the threat model has its tests, and they are there."""

import ast
import re
from pathlib import Path

import pytest
from security.rows import NODES, ROWS

ROOT = Path(__file__).resolve().parents[2]


def named_in(path):
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_the_threat_model_has_tests_that_are_there(row):
    assert ROWS[row]
    for node in ROWS[row]:
        path, _colons, name = node.partition("::")
        assert (ROOT / path).is_file(), node
        assert named_in(ROOT / path) and (not name or name in named_in(ROOT / path)), node


def test_security_md_names_what_is_there():
    """Tests by their place below tests/, sources by their name, other files from the top."""
    text = (ROOT / "SECURITY.md").read_text()
    named = set(re.findall(r"`([A-Za-z0-9_./*-]+\.(?:py|c|md|txt|json|service|conf))`", text))
    assert len(named) > 30
    places = ("", "tests", "tests/security", "tests/system", "src/qrep", "src/qrep/daemon", "src/qrep/daemon/front", "src/qrep/_native", "src/qrep/protocol", "packaging")
    missing = [name for name in named if not any(list((ROOT / place).glob(name)) for place in places)]
    assert missing == []
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (ROOT / link).exists(), link


def test_no_node_is_counted_twice_and_every_test_of_this_directory_belongs_to_a_row_or_to_the_harness():
    assert len(set(NODES)) == len(NODES)
    here = {f"tests/security/{path.name}" for path in Path(__file__).parent.glob("test_*.py")}
    assert here - {node.partition("::")[0] for node in NODES} == {"tests/security/test_rows.py", "tests/security/test_canaries.py"}
