"""What the processes of a trial told, and how they ended: what is judged wrong, and what is not."""

import types

import oracle
import pytest
from power.told import Told


def child(role="target", code=0, *, crash="", killed=False, said="", errors="", may_end=(0, 71)):
    return types.SimpleNamespace(role=role, returncode=code, crash=crash, killed=killed, said=said.encode(), errors=lambda: errors, may_end=may_end)


def source(said):
    return child("source", 1, said=said, may_end=(0, 1))


@pytest.mark.parametrize(
    "process",
    [
        child(), child(code=71, errors="qrep: /dev/loop2: flush failed"), child(code=-9, crash="target-claimed"), child(code=-9, killed=True),
        source('{"code": "unreachable"}\n'),
    ],
    ids=["to its end", "a flush that failed", "where it was to die", "killed", "a run whose target is gone"],
)  # fmt: skip
def test_who_ends_as_it_was_made_to_is_fine(process):
    told = Told()
    told.note(process)
    told.check()


@pytest.mark.parametrize(
    "process",
    [
        child(code=1), child(code=-9), child(code=-11, killed=True), child(code=-9, killed=True, errors="Traceback (most recent call last)"),
        child(errors="a.py:1: ResourceWarning: unclosed file"), source(""), source("[]"), source('{"code": "internal"}\n'), source('{"code": "protocol"}\n'),
        child("points", 71, may_end=(0,)),
    ],
    ids=[
        "another code", "killed by nobody", "another signal", "a traceback", "a file that is not closed", "a run without a reason", "no reason", "a fault of its own",
        "a peer it did not understand", "another code of its role",
    ],
)  # fmt: skip
def test_who_does_not_is_noticed(process):
    told = Told()
    told.note(child())
    told.note(process)
    with pytest.raises(oracle.Forbidden):
        told.check()
    told.check()
