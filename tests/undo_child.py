"""Runs a target with two lanes in a process of its own, so that it can be traced or made to fail: undo_child.py DIRECTORY SEED [BACKEND]."""

import os
import sys

from target_rig import GRANULE, Target, mixed_content

GRANULES = 12


def main(directory, seed, backend="threads"):
    device = os.path.join(directory, "device.img")
    old, content = mixed_content(seed, GRANULES * GRANULE), mixed_content(seed + 1, GRANULES * GRANULE)
    with open(device, "wb") as file:
        file.write(old)
    target = Target(directory, device, None, len(old), ring_backend=backend, is_file=False)
    sessions = [target.serve(content, index=index) for index in range(2)]
    for granule in range(GRANULES):
        source = sessions[granule % 2].source
        if granule % 3:
            for first in (0, 16, 32, 48):
                source.full(granule, first, 16, last=first == 48)
        else:
            source.runs(granule, [(leaf, 1, False) for leaf in range(0, 64, 2)])
    results = [session.finish() for session in sessions]
    print(results, target.run.counters()["written"], flush=True)
    return 0 if results == [0, 0] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
