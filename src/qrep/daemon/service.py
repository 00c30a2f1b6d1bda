"""qrep daemon: the process. Starts the node, serves the local API until SIGTERM or SIGINT, ends in order."""

import contextlib
import logging
import os
import signal
import socket
import stat
import struct
import sys
import threading
import time

from qrep.daemon import memory
from qrep.daemon.notify import Notifier
from qrep.errors import Refused

STOP_S = 2  # seconds that open API requests get at the end


def unix_socket(path):
    """Listen on `path`, 0600. A socket left by a dead agent is replaced; a living one is refused."""
    directory = os.path.dirname(os.path.abspath(path))
    os.makedirs(directory, mode=0o755, exist_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    if os.path.exists(path):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise Refused(f"{path} is no socket", hint="remove it, or give another --socket", code="not-a-socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(path)
            except OSError:
                os.unlink(path)
            else:
                raise Refused(
                    f"an agent answers on {path} already",
                    hint="stop it first, or give another --socket",
                    code="agent-running",
                )
    mask = os.umask(0o177)
    try:
        listening.bind(path)
    finally:
        os.umask(mask)
    listening.listen(64)
    return listening


def peer_allowed(connection):
    """SO_PEERCRED: only root and the agent's own user may talk to the agent."""
    _pid, uid, _gid = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    return uid in (0, os.geteuid())


def run(*, config_dir, state_dir, socket_path, verbose=False):
    """Serve until a signal ends it. Returns the exit code; raises QrepError when it cannot start."""
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from qrep._native import hasher
    from qrep.daemon.control import application
    from qrep.daemon.node import Node

    class CheckedProtocol(H11Protocol):
        """Closes connections of users that may not talk to the agent, before a byte of theirs is looked at."""

        refused = False

        def connection_made(self, transport):
            if peer_allowed(transport.get_extra_info("socket")):
                super().connection_made(transport)
            else:
                self.refused = True
                transport.abort()

        def data_received(self, data):
            if not self.refused:
                super().data_received(data)

        def eof_received(self):
            return None if self.refused else super().eof_received()

        def connection_lost(self, exc):
            if not self.refused:
                super().connection_lost(exc)

    class Server(uvicorn.Server):
        """Lets streams of events and long polls end as soon as a signal comes; shows that it is alive."""

        ticked = 0.0

        def handle_exit(self, sig, frame):
            node.stopping.set()
            notifier.stopping()
            super().handle_exit(sig, frame)

        async def startup(self, sockets=None):
            await super().startup(sockets)
            notifier.ready()

        async def on_tick(self, counter):
            self.ticked = time.monotonic()
            return await super().on_tick(counter)

    def reload_soon(*_):
        """SIGHUP: what comes of it is told as an event."""
        if server is not None and server.started and not node.stopping.is_set():
            threading.Thread(target=node.reload, name="reload", daemon=True).start()

    def end_at_once(*_):
        """Nothing goes on yet but recovery, which may take long; the next start does it again, as after a crash."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(socket_path)
        os._exit(0)

    node, server, notifier = None, None, Notifier(os.environ)
    logging.basicConfig(format="qrep %(levelname)s: %(message)s", level=logging.INFO if verbose else logging.WARNING)
    hasher.self_test()
    memory.keep_flat()
    signal.signal(signal.SIGHUP, reload_soon)  # also at the start and at the end, where it changes nothing and must not be the end itself
    listening = unix_socket(socket_path)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end_at_once)
    try:
        node = Node(config_dir, state_dir, notifier, os.path.dirname(os.path.abspath(socket_path)))
        settings = uvicorn.Config(
            application(node), http=CheckedProtocol, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=STOP_S
        )
        server = Server(settings)
        node.watch({"local API": lambda: server.ticked})
        node.start()
        server.ticked = time.monotonic()
        try:
            # For signals before uvicorn has its own handlers, and after: it raises what ended it once more when it is done, and the
            # node has still to be stopped then.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: setattr(server, "should_exit", True))
            print(
                f"qrep: serving {socket_path}, port {node.settings.node.port}, {node.identity.fingerprint}",
                file=sys.stderr,
                flush=True,
            )
            print(f"qrep: audit log: line {node.audit.count}, {node.audit.head}", file=sys.stderr, flush=True)
            server.run(sockets=[listening])
        finally:
            node.stop()
    finally:
        listening.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(socket_path)
    return 0
