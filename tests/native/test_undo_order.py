"""The order of writes that the way back depends on (R3, R2), seen from outside: strace on a process that runs a target."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from machine import need_tool
from target_rig import ATTEMPT, BASE_ID, SEGMENT, mixed_content
from undo_child import GRANULE, GRANULES

from qrep._native import disk
from qrep._native.target_lane import EXIT_FLUSH_FAILED

TESTS = Path(__file__).resolve().parents[1]
CALL = re.compile(r"^(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\((\d+)<([^>]*)>)(.*)$")


def run_child(directory, *strace):
    """The child under strace; its exit status and stderr."""
    need_tool("strace")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    command = ["strace", "-f", "-y", "-o", str(directory / "trace"), *strace, sys.executable, str(TESTS / "undo_child.py"),
               str(directory), "7"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    if "ptrace" in result.stderr and "not permitted" in result.stderr:
        pytest.skip("strace may not trace here")
    return result


def events(directory):
    """[(begin line, end line, call, file name, offset, size)] of the trace, in order of beginning."""
    open_calls, found = {}, []
    for number, line in enumerate((directory / "trace").read_text().splitlines()):
        match = CALL.match(line)
        if not match:
            continue
        thread, resumed, call, _, path, rest = match.groups()
        if resumed:
            event = open_calls.pop(thread, None)
            rest = match.group(6)
        else:
            event = {"begin": number, "call": call, "file": os.path.basename(path), "text": ""}
            found.append(event)
        if event is None:
            continue
        event["text"] += rest
        if "<unfinished ...>" in rest:
            event["text"] = event["text"].replace("<unfinished ...>", "")
            open_calls[thread] = event
        else:
            event["end"] = number
    for event in found:
        if event["call"] == "pwrite64":
            size, offset = re.search(r", (\d+), (\d+) *(?:\)|$)", event["text"]).groups()
            event["size"], event["offset"] = int(size), int(offset)
    return found


def uncovered_writes(directory, log):
    """Device writes of the log that began before a successful flush covered the before-images of all they overwrite."""
    batches = []
    data = (directory / "undo").read_bytes()
    for start in range(SEGMENT, len(data), SEGMENT):
        batches += disk.scan_undo_segment(data[start:start + SEGMENT], start, GRANULES * GRANULE, BASE_ID, ATTEMPT).batches
    logged = {event["offset"]: event["end"] for event in log if event["call"] == "pwrite64" and event["file"] == "undo" and "end" in event}
    flushes = [(event["begin"], event["end"]) for event in log if event["call"] == "fdatasync" and event["text"].endswith("= 0")]
    found = []
    for write in (event for event in log if event["call"] == "pwrite64" and event["file"] == "device.img"):
        start, end = write["offset"], write["offset"] + write["size"]
        covered = set()
        for batch in batches:
            if batch.position in logged and any(logged[batch.position] < begin and done < write["begin"] for begin, done in flushes):
                for extent in batch.extents:
                    covered.update(range(max(start, extent.offset), min(end, extent.offset + extent.size), 512))
        if covered != set(range(start, end, 512)):
            found.append((start, write["size"]))
    return found


def test_every_device_write_follows_a_flush_that_covers_its_before_image(memory_dir):
    result = run_child(memory_dir, "-s", "0", "-e", "trace=pwrite64,fdatasync")
    assert result.returncode == 0, result.stderr
    log = events(memory_dir)
    assert len([event for event in log if event["file"] == "device.img"]) >= GRANULES
    assert uncovered_writes(memory_dir, log) == []


def test_flushes_of_the_undo_store_never_overlap(memory_dir):
    """One at a time over all lanes: a success beside a failure could not be believed."""
    assert run_child(memory_dir, "-s", "0", "-e", "trace=fdatasync").returncode == 0
    flushes = [event for event in events(memory_dir) if event["call"] == "fdatasync"]
    assert len(flushes) > 2
    for before, after in zip(flushes, flushes[1:], strict=False):
        assert before["end"] < after["begin"]


@pytest.mark.parametrize("passage", [1, 2, 3])
def test_a_failed_flush_of_the_undo_store_ends_the_process_before_it_overwrites(memory_dir, passage):
    result = run_child(memory_dir, "-s", "0", "-e", "trace=pwrite64,fdatasync", "-e", f"inject=fdatasync:error=EIO:when={passage}")
    assert result.returncode == EXIT_FLUSH_FAILED == 71
    assert "flushing the undo store failed" in result.stderr and result.stderr.count("\n") == 1
    log = events(memory_dir)
    flushes = [event for event in log if event["call"] == "fdatasync"]
    # strace counts passages per thread of the ring. The failed one is the last of all: never asked again, by no lane (R2).
    assert ["INJECTED" in flush["text"] for flush in flushes] == [False] * (len(flushes) - 1) + [True]
    assert len(flushes) >= passage
    assert uncovered_writes(memory_dir, log) == []
    if passage == 1:
        assert not [event for event in log if event["file"] == "device.img"]
        assert (memory_dir / "device.img").read_bytes() == mixed_content(7, GRANULES * GRANULE)
