"""A state that failed, once more: python -m crash.again FILE, in tests/, with ../src in PYTHONPATH."""

import pickle
import sys
import tempfile

from crash.states import Contents
from crash.told import Told
from crash.trial import Ground, Trials


def main():
    with open(sys.argv[1], "rb") as file:
        scene, files, step, after = pickle.load(file)
    contents = Contents()
    with tempfile.TemporaryDirectory(prefix="qrep-test-", dir="/dev/shm") as directory, Told() as told:
        Trials(Ground(directory, contents), scene, told).run({name: contents.number(content) for name, content in files.items()}, step, after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
