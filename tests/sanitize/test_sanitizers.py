"""Sanitizers and valgrind over C programs, and a seeded defect for each kind of thing that they are there for. The whole: campaign/h16_sanitizers.py."""

import pytest
from sanitize import programs
from sanitize.programs import Unavailable


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("sanitize")


@pytest.fixture(scope="module")
def canaries(out):
    try:
        return programs.canary_programs(out)
    except Unavailable as err:
        pytest.skip(str(err))


def run(program, how, *arguments):
    try:
        found, said = programs.run(program, how, *arguments)
    except Unavailable as err:
        pytest.skip(str(err))
    assert not found, said[-8000:]
    return said


@pytest.mark.parametrize("name", programs.CANARIES)
def test_a_seeded_defect_is_reported(canaries, name):
    try:
        assert programs.caught(canaries, name)
    except Unavailable as err:
        pytest.skip(str(err))


def test_a_program_without_a_defect_is_not(canaries):
    for how, program in canaries.items():
        run(program, how, "nothing")


@pytest.mark.parametrize("name", programs.THREADS)
def test_what_lanes_share_has_no_data_race(out, name):
    run(programs.threads_program(out), "thread", name)
