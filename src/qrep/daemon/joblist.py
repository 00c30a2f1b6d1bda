"""The jobs of this node: made, changed, deleted, started, and how each reaches its target."""

import os
import shutil
import socket
import threading

import msgspec

from qrep import config, units
from qrep.daemon import asks
from qrep.daemon.volumes import shape
from qrep.errors import ConfigError, NotFound, ProtocolError, Refused, Unreachable
from qrep.jobs.run import JobRunner
from qrep.protocol import transport
from qrep.source.flow import RunRequest
from qrep.volumes import registry

LOCAL_BUFFER = 4 << 20  # bytes of a local connection's socket buffer


class Jobs:
    """node: the Node. `runners`: name -> JobRunner."""

    def __init__(self, node):
        self.node = node
        self._lock = threading.RLock()
        self.runners = {}

    def load(self):
        self.runners = {
            name: self._runner(name, settings) for name, settings in self.node.config.load_all("jobs").items()
        }

    def sources(self):
        """The volumes that jobs read."""
        return {runner.settings.source for runner in self.runners.values()}

    def of_volume(self, volume):
        return [
            name
            for name, runner in sorted(self.runners.items())
            if volume in (runner.settings.source, runner.settings.target)
        ]

    def of_peer(self, peer):
        return [name for name, runner in sorted(self.runners.items()) if runner.settings.target.startswith(f"{peer}:")]

    def get(self, name):
        with self._lock:
            if name in self.runners:
                return self.runners[name]
        self.node.config.load("jobs", name)
        raise NotFound(
            f"job {name} was added while the agent runs",
            hint="restart the agent, or use qrep job create",
            code="no-such-job",
        )

    def _runner(self, name, settings):
        peer, _, target = settings.target.rpartition(":")
        if peer:
            dial, connect = (
                (lambda: self.node.peers.reach(peer).channel()),
                (lambda token: self.node.peers.reach(peer).data_connection(token)),
            )
        else:
            dial, connect = (lambda: self._dial_local(settings, name, target)), self._connect_local
        return JobRunner(
            name,
            settings,
            request=lambda: self._request(name, settings),
            dial=dial,
            connect=connect,
            db=self.node.db,
            events=self.node.events,
            slots=self.node.slots,
        )

    def _dial_local(self, settings, job, volume):
        target = self.node.volumes.get(volume).replica()
        source_end, target_end = transport.local_pair()
        threading.Thread(
            target=self.node.pairs.serve_target,
            args=(target, target_end, None, volume, job),
            name=f"target of {job}",
            daemon=True,
        ).start()
        return source_end

    def _connect_local(self, token):
        from qrep._native.connection import Connection

        here, there = socket.socketpair()
        for end in (here, there):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        index = self.node.rendezvous.deliver(token, lambda index: Connection.socket(there.detach(), index, owned=True))
        if index is None:
            here.close()
            there.close()
            raise ProtocolError("nobody waits for this data connection")
        return Connection.socket(here.detach(), index, owned=True)

    def _request(self, name, settings):
        volume = self.node.volumes.get(settings.source)
        info = volume.inspect()
        if info.size != settings.size:
            raise Refused(
                f"{settings.source} has {units.format_size(info.size)} now, {units.format_size(settings.size)} when job {name} was created",
                hint="delete the job and create it again",
                code="source-resized",
            )
        directory = os.path.join(self.node.state.path, "sources", settings.id)
        return RunRequest(
            job_id=bytes.fromhex(settings.id),
            volume_id=bytes.fromhex(settings.target_volume),
            device=info,
            backend=registry.choose(volume.settings.snapshots, info).backend,
            map_directory=os.path.join(directory, "map"),
            run_directory=directory,
            leaf_size=settings.leaf,
            granule_size=settings.granule,
            connections=settings.connections,
            initial=settings.initial,
            timeout_s=units.parse_duration(settings.timeout),
        )

    def create(self, *, name, source, target, overwrite=False, dry_run=False, **settings):
        """Check both sides, make the pair at the target, write the job down. Returns what the CLI tells."""
        config.check_name("jobs", name)
        with self._lock:
            if name in self.runners:
                raise Refused(f"there is a job called {name} already", hint=f"qrep job show {name}", code="name-taken")
            volume = self.node.volumes.get(source)
            if self.node.db.pairs(source):
                raise Refused(f"{source} is itself a replica", hint="cascading is not possible", code="cascading")
            info = volume.inspect()
            leaf, granule = shape(volume.settings)
            peer, _, target_name = target.rpartition(":")
            job_id = os.urandom(16).hex()
            fields = {
                "id": job_id,
                "source": source,
                "target": target,
                "target_volume": "0" * 32,
                "size": info.size,
                "leaf": leaf,
                "granule": granule,
            } | settings
            job = _convert(fields, config.Job)
            units.parse_duration(job.timeout)
            question = asks.CreatePair(
                job_id=job_id,
                job=name,
                source=f"{self.node.name}:{source}" if peer else source,
                volume=target_name,
                size=info.size,
                leaf=leaf,
                granule=granule,
                sector_size=info.logical_sector_size,
                sync_points=job.sync_points,
                overwrite=overwrite,
                check_only=dry_run,
            )
            pair = (
                self.node.peers.reach(peer).ask(question)
                if peer
                else self.node.pairs.create(question, None, source=info)
            )
            answer = {
                "name": name,
                "mode": job.mode,
                "source": source,
                "target": target,
                "size": info.size,
                "full": job.initial != "compare",
                "via": self._via(peer),
                "notes": pair["notes"],
                "id": job_id,
            }
            if dry_run:
                return answer
            job.target_volume = pair["volume_id"]
            self.node.config.save("jobs", name, job)
            self.runners[name] = self._runner(name, job)
        self.node.events.add("job-created", f"{source} -> {target}", job=name)
        return answer

    def _via(self, peer):
        return f"{self.node.peers.reach(peer).address[0]}" if peer and self.node.peers.reach(peer).address else None

    def change(self, name, settings):
        with self._lock:
            runner = self.get(name)
            changed = _convert(msgspec.to_builtins(runner.settings) | settings, config.Job)
            units.parse_duration(changed.timeout)
            self.node.config.save("jobs", name, changed)
            for field in settings:
                setattr(runner.settings, field, getattr(changed, field))
            if "sync_points" in settings and ":" not in changed.target:
                self.node.volumes.get(changed.target).replica().set_sync_points(changed.sync_points)
        self.node.events.add("job-changed", ", ".join(f"{key} {value}" for key, value in settings.items()), job=name)
        return runner

    def delete(self, name):
        with self._lock:
            runner = self.get(name)
            runner.begin("run")  # nothing may start from here on
            peer, _, _target = runner.settings.target.rpartition(":")
            left = ""
            try:
                if peer:
                    self.node.peers.reach(peer).ask(asks.DeletePair(job_id=runner.settings.id))
                else:
                    self.node.pairs.delete(runner.settings.id, None)
            except NotFound:
                pass  # the other side forgot it first
            except Unreachable:
                left = f" ({peer} does not answer and still has its pair record)"
            except BaseException:
                runner.end()
                raise
            path = os.path.join(self.node.state.path, "sources", runner.settings.id)
            if os.path.isdir(path):
                shutil.rmtree(path)
            self.node.config.remove("jobs", name)
            self.node.db.drop_job(runner.settings.id)
            del self.runners[name]
        self.node.events.add("job-deleted", f"{runner.settings.source} -> {runner.settings.target}{left}", job=name)

    def start(self, name):
        runner = self.get(name)
        runner.begin("run")
        return self.node.tasks.start("run", name, runner.run)


def _convert(fields, cls):
    try:
        return msgspec.convert(fields, cls)
    except msgspec.ValidationError as err:
        raise ConfigError(str(err)) from err
