"""Programs of other versions, on the wire and on disk: a choice of the cases of tests/versions, and defects that they must report."""

import zlib

import pytest
from versions.skew import CANARIES, Skew

ONE_IN = 5
ALWAYS = ("wire: golden", "wire: an unknown hello", "wire: version 2 chosen", "disk: state.db", "disk: source's map root", "disk: superblock (0, 4096)")


@pytest.fixture(scope="module")
def skew(tmp_path_factory):
    with Skew(tmp_path_factory.mktemp("skew")) as made:
        yield made


def test_other_versions_work_together_or_are_refused_with_a_reason_before_anything_is_written(skew):
    found = dict(skew.play(lambda name: name.startswith(ALWAYS) or not zlib.crc32(name.encode()) % ONE_IN))
    print(f"{len(found)} of {len(skew.cases)} cases")
    assert {name: problem for name, problem in found.items() if problem} == {}
    assert len(found) > 80


@pytest.mark.parametrize("name", CANARIES)
def test_a_defect_is_reported(skew, name):
    told = skew.canary(name)
    print(told)
    assert told is not None
