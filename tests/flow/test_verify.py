"""Verify: what differs is listed exactly, and an independent reading comes to the same root."""

import pytest
from flow.harness import GRANULE, LEAF, MIB, b3sum, write_at

from qrep.errors import Refused
from qrep.source.estimate import estimate
from qrep.source.verify import verify

pytestmark = pytest.mark.root


def damage(site, *places):
    """Change the target behind our back, while nobody holds it."""
    site.close()
    for place in places:
        write_at(site.target_path, place, b"rot")
    site.open()


def check(site, independent=False):
    return verify(site.make_run_request(), site.local.dial, independent)


@pytest.mark.parametrize("independent", [False, True])
def test_a_good_target_verifies(site, independent):
    with site:
        report = site.run()
        found = check(site, independent)
        assert found.ok and found.root == found.target_root == report.root == b3sum(site.target_path)
        assert found.counter == 1 and found.differences == []


@pytest.mark.parametrize("independent", [False, True])
def test_damaged_leaves_are_listed_exactly(site, independent):
    with site:
        site.run()
        # a leaf of data, the last leaf of a granule, and one in a granule that is zero
        damage(site, 2 * MIB + 3 * LEAF + 7, 5 * MIB - 1, 15 * MIB + LEAF)
        found = check(site, independent)
        last = GRANULE // LEAF - 1
        # the three bytes written at the end of granule 4 reach into granule 5
        assert found.differences == [(2, [3]), (4, [last]), (5, [0]), (15, [1])]
        assert not found.ok and found.target_root == b3sum(site.target_path) != found.root


def test_without_a_common_generation_there_is_nothing_to_compare(site):
    with site, pytest.raises(Refused, match="nothing to compare"):
        check(site)


def test_an_estimate_says_what_a_run_would_send(site):
    with site:
        full = estimate(site.make_run_request())
        assert full.full and full.would_send == 11 * MIB
        site.run()
        assert estimate(site.make_run_request()).would_send == 0
        write_at(site.source, 3 * MIB, b"x")
        write_at(site.source, 9 * MIB, b"x")
        found = estimate(site.make_run_request())
        assert not found.full and found.would_send == 2 * LEAF
        report = site.run()  # the estimate changed nothing
        assert report.changed == 2 * LEAF and report.root == b3sum(site.target_path)


