"""What a running agent answers has exactly the fields that docs/API.md shows."""

import json
import re
from pathlib import Path

import pytest
from agents import MIB

from qrep.client import Client

pytestmark = pytest.mark.root
TEXT = (Path(__file__).resolve().parents[2] / "docs" / "API.md").read_text()
WORDS = TEXT.partition("## What the words")[2]
SHAPES = {part.split()[0].strip(".,"): json.loads(part.partition("```json\n")[2].partition("```")[0]) for part in re.split(r"\n(?=[A-Z]{3,}\b)", WORDS)[1:]}


def matches(value, name):
    assert set(value) == set(SHAPES[name]), f"{name}: {set(value) ^ set(SHAPES[name])}"
    for key, example in SHAPES[name].items():
        if isinstance(example, dict) and isinstance(value.get(key), dict) and key not in ("identity", "data"):
            assert set(value[key]) == set(example), f"{name}.{key}"


def test_answers_have_the_documented_fields_and_no_others(agents, loop_device, fill):
    source, target = loop_device(8 * MIB), loop_device(8 * MIB)
    fill(source, MIB)
    a, b = agents.replica(source, target)
    here, there = Client(str(a.socket)), Client(str(b.socket))
    matches(here.get("/node"), "NODE")
    matches(here.get("/jobs/db"), "JOB")
    matches(here.get("/paths")[0], "PATH")
    matches(here.get("/jobs/db/paths/1"), "PATH")
    matches(here.call("PATCH", "/shapes/office", {"peak": "1G", "hours": ["mon-fri 07:00-19:00"], "off_peak": "2G"}), "SHAPE")
    matches(here.call("PATCH", "/jobs/db", {"shape": "office"}), "JOB")
    matches(here.get("/shapes")[0], "SHAPE")
    assert here.get("/limit") == {"rate_bytes_per_s": None}
    task = here.post("/jobs/db/start")
    matches(task, "TASK")
    *_, last = here.task(task)
    matches(last, "TASK")
    matches(last["result"], "RUN")
    matches(here.get("/status")["jobs"][0], "JOB")
    matches(there.get("/status")["jobs"][0], "JOB")
    matches(here.get("/jobs/db")["last_run"], "RUN")
    for client in (here, there):
        matches(client.get("/volumes")[0], "VOLUME")
    matches(there.get("/volumes/db/snapshots")[0], "POINT")
    for event in here.lines("/events"):
        matches(event, "EVENT")
    assert here.get("/check") == {"problems": []}
    assert set(here.get("/peers")[0]) == {"name", "addresses", "fingerprint", "trusted", "may_switch"}
