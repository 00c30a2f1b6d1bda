"""Verify of a replica that holds what it should: the target is read and hashed again, and its map's root compared with the source's; beside programs
that do as much. b3sum says what the target holds; that it is what it should be says only somebody who knows the root."""

import pytest
from flow.harness import Site
from measure import FULL, GIB, MIB, Against, fio, rate, tool

from peers import Program
from peers.ceilings import B3SUM, b3sum
from qrep.source.verify import verify

SIZE = GIB if FULL else 32 * MIB
COMPARED = 256 * MIB if FULL else 32 * MIB  # by cmp, which takes its time


def test_a_verify(compare, memory_device, tmp_path):
    for program in (B3SUM, Program("cmp", "diffutils")):
        if why := program.missing():
            pytest.skip(why)
    source, target = memory_device(SIZE), memory_device(SIZE, "zero")
    with Site(tmp_path, source, target, granule_size=8 * MIB) as site:
        root = site.run().root

        def ours():
            found = verify(site.make_run_request(), site.local.dial)
            assert found.ok and found.target_root == root and found.read_target == SIZE
            return SIZE

        also = {
            "cmp of both devices": lambda: tool(["cmp", f"--bytes={COMPARED}", source, target]).sample(COMPARED),
            "fio read": Against(lambda: fio(target, "read", 8 * MIB, 2, SIZE), bound=True),
        }
        compare("", "verify / b3sum of the target", lambda: rate(ours), lambda: b3sum(target, SIZE), family="verify", peer="b3sum of the target", also=also)
