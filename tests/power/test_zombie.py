"""Who comes next may ask nothing of the device before the last write of the one before has landed: the judge of the write log."""

import pytest
from power.device import Record
from power.zombie import Early, one_writer

SINCE = 50
IMAGE = bytes([1]) * 4096 + bytes(4096)


def write(begun, done, content=1, offset=0):
    return Record("write", offset, 512, begun, done, 0, bytes([content]) * 512)


BEFORE = [write(10, 11), write(20, 100, offset=512)]  # the second one is under way


def by_done(*more):
    return sorted([*BEFORE, *more], key=lambda record: record.done)


@pytest.mark.parametrize(
    "early",
    [write(60, 61, 7), write(60, 110, 7), Record("flush", 0, 0, 60, 61, 0, None), Record("zero", 0, 4096, 60, 61, 0, None)],
    ids=["a write that is done", "a write that is not done", "a flush", "zeroes"],
)
def test_a_request_while_a_write_of_the_one_before_is_under_way_is_noticed(early):
    with pytest.raises(Early):
        one_writer(by_done(early), IMAGE, SINCE)


def test_a_write_of_the_one_before_after_those_of_who_came_next_is_noticed():
    with pytest.raises(Early):
        one_writer(by_done(write(110, 111, 7), write(120, 121)), IMAGE, SINCE)


def test_who_waits_until_the_last_write_has_landed_is_fine():
    zeroes_of_the_one_before = Record("zero", 4096, 4096, 60, 61, 0, None)
    one_writer(by_done(zeroes_of_the_one_before, write(101, 102, 7), Record("flush", 0, 0, 103, 104, 0, None)), IMAGE, SINCE)


def test_a_log_without_a_write_under_way_is_no_proof():
    with pytest.raises(AssertionError, match="under way"):
        one_writer([write(10, 11), write(101, 102, 7)], IMAGE, SINCE)
