"""Fixtures of the native suites: every ring case runs on both backends."""

import os
import socket

import pytest
from source_peer import ATTEMPT, GEOMETRY, KEY, SESSION

from qrep._native.buffers import BufferPool
from qrep._native.ring import Ring, explain
from qrep._native.source_lane import SourceRun


@pytest.fixture(params=["uring", "threads"])
def backend(request):
    try:
        Ring(request.param, 1).close()
    except OSError as err:
        pytest.skip(f"{request.param}: {explain(err.errno)}")
    return request.param


@pytest.fixture
def open_ring(backend, undo_after):
    """open_ring(descriptors, entries=16, ...) -> Ring of this backend with these files registered."""

    def make(descriptors, entries=16, **options):
        ring = Ring(backend, entries, **options)
        undo_after.callback(ring.close)
        ring.register_files(descriptors)
        return ring

    return make


@pytest.fixture
def pool():
    return BufferPool(1 << 20, 4)


@pytest.fixture
def open_direct(undo_after):
    """open_direct(path) -> O_DIRECT descriptor, read and write, closed after the test."""

    def make(path, flags=os.O_RDWR):
        descriptor = os.open(path, flags | os.O_DIRECT)
        undo_after.callback(os.close, descriptor)
        return descriptor

    return make


@pytest.fixture
def tcp_pair(undo_after):
    """Two connected blocking TCP sockets on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    undo_after.callback(ours.close)
    undo_after.callback(theirs.close)
    return ours, theirs


@pytest.fixture
def source_device(memory_dir, random_source, undo_after):
    """Descriptor of a file of random bytes in the shape of source_peer.GEOMETRY."""
    path = memory_dir / "device"
    path.write_bytes(random_source.randbytes(GEOMETRY.size))
    descriptor = os.open(path, os.O_RDONLY)
    undo_after.callback(os.close, descriptor)
    return descriptor


@pytest.fixture
def make_run(backend):
    """make_run(states=None, values=None, **options) -> SourceRun over such a device; everything is UNKNOWN unless told."""

    def make(states=None, values=None, **options):
        granules = GEOMETRY.granules
        return SourceRun(
            GEOMETRY, attempt=ATTEMPT, session=SESSION, key=KEY, sector_size=512, base_states=states or bytes(granules),
            base_values=values or bytes(32 * granules), ring_backend=backend, **options,
        )  # fmt: skip

    return make
