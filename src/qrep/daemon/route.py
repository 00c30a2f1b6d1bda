"""How a job gets from its source volume to its target: what its run is asked to do, and its connections."""

import os
import socket
import threading

from qrep import units
from qrep.daemon.jobpaths import JobPaths
from qrep.errors import ProtocolError, Refused
from qrep.protocol import transport
from qrep.volumes import registry
from qrep.volumes.held import Held

LOCAL_BUFFER = 512 << 10  # bytes of a local connection's socket buffer; with 4 MiB what is on the way leaves the cache (bench/by_hand.md, profiles)


class Route:
    """Of one job. lends: its source is a replica, which lends a sync point (restore.py). settings: config.Job; its changes count from the next run on, that of connections at once. paths: JobPaths, None where the
    target is on this host."""

    def __init__(self, node, name, settings, *, lends=False):
        self.node, self.name, self.settings, self._lends = node, name, settings, lends
        peer, _, self._volume = settings.target.rpartition(":")
        self.paths = JobPaths(node, name, settings, peer) if peer else None

    def request(self):
        """The RunRequest of now. Raises what keeps the source from being read."""
        from qrep.source.request import RunRequest

        settings = self.settings
        self.node.shapes.check(settings.shape)
        volume = self.node.volumes.get(settings.source)
        info = volume.inspect()
        if volume.is_replica() and not self._lends:
            raise Refused(
                f"{settings.source} is a replica: job {self.name} runs where the other side is", code="not-source",
                hint=f"start it there; or, if {settings.source} is to be written again: qrep job promote {self.name}",
            )  # fmt: skip
        if info.size < settings.size or (settings.whole and info.size != settings.size):
            raise Refused(
                f"{settings.source} has {units.format_size(info.size)} now, {units.format_size(settings.size)} when job {self.name} was created",
                hint="delete the job and create it again",
                code="source-resized",
            )
        directory = os.path.join(self.node.state.path, "sources", settings.id)
        return RunRequest(
            job_id=bytes.fromhex(settings.id), volume_id=bytes.fromhex(settings.target_volume), device=info,
            backend=Held() if volume.target is not None else registry.of_volume(volume.settings, info).backend, map_directory=self._map_directory(directory),
            run_directory=directory, leaf_size=settings.leaf, granule_size=settings.granule, connections=settings.connections,
            initial=settings.initial, timeout_s=units.parse_duration(settings.timeout), plain=lambda: self.transport() == "plain",
            hints=settings.hints == "auto" and settings.mode != "copy", hint_sample=units.parse_sample(settings.hint_sample), nice=settings.nice,
            compress=settings.compress if ":" in settings.target else "off",
            size=0 if settings.whole else settings.size, once=settings.mode == "copy", tokens=self.node.shared_tokens,
            wanted=lambda: self.paths.wanted() if self.paths is not None else settings.connections,
        )  # fmt: skip

    def _map_directory(self, directory):
        """A rebuild made a map for its volume."""
        from qrep.source.rebuild import map_directory

        rebuilt = map_directory(directory, bytes.fromhex(self.settings.target_volume))
        return rebuilt if os.path.isdir(rebuilt) else os.path.join(directory, "map")

    def transport(self):
        """How data travels: local, tls, or plain where the path is trusted."""
        if self.paths is None:
            return "local"
        return "plain" if self.node.peers.trusted(self.paths.peer) else "tls"

    def dial(self):
        """A fresh control channel to the target volume."""
        if self.paths is not None:
            return self.paths.dial()
        if self.node.pairs.once.is_over(self.settings.id):
            source_end, target_end = transport.local_pair()
            threading.Thread(target=self.node.pairs.once.tell, args=(target_end, None, None), name=f"target of {self.name}", daemon=True).start()
            return source_end
        target = self.node.volumes.get(self._volume).replica()
        source_end, target_end = transport.local_pair()
        threading.Thread(
            target=self.node.sessions.serve, args=(target, target_end, None, self._volume, self.name), name=f"target of {self.name}",
            daemon=True,
        ).start()  # fmt: skip
        return source_end

    def connect(self, token, slot):
        """A DataConnection that the target has taken for `token`."""
        bucket = self.node.shapes.bucket(self.name)
        if self.paths is not None:
            return self.paths.data_connection(token, slot, bucket)
        here, there = socket.socketpair()
        for end in (here, there):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOCAL_BUFFER)
        index = self.node.rendezvous.deliver(token, lambda index: transport.DataConnection(there, index))
        if index is None:
            here.close()
            there.close()
            raise ProtocolError("nobody waits for this data connection")
        return transport.DataConnection(here, index, bucket=bucket)
