"""docs/API.md and docs/EVENTS.md say what the agent does."""

import ast
import re
from pathlib import Path

from qrep.daemon import control, control_jobs, control_volumes, events

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*(ROOT / "src" / "qrep").rglob("*.py")]


def test_every_route_is_documented_and_every_documented_route_exists():
    served = {(method, route.path) for route in control.routes(None) for method in route.methods - {"HEAD"}}
    documented = set(re.findall(r"^### (GET|POST|PATCH|DELETE) (/\S+)$", (ROOT / "docs" / "API.md").read_text(), re.MULTILINE))
    assert documented == served


def test_every_field_that_a_request_may_have_is_documented():
    text = (ROOT / "docs" / "API.md").read_text()
    for route, fields in {
        "POST /v1/volumes": {"name", "device", *control_volumes.FIELDS}, "PATCH /v1/volumes/{name}": set(control_volumes.CHANGES),
        "POST /v1/jobs": {"name", "source", "target", "overwrite", "dry_run", *control_jobs.FIELDS, *control_jobs.PATH},
        "PATCH /v1/jobs/{name}": {"dry_run", *control_jobs.CHANGES},
    }.items():  # fmt: skip
        listed = re.search(rf"^### {re.escape(route)}\n`{{(.*?)}}`", text, re.MULTILINE)[1]
        assert {field.strip(" ?") for field in listed.split(",")} == fields, route


def test_the_list_of_events_is_what_the_table_says():
    assert (ROOT / "docs" / "EVENTS.md").read_text() == events.document(), "run: python -m qrep.daemon.events > docs/EVENTS.md"


def test_every_event_is_told_somewhere_and_none_that_is_not_listed():
    """Codes are literals where they are told: `events.add("code", ...)`, `self._tell("code", ...)`, or a choice of literals before it."""
    words = set()
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        tree.body = [node for node in tree.body if not (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CODES")]  # the table itself
        words |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert set(events.CODES) <= words, set(events.CODES) - words
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args and isinstance(node.args[0], ast.Constant):
                owner = ast.unparse(node.func)
                if owner.endswith("events.add") or (owner == "self._tell" and path.name == "flow.py"):
                    assert node.args[0].value in events.CODES, f"{path.name}: {node.args[0].value}"
