"""The agent against a server that somebody has taken over: what it says is held to its form, or it ends."""

import os
import re
import subprocess
import sys
import threading
import types

import msgspec
import pytest

from qrep.daemon import attachserver
from qrep.target.view import Epoch

TAKEN_OVER = """
import os, socket, sys, msgspec
line = socket.socket(fileno=int(sys.argv[1]))
socket.recv_fds(line, 65536, 8)
def say(*descriptors, **fields):
    socket.send_fds(line, [msgspec.msgpack.encode(fields)], descriptors)
say(t="ready", landlock=0, empty_root=True, unprivileged=True)
{code}
line.recv(65536)
"""
RIGHT = {"t": "figures", "connections": 1, "requests": 1, "read": 1, "written": 1, "overlay": 0, "refused": 0}


@pytest.fixture
def taken_over(monkeypatch, memory_dir, undo_after):
    """taken_over(code) -> (AttachServer, event of its end, [reason])."""
    device = memory_dir / "device"
    device.write_bytes(bytes(1 << 20))
    descriptor = os.open(device, os.O_RDONLY)
    undo_after.callback(os.close, descriptor)
    record = types.SimpleNamespace(size=1 << 20, granule_size=1 << 16)
    target = types.SimpleNamespace(
        device_fd=descriptor, device=types.SimpleNamespace(io_alignment=512), machine=types.SimpleNamespace(record=record, phase="down"), epoch=Epoch(), name="db"
    )
    start = subprocess.Popen

    def make(code):
        def popen(command, **options):
            return start([sys.executable, "-c", TAKEN_OVER.format(code=code), command[-1]], **options)

        monkeypatch.setattr(attachserver.subprocess, "Popen", popen)
        ended, reasons = threading.Event(), []
        server = attachserver.AttachServer(
            target, b"p" * 16, name="db@1", description="", listening=[], overlay_fd=-1, overlay_limit=0, user="", empty_root=str(memory_dir),
            on_end=lambda why: (reasons.append(why), ended.set()), on_full=lambda: None, on_lost=lambda why: reasons.append(f"lost: {why}"),
        )  # fmt: skip
        undo_after.callback(server.stop)
        return server, ended, reasons

    return make


@pytest.mark.parametrize(("code", "reason"), [
    ("line.send(b'noise')", "not speak"),
    ("line.send(bytes(65537 * 2))", "not speak|exit code"),
    ("say(t='setup')", "not speak"),
    ("say(0, t='look')", "a descriptor came"),
    ("say(0, 0, 0, t='full')", "a descriptor came"),
    ("say(t='lost', reason='x' * 9000)", "not speak"),
    ("say(t='figures', connections=-1, requests=0, read=0, written=0, overlay=0, refused=0)", "not speak"),
    ("say(t='look', more=1)", "not speak"),
    ("sys.exit(3)", "exit code 3"),
    ("os.kill(os.getpid(), 9)", "signal 9"),
])  # fmt: skip
def test_what_it_may_not_say_ends_it(taken_over, code, reason):
    server, ended, reasons = taken_over(code)
    assert ended.wait(20)
    assert re.search(reason, reasons[-1]), reasons
    assert server._process.returncode is not None and server.rights() is None


def test_figures_are_shown_and_questions_about_a_volume_out_of_service_are_answered_with_an_error(taken_over):
    server, ended, reasons = taken_over(f"say(**{RIGHT!r}); say(t='look'); say(t='lost', reason=msgspec.msgpack.decode(line.recv(65536))['error']); line.recv(1)")
    assert not ended.wait(0.5) or pytest.fail(f"{reasons}")
    for _ in range(400):
        if reasons:
            break
        ended.wait(0.05)
    assert "out of service" in reasons[0] and server.figures["read"] == 1
    assert set(server.figures) == set(msgspec.structs.asdict(attachserver.talk.Figures(**{k: 0 for k in RIGHT if k != "t"})))
