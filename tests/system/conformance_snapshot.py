"""What every snapshot backend must pass. A test class inherits it and gives the fixtures `backend` and `volume`.

backend: a SnapshotBackend. volume: the path of a device or image of VOLUME_SIZE bytes that it can freeze.
"""

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from machine import MIB

import qrep
from qrep import device
from qrep.errors import UsageError
from qrep.volumes import registry

VOLUME_SIZE = 16 * MIB


def write(path, byte, offset=0, size=VOLUME_SIZE):
    """Overwrite a range as any program would: through the page cache, and without syncing."""
    with open(path, "r+b", buffering=0) as file:
        file.seek(offset)
        file.write(bytes([byte]) * size)


def read(path, size=VOLUME_SIZE):
    """What a run would read: O_DIRECT descriptors of qrep's own."""
    fd = device.open_source(device.inspect(path))
    try:
        with open(fd, "rb", buffering=0, closefd=False) as file:
            buffer = mmap.mmap(-1, size)  # page-aligned, as O_DIRECT asks
            assert file.readinto(buffer) == size
            return bytes(buffer)
    finally:
        os.close(fd)


def elsewhere(code, *arguments, crash=""):
    """Run Python code in a process of its own, as after a restart; returns (exit status, stdout)."""
    environment = os.environ | {"PYTHONPATH": str(Path(qrep.__file__).parents[1]), "QREP_CRASH": crash}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode in (0, -9), result.stderr
    return result.returncode, result.stdout.strip()


FREEZE = """
import sys; from qrep import device; from qrep.volumes import registry
frozen = registry.BACKENDS[sys.argv[1]].freeze(device.inspect(sys.argv[2]), sys.argv[3]); print(frozen.token)
"""
FIND = "import sys; from qrep.volumes import registry; print(registry.find(sys.argv[1]))"


class SnapshotConformance:
    crash_points = "snapshot-frozen", "snapshot-cloned", "snapshot-named"  # that its freeze passes

    def test_it_says_that_it_can(self, backend, volume):
        capability = backend.probe(device.inspect(volume))
        assert capability.ok and capability.reason

    def test_what_is_frozen_does_not_change_while_the_source_is_written_or_is_called_fuzzy(self, backend, volume):
        with open(volume, "rb"):  # while a device is open its last writer's close writes nothing down
            write(volume, 1)
            before_ns = time.time_ns()
            frozen = backend.freeze(device.inspect(volume), "run-1")
        assert before_ns <= frozen.time_ns <= time.time_ns() and frozen.size == VOLUME_SIZE
        write(volume, 2)
        expected = bytes([2 if frozen.fuzzy else 1]) * VOLUME_SIZE
        assert read(frozen.path) == expected
        assert read(volume) == b"\2" * VOLUME_SIZE
        backend.release(frozen.token)
        assert read(volume) == b"\2" * VOLUME_SIZE

    def test_it_says_how_consistent_its_moment_is(self, backend, volume):
        info = device.inspect(volume)
        frozen = backend.freeze(info, "run-1")
        assert frozen.consistency == ("fuzzy" if frozen.fuzzy else "crash")  # nothing is mounted on it, and nobody prepared it
        prepared = backend.freeze(info, "run-1", quieted="application")
        assert prepared.consistency == ("fuzzy" if prepared.fuzzy else "application")
        backend.check(prepared.token)
        for each in (frozen, prepared):
            assert each.fuzzy or backend.find(each.token) == each
            backend.release(each.token)

    def test_two_snapshots_show_two_moments_also_under_one_name(self, backend, volume):
        info = device.inspect(volume)
        write(volume, 1)
        first = backend.freeze(info, "same")
        write(volume, 2)
        second = backend.freeze(info, "same")
        write(volume, 3)
        assert first.time_ns < second.time_ns
        if not first.fuzzy:
            assert first.token != second.token
            assert read(first.path) == b"\1" * VOLUME_SIZE
            backend.release(first.token)
            assert backend.find(second.token) == second
        assert second.fuzzy or read(second.path) == b"\2" * VOLUME_SIZE
        backend.release(second.token)

    def test_release_is_idempotent_and_leaves_nothing(self, backend, volume):
        info = device.inspect(volume)
        frozen = backend.freeze(info, "run-1")
        backend.release(frozen.token)
        backend.release(frozen.token)
        assert backend.find(frozen.token) is None
        assert backend.stale(info) == []

    def test_another_process_finds_and_releases_it_by_its_token(self, backend, volume):
        frozen = backend.freeze(device.inspect(volume), "run-1")
        _, found = elsewhere(FIND, frozen.token)
        assert found == (str(None) if frozen.fuzzy else str(frozen))
        elsewhere("import sys; from qrep.volumes import registry; registry.release(sys.argv[1])", frozen.token)
        assert backend.find(frozen.token) is None

    def test_a_crash_while_freezing_leaves_nothing_that_stale_does_not_name(self, backend, volume):
        info = device.inspect(volume)
        kept = backend.freeze(info, "kept")
        for point in self.crash_points:
            status, _ = elsewhere(FREEZE, backend.name, volume, "lost", crash=f"{point}:1")
            assert status == (0 if kept.fuzzy else -9)  # a live backend makes nothing, so there is nothing to crash in
            left = backend.stale(info, keep=[kept.token])
            assert len(left) == (1 if point == "snapshot-named" and not kept.fuzzy else 0)
            for token in left:
                backend.release(token)
        assert backend.stale(info, keep=[kept.token]) == []
        assert kept.fuzzy or backend.find(kept.token) == kept
        backend.release(kept.token)

    def test_a_name_that_could_lead_elsewhere_is_refused(self, backend, volume):
        info = device.inspect(volume)
        for name in ("", "../x", "a/b", "a b", ".hidden", "x" * 65, "a\n", "ü", None, "a@b", "a~b"):
            with pytest.raises(UsageError):
                backend.freeze(info, name)
        assert backend.stale(info) == []

    def test_it_is_found_by_its_token_through_the_registry(self, backend, volume):
        frozen = backend.freeze(device.inspect(volume), "run-1")
        assert type(registry.by_token(frozen.token)) is type(backend)
        registry.release(frozen.token)

    def test_no_descriptor_is_leaked(self, backend, volume):
        info = device.inspect(volume)
        before = sorted(os.listdir("/proc/self/fd"))
        backend.release(backend.freeze(info, "run-1").token)
        assert sorted(os.listdir("/proc/self/fd")) == before
