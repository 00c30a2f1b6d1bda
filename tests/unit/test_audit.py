"""The audit log: what was told stays as it was told, or it is seen that it did not."""

import errno
import json
import os
import random

import pytest

from qrep import audit
from qrep.configcheck import check
from qrep.daemon.events import EventLog
from qrep.daemon.statedb import StateDb
from qrep.store import Directory


@pytest.fixture
def directory(tmp_path):
    with Directory(tmp_path / "state") as directory:
        yield directory


def events(count, first=0):
    return [{"code": "pair-created", "text": f"job {number}"} for number in range(first, first + count)]


def written(directory, count=20):
    log = audit.AuditLog(directory)
    for event in events(count):
        log.add(event)
    log.close()
    return log


def path_of(directory):
    return f"{directory.path}/{audit.NAME}"


def test_what_was_written_is_whole_and_goes_on_after_a_restart(directory):
    first = written(directory)
    assert audit.verify(directory.path) == (20, first.head, []) and first.count == 20
    second = audit.AuditLog(directory)
    assert (second.head, second.count) == (first.head, 20)
    second.add({"code": "agent-started"})
    assert audit.verify(directory.path) == (21, second.head, [])
    with open(path_of(directory)) as file:
        assert json.loads(file.readlines()[20].partition(" ")[2]) == {"n": 21, "code": "agent-started"}
    second.close()


def test_no_log_is_no_fault(directory):
    assert audit.verify(directory.path) == (0, audit.BEGIN, [])


def forged(lines, at):
    """The line itself is made anew, with a chain that fits those before it: the ones behind it do not."""
    body = lines[at].partition(b" ")[2].rstrip(b"\n").replace(b"job", b"Job")
    before = lines[at - 1].partition(b" ")[0].decode() if at else audit.BEGIN
    return [*lines[:at], f"{audit.chained(before, body)} ".encode() + body + b"\n", *lines[at + 1 :]]


CHANGES = {
    "a bit": lambda lines, at: [*lines[:at], bytes([*lines[at][:80], lines[at][80] ^ 1, *lines[at][81:]]), *lines[at + 1 :]],
    "a line taken out": lambda lines, at: lines[:at] + lines[at + 1 :],
    "a line put in": lambda lines, at: [*lines[:at], lines[at], *lines[at:]],
    "two lines exchanged": lambda lines, at: [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]],
    "a line that was made anew": forged,
    "something else": lambda lines, at: [*lines[:at], b"hello\n", *lines[at:]],
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_told_with_its_place(directory, change, seed):
    written(directory)
    with open(path_of(directory), "rb") as file:
        lines = file.readlines()
    at = random.Random(seed).randrange(0 if change != "a line taken out" else 1, 18)
    with open(path_of(directory), "wb") as file:
        file.writelines(CHANGES[change](lines, at))
    _count, _head, wrong = audit.verify(directory.path)
    assert wrong and at + 1 <= wrong[0][1] <= at + 2, (at, wrong)


def test_a_tail_that_was_cut_off_is_seen_by_who_kept_the_head(directory):
    head = written(directory).head
    with open(path_of(directory), "rb+") as file:
        lines = file.readlines()
        file.truncate(sum(map(len, lines[:-1])))
    count, found, wrong = audit.verify(directory.path)
    assert (count, wrong) == (19, []) and found != head


def test_half_a_line_of_a_power_cut_is_dropped_and_the_chain_goes_on(directory):
    head = written(directory).head
    with open(path_of(directory), "ab") as file:
        file.write(b'0123 {"n": 21')
    assert audit.verify(directory.path) == (20, head, []), "that is no line yet"
    log = audit.AuditLog(directory)
    assert (log.head, log.count) == (head, 20)
    log.add({"code": "x"})
    log.close()
    assert audit.verify(directory.path) == (21, log.head, [])


def test_a_long_log_has_one_predecessor_and_its_chain_goes_on(directory, monkeypatch):
    monkeypatch.setattr(audit, "SIZE_MAX", 2000)
    log = written(directory, 40)
    count, head, wrong = audit.verify(directory.path)
    assert wrong == [] and head == log.head and 10 < count < 40
    with open(f"{directory.path}/{audit.OLDER}", "rb+") as file:
        file.truncate(file.seek(-200, 2))
    assert audit.verify(directory.path)[2], "what is missing between the two is seen"


def test_a_disk_that_is_full_is_told_once_and_half_a_line_is_taken_back(directory, monkeypatch, caplog):
    log = audit.AuditLog(directory)
    log.add({"code": "a"})
    whole = audit.os.write
    monkeypatch.setattr(audit.os, "write", lambda descriptor, data: whole(descriptor, data[:10]))
    log.add({"code": "b"})
    log.add({"code": "c"})
    monkeypatch.undo()
    assert len(caplog.records) == 1
    log.add({"code": "d"})
    log.close()
    assert audit.verify(directory.path) == (2, log.head, [])


@pytest.mark.parametrize("body", ['{"n": 1e999}', '{"n": "7"}', '{"n":' + "[" * 20000 + "}", "{}", '{"n": 1'])
def test_a_line_without_a_number_is_told_and_hinders_nobody(directory, body):
    log = written(directory)
    with open(path_of(directory), "ab") as file:
        file.write(f"{audit.chained(log.head, body.encode())} {body}\n".encode())
    assert len(audit.verify(directory.path)[2]) == 1
    log = audit.AuditLog(directory)
    log.add({"code": "x"})
    log.close()
    assert log.count == 1 and audit.verify(directory.path)[2]


def test_where_no_new_file_can_be_begun_nothing_is_written_to_what_was_opened_since(directory, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(audit, "SIZE_MAX", 1000)
    log = audit.AuditLog(directory)

    def refused(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, open(tmp_path / "other", "wb+") as other:
        patch.setattr(directory, "open", refused)
        for event in events(20):
            log.add(event)
        taken = [os.dup(other.fileno()) for _ in range(8)]  # whatever was closed meanwhile has its number again
        for event in events(20):
            log.add(event)
        for descriptor in taken:
            os.close(descriptor)
        assert other.seek(0, 2) == 0 and len(caplog.records) == 1
    kept = log.count
    for event in events(3):
        log.add(event)
    log.close()
    assert (log.count, audit.verify(directory.path)) == (kept + 3, (kept + 3, log.head, []))


def test_every_event_that_is_told_is_in_it_and_check_says_where_it_was_changed(directory, tmp_path):
    db = StateDb(tmp_path / "state.db")
    log = audit.AuditLog(directory)
    told = EventLog(db, echo=False, audit=log)
    for number in range(5):
        told.add("volume-added", f"disk {number}\x1b[2J", volume="db")
    log.close()
    db.close()
    (tmp_path / "etc").mkdir()
    assert check(tmp_path / "etc", state_dir=directory.path) == [] and log.count == 5
    with open(path_of(directory), "rb") as file:
        content = file.read()
    assert b"\x1b" not in content
    with open(path_of(directory), "wb") as file:
        file.write(content.replace(b"disk 2", b"disk 7"))
    (problem,) = check(tmp_path / "etc", state_dir=directory.path)
    assert problem.file == path_of(directory) and problem.line == 3 and "written" in problem.message
