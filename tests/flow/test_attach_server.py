"""The process of an attachment over a real volume, without an agent around it."""

import contextlib
import errno
import os
import socket
import threading
from pathlib import Path

import pytest
from flow.harness import MIB, write_at
from nbd.client import Client

from qrep.daemon.attachserver import AttachServer
from qrep.errors import QrepError


@pytest.fixture
def attach(site, undo_after, memory_dir):
    """attach(point id) -> (AttachServer, lost: list of reasons, event)."""

    def make(point):
        told, event = [], threading.Event()
        server = AttachServer(
            site.volume, point, name="db@1", description="", listening=[], overlay_fd=-1, overlay_limit=0, user="", empty_root=str(memory_dir),
            on_end=told.append, on_full=lambda: None, on_lost=lambda why: (told.append(why), server.stop(), event.set()),
        )  # fmt: skip
        undo_after.callback(server.stop)
        return server, told, event

    return make


def test_a_volume_that_is_closed_ends_its_server_within_a_moment_also_when_nobody_reads(site, attach, random_source):
    with site:
        site.run()
        image = Path(site.target_path).read_bytes()
        point = site.volume.sync_points()[0].id
        server, told, event = attach(point)
        client = Client(server.connect())
        client.socket.settimeout(20)
        write_at(site.source, 0, random_source.randbytes(MIB))
        site.run()
        assert client.read(0, MIB) == image[:MIB]
        assert not told
        site.volume.close()
        assert event.wait(20)
        assert "out of service" in told[0] and server.rights() is None
        assert client.hung_up()


@pytest.mark.parametrize("rotten", ["before", "after"])
def test_a_last_batch_that_rots_before_or_after_a_point_is_attached_gives_errors_and_no_later_content(site, attach, random_source, rotten):
    with site:
        site.run()
        point = site.volume.sync_points()[0].id
        write_at(site.source, 0, random_source.randbytes(MIB))
        site.run()
        store, newer = site.volume.undo, site.volume.sync_points()[0].id
        descriptor, _header, (batch,) = store.batches(point, newer)
        os.close(descriptor)
        if rotten == "after":
            server, told, event = attach(point)
            client = Client(server.connect())
            client.socket.settimeout(20)
        write_at(Path(store.directory.path) / store.name(newer), batch.position + 40, b"\7" * 8)
        if rotten == "before":
            with pytest.raises(QrepError, match="cannot be served"):
                attach(point)
            return
        with contextlib.suppress(ConnectionError, EOFError):  # whoever is told of it ends the process, maybe before its answer is out
            assert client.read(0, MIB) == errno.EIO
        assert event.wait(20)
        assert "cannot be believed" in told[0]


def test_what_it_was_handed_is_all_that_it_has(site, attach):
    """Its descriptors by kind: nothing of the agent's came along."""
    with site:
        site.run()
        server, *_rest = attach(site.volume.sync_points()[0].id)
        links = [path.readlink() for path in Path(f"/proc/{server.pid}/fd").iterdir()]
        kinds = {str(link).split(":")[0] if ":" in str(link) else str(link) for link in links}
        assert kinds <= {"socket", "/dev/null", "/memfd", str(Path(site.target_path).resolve())}, kinds
        assert isinstance(server.connect(), socket.socket)
