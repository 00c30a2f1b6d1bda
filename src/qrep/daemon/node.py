"""The agent as one object: identity, peers, volumes, pairs and jobs, started and stopped together, and their status."""

import fcntl
import os
import socket
import threading
import time
from datetime import UTC, datetime

from qrep import __version__, config, store
from qrep.daemon import tls
from qrep.daemon.events import EventLog
from qrep.daemon.identity import Identity
from qrep.daemon.joblist import Jobs
from qrep.daemon.known import KnownPeers
from qrep.daemon.pairs import Pairs
from qrep.daemon.peers import Listener
from qrep.daemon.statedb import StateDb
from qrep.daemon.tasks import Tasks
from qrep.daemon.volumes import Volumes
from qrep.errors import QrepError, Refused
from qrep.protocol import transport

STOP_S = 10.0


class Node:
    """Everything behind the local API. What it and its parts do raises QrepError; what changes something writes an event."""

    def __init__(self, config_dir, state_dir):
        self.config = config.Config(config_dir)
        self.settings = self.config.node()
        self.name = self.settings.node.name or socket.gethostname().partition(".")[0]
        self.state = store.Directory(state_dir)
        self._alone = self._hold()
        self.started = datetime.now(UTC)
        self.stopping = threading.Event()
        self.db = StateDb(os.path.join(self.state.path, "state.db"))
        self.events = EventLog(self.db)
        self.identity = Identity(self.state.sub("keys"), self.name)
        self.tasks = Tasks()
        self.rendezvous = transport.Rendezvous()
        self.slots = threading.BoundedSemaphore(self.settings.limits.jobs_running)
        self.jobs = Jobs(self)
        self.peers = KnownPeers(self.config, self.identity, self.events, self.jobs.of_peer)
        self.volumes = Volumes(self.config, self.state, self.events)
        self.pairs = Pairs(self)
        self.jobs.load()
        self.listener = None

    def _hold(self):
        """One agent per state directory: a lock for life."""
        descriptor = self.state.open("agent.lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise Refused(
                f"an agent uses {self.state.path} already",
                hint="a second agent needs --config-dir, --state-dir and --socket of its own",
                code="agent-running",
            ) from None
        return descriptor

    def start(self):
        """Recover the replicas, then open the port."""
        self.volumes.recover(self.pairs.sync_points_of)
        serve = {tls.CONTROL: self.pairs.serve_control, tls.DATA: self.pairs.serve_data, tls.ASK: self.pairs.serve_ask}
        self.listener = Listener(
            self.identity, self.settings.node, self.settings.limits, self.peers.all, serve, self.events
        )
        self.listener.start()
        self.events.add("agent-started", f"qrep {__version__}, port {self.settings.node.port}")

    def stop(self):
        """End runs (what has been applied is kept), close the port, release the devices."""
        self.stopping.set()
        if self.listener is not None:
            self.listener.stop()
        for runner in list(self.jobs.runners.values()):
            if runner.activity is not None:
                runner.stop(STOP_S)
        for volume in self.volumes.all():
            volume.close_target()
        self.events.add("agent-stopped", "in order")
        self.db.close()
        os.close(self._alone)

    def remove_volume(self, name):
        self.volumes.get(name)
        users = self.jobs.of_volume(name) or [pair["job"] for pair in self.db.pairs(name)]
        if users:
            raise Refused(
                f"volume {name} is used by job {users[0]}",
                hint=f"qrep job delete {users[0]} (where its source is)",
                code="volume-in-use",
            )
        self.volumes.remove(name)
        return {"removed": name}

    def as_dict(self):
        from qrep._native import hasher

        return {
            "name": self.name,
            "version": __version__,
            "pid": os.getpid(),
            "started": self.started.isoformat(timespec="seconds"),
            "listen": self.settings.node.listen,
            "port": self.settings.node.port,
            "fingerprint": self.identity.fingerprint,
            "isa": hasher.isa(),
            "config_dir": self.config.directory,
            "state_dir": self.state.path,
        }

    def status(self, names):
        """Jobs whose source is here, and those of peers that write to volumes here."""
        known = {name: runner.as_dict for name, runner in self.jobs.runners.items()}
        for pair in self.db.pairs():
            if pair["peer"]:
                known.setdefault(pair["job"], lambda pair=pair: self._received(pair))
        for name in names:
            if name not in known:
                self.jobs.get(name)  # raises the NotFound that names what was probably meant
        return {
            "node": {"name": self.name, "version": __version__},
            "jobs": [known[name]() for name in sorted(names or known)],
        }

    def _received(self, pair):
        """A job as its target sees it."""
        job = {
            "name": pair["job"],
            "id": pair["job_id"],
            "mode": "async",
            "state": "idle",
            "role": "target",
            "local": False,
            "source": f"{pair['peer']}:{pair['source'].rpartition(':')[2]}",
            "target": pair["volume"],
            "size": pair["size"],
            "sync_points": pair["sync_points"],
            "last_sync_point": None,
            "lag_seconds": None,
            "fuzzy": False,
            "counter": None,
            "generation": None,
            "root": None,
            "path": None,
            "connections": None,
            "rate_bytes_per_s": None,
            "limit": None,
            "progress": None,
            "problem": None,
            "next": None,
            "last_run": None,
        }
        try:
            status = self.volumes.get(pair["volume"]).replica().status()
        except QrepError as error:
            return job | {
                "state": "failed",
                "problem": {"code": error.code, "text": error.message, "action": error.hint},
            }
        point = status["last_sync_point"]
        return job | {
            "state": status["state"],
            "last_sync_point": point,
            "fuzzy": status["fuzzy"],
            "counter": status["committed_counter"],
            "generation": status["committed_id"],
            "root": status["root"],
            "progress": status["progress"],
            "lag_seconds": max(0, int(time.time() - datetime.fromisoformat(point).timestamp())) if point else None,
        }
