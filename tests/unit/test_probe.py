"""The probe reports what this machine really has."""

import json
import platform

from qrep._native import hasher
from qrep._native.ring import Ring
from qrep.probe import OPCODES, SETUP_FLAGS, probe


def test_the_probe_agrees_with_the_machine(monkeypatch):
    monkeypatch.delenv("QREP_RING", raising=False)
    facts = probe()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["kernel"] == platform.release()
    assert facts["hash_kernel"] == hasher.isa()
    with Ring() as ring:
        assert facts["ring"]["backend"] == ring.backend
    uring = facts["io_uring"]
    assert uring["available"] == (facts["ring"]["backend"] == "uring")
    if uring["available"]:
        assert set(uring["opcodes"]) == set(OPCODES) and set(uring["setup_flags"]) == set(SETUP_FLAGS)
        assert uring["opcodes"]["READ"] and uring["features"]["NODROP"] and uring["registered_files"]
        if uring["opcodes"]["SENDMSG_ZC"]:
            assert facts["zero_copy"]["loopback"] == "copied"  # the kernel always copies to itself


def test_the_probe_says_that_the_environment_decided(monkeypatch):
    monkeypatch.setenv("QREP_RING", "threads")
    assert probe()["ring"] == {"backend": "threads", "why": "QREP_RING=threads asks for it"}
