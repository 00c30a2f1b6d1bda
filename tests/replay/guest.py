"""Recording in the QEMU guest, from the host's side: python -m replay.guest FILE [--seed N --size BYTES --generations N] keeps one for good."""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

from guest_machine import ROOT, Guest

from replay import recording
from replay.record import Plan

import qrep

MIB = 1 << 20
PATH = f"{Path(qrep.__file__).parents[1]}:{ROOT / 'tests'}"  # the same in there: the modules that are built are where qrep was found
MODULES = "dm_mod", "dm_log_writes", "ext4", "crc32c_generic"  # libcrc32c asks for crc32c by name
STATE_SIZE = 96 * MIB  # undo files are made of segments of 16 MiB, sparse
LOG_SIZE = 1024 * MIB
TOLD_SIZE = 64 * MIB


def cache():
    """Where the guest's packages are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qrep-guest"


def sparse(path, size):
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def state_image(path):
    """An empty ext4 for the undo store and the records."""
    subprocess.run(["mkfs.ext4", "-q", "-F", "-J", "size=4", sparse(path, STATE_SIZE)], check=True)
    return path


def record(directory, seed, size, generations, machine=None, seconds=300):
    """The Recording of one boot. Raises guest_machine.Unavailable, AssertionError with what the guest's console said."""
    directory = Path(directory)
    data, state = sparse(directory / "data", size), state_image(directory / "state")
    logs = {name: sparse(directory / f"{name}.log", LOG_SIZE) for name in ("data", "state")}
    told = sparse(directory / "told", TOLD_SIZE)
    bases = {"data": data.read_bytes(), "state": state.read_bytes()}
    machine = machine or Guest(cache())
    plan = seed, size, generations
    arguments = "-m", "replay.record", "--seed", seed, "--size", size, "--generations", generations
    machine.check(
        machine.python(*arguments, path=PATH), modules=MODULES, cpus=1,
        drives=[data, logs["data"], state, logs["state"], told], seconds=seconds,
    )  # fmt: skip
    with open(told, "rb") as file:
        text = file.read(int.from_bytes(file.read(8), "little")).decode()
    made = recording.joined(plan, text, bases, logs)
    for name, path in (("data", data), ("state", state)):
        if made.devices[name].image(made.end, recording.ALL, None) != path.read_bytes():
            raise AssertionError(f"what was logged of {name} does not lead to what it holds")
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", type=int, default=MIB)
    parser.add_argument("--generations", type=int, default=Plan.SMALL)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qrep-test-", dir="/dev/shm") as scratch:
        made = record(scratch, arguments.seed, arguments.size, arguments.generations)
    made.save(arguments.file)
    counts = {name: (len(device.writes), len(device.flushes)) for name, device in made.devices.items()}
    print(f"{arguments.file}: {arguments.file.stat().st_size} bytes; writes and flushes {counts}, {len(made.boundaries())} boundaries")


if __name__ == "__main__":
    main()
