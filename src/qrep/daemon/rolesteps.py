"""The two steps that every change of roles is made of, at the node that holds the volume: take over, give up; and their finishing after a crash.

docs/ROLES.md has the order of what becomes durable. The superblock's sector decides; what comes after it is written so that doing it again does nothing.
"""

import contextlib
import logging
import os
import threading
import time
from dataclasses import dataclass

import msgspec

from qrep import deviceusers, mapcopy, units
from qrep._native.wire import Geometry
from qrep.config import Job
from qrep.crashpoint import crashpoint
from qrep.daemon import standing as standings
from qrep.daemon.standing import StandingFile
from qrep.digestmap import NO_ID, DigestMap
from qrep.errors import DamagedError, QrepError, Refused
from qrep.jobs.roles import PRIMARY, REPLICA
from qrep.retention import Policy, parse_grid
from qrep.target.rolechange import durable_role

NOBODY = "0" * 32  # target_volume of a job whose other side has not told yet
ROOM = 1 << 20  # bytes that the small files of a change take: job file, standing, and the two files of pairs while they are replaced
SETTLE_S = 30.0
log = logging.getLogger("qrep.agent")


@dataclass
class Part:
    """This node's part of a pair. volume: the ManagedVolume that is here; other: the name of the other one; other_id: hex, "" not known.
    runner: the JobRunner, None at a replica that never was a source. peer: "" where both volumes are here."""

    job_id: str
    job: str
    peer: str
    volume: object
    other: str
    other_id: str
    size: int
    leaf: int
    granule: int
    sync_points: int
    keep: str = ""
    runner: object = None

    @property
    def geometry(self):
        return Geometry(self.size, self.leaf, self.granule)


class RoleSteps:
    """node: the Node."""

    def __init__(self, node):
        self.node = node
        self._settling = threading.Lock()

    # ---- replica -> primary ----

    def take_over(self, part, *, why, same_as="", other_id=""):
        """The volume is primary when this returns, its device released, the job at this node. same_as: the generation of the other side that is
        known to hold what is here, "": none. Raises QrepError; then it is a replica as before, or out of service."""
        self._check_name(part)
        self._check_room(part)
        self._go_on(part.volume)
        volume, target = part.volume, part.volume.replica()
        if target.has_open_generation():
            target.abandon("the volume takes over", alone=False)
        record, before = target.machine.record, standings.load(volume.directory)
        known = before is not None and before.job_id == part.job_id
        file = StandingFile(
            id=os.urandom(16).hex(), role=PRIMARY, job_id=part.job_id, job=part.job, peer=part.peer, other=part.other,
            other_id=other_id or part.other_id or (before.other_id if known else ""), why=why, at=time.time(), size=record.size, leaf=record.leaf_size,
            granule=record.granule_size, sync_points=part.sync_points, keep=part.keep, same_as=same_as, common=record.committed_id.hex(),
            accepted=known and before.accepted, before=msgspec.to_builtins(before),
        )  # fmt: skip
        with self._decided(volume, file):
            target.take_over(bytes.fromhex(file.id))
        return self.finish(volume, file)

    @contextlib.contextmanager
    def _decided(self, volume, file):
        """Around what writes the superblock: says first what for, and takes that back where it was not written."""
        standings.save(volume.directory, file)
        try:
            yield
        except (QrepError, OSError) as error:
            if self._was_written(volume, file):
                raise self._unfinished(volume, error, file.job) from error
            standings.take_back(volume.directory, file)
            raise

    def _check_room(self, part):
        """Raises Refused where the small files that follow the superblock would find no room: then nothing has happened."""
        for path in (self.node.state.path, self.node.config.directory):
            if _free(path) < ROOM:
                raise Refused(
                    f"{part.job}: less than {units.format_size(ROOM)} are free on the filesystem of {path}, so a change of roles could not be written down",
                    hint=f"make room there (df {path}), then give the command again", code="no-room",
                )  # fmt: skip

    def _go_on(self, volume):
        """What an earlier change left undone comes first. Raises what keeps it from being finished."""
        file = standings.load(volume.directory)
        if file is None or file.done:
            return
        if file.role == PRIMARY and self._was_written(volume, file):  # its job may be at work on the map that is made then: settle() waits for that
            raise volume.unsettled or QrepError(f"{volume.name}: its last change of role is not finished", hint=f"try again in {SETTLE_S:g} s")
        self._bring_to_end(volume, file)

    @staticmethod
    def _was_written(volume, file):
        return durable_role(volume.directory) == (file.role, bytes.fromhex(file.id))

    def _check_name(self, part):
        runner = self.node.jobs.all_by_name().get(part.job)
        if runner is not None and runner.settings.id != part.job_id:
            raise Refused(
                f"{part.job}: there is another job of that name on {self.node.name}", code="name-taken",
                hint=f"it has to go first: qrep job show {part.job}, qrep job delete {part.job}",
            )  # fmt: skip

    # ---- primary -> replica ----

    @contextlib.contextmanager
    def held(self, part):
        """The device claimed, so that nobody writes it; given back at the end unless the volume is a replica by then. Raises Refused, naming who
        uses it."""
        self._check_room(part)
        self._go_on(part.volume)
        volume, info = part.volume, part.volume.inspect()
        users = deviceusers.users(info)
        if users:
            way_out = f"umount {users[0].what}" if users[0].kind == "mounted" else deviceusers.way_out(users)
            raise Refused(
                f"{volume.name}: {info.path} is in use: {'; '.join(map(str, users))}", code="source-in-use",
                hint=f"{way_out or 'stop what uses it'}, then again; no option overrides this",
            )  # fmt: skip
        if part.size % info.io_alignment:
            raise Refused(f"{volume.name}: {part.size} bytes are not whole sectors of {info.io_alignment}, so it cannot be a replica", code="sector-size")
        try:
            target = volume.open_target(wanted=Policy(part.sync_points, parse_grid(part.keep)), claim_wait=2, primary=True)
        except Refused as error:
            if error.code not in ("target-in-use", "target-mounted"):
                raise
            raise Refused(f"{volume.name}: {error.message}", code="source-in-use", hint="umount it, and stop what uses it; no option overrides this") from error
        try:
            record = target.machine.record
            if not target.is_primary or (record.size, record.leaf_size, record.granule_size) != (part.size, part.leaf, part.granule):
                raise Refused(f"{volume.name} is not the primary volume of {part.job}, or has another shape", code="other-shape")
            yield target
        finally:
            if target.is_primary:
                volume.close_target()

    def give_up(self, part, target, *, why, last_run, common="", returns=False):
        """Within held(): the volume is a replica when this returns. last_run: the other side was just brought to what the device holds. common: a
        generation whose map is to be counted against. Raises QrepError; then it is primary as before."""
        volume = part.volume
        before = standings.load(volume.directory)
        base = self._base(part, target, "" if last_run else common)  # after a run that of the job is newer than anything else
        try:
            equal = base.tag if last_run else NO_ID
            file = StandingFile(
                id=os.urandom(16).hex(), role=REPLICA, job_id=part.job_id, job=part.job, peer=part.peer, other=part.other, other_id=part.other_id,
                why=why, at=time.time(), size=part.size, leaf=part.leaf, granule=part.granule, sync_points=part.sync_points, keep=part.keep,
                same_as=equal.hex() if last_run else "", common=base.tag.hex() if base.tag != NO_ID else "", returns=returns,
                accepted=bool(part.peer) and part.peer not in volume.settings.accept, before=msgspec.to_builtins(before),
            )  # fmt: skip
            with self._decided(volume, file):
                target.give_up(bytes.fromhex(file.id), time.time_ns(), equal=equal, base=base)
        finally:
            if base is not target.digest_map:
                base.close()
        return self.finish(volume, file.replace(changed=target.changed))

    def _base(self, part, target, common):
        """The map that says what the device held at a generation both sides knew: that of the job, or the volume's own of when it took over."""
        if not part.other_id:
            return target.digest_map
        of_job = DigestMap(self.map_directory(part.job_id), part.geometry, bytes.fromhex(part.other_id))
        own = target.digest_map
        if own.tag != NO_ID and (of_job.tag == NO_ID or (own.tag.hex() == common and of_job.tag.hex() != common)):
            of_job.close()
            return own
        return of_job

    def map_directory(self, job_id):
        return os.path.join(self.node.state.path, "sources", job_id, "map")

    # ---- what follows the superblock ----

    def finish(self, volume, file):
        """Pair, job, map and claim follow the role. Returns the StandingFile, done. Raises QrepError where they cannot yet: settle() tries again."""
        try:
            file = self._finish(volume, file)
        except (QrepError, OSError) as error:
            raise self._unfinished(volume, error, file.job) from error
        volume.unsettled = None
        return file

    def _unfinished(self, volume, error, job=None):
        """Tell, by an event and in the status of the volume, what keeps its last change of role from being finished. Returns it as a QrepError."""
        text = getattr(error, "message", "") or str(error) or repr(error)
        hint = getattr(error, "hint", "") or (
            f"see df and dmesg for {self.node.state.path} and {self.node.config.directory}; the agent tries again every {SETTLE_S:g} s, and at its start"
        )
        told = QrepError(f"{volume.name}: its last change of role is not finished: {text}", hint=hint, code=getattr(error, "code", "role-unfinished"))
        before, volume.unsettled = volume.unsettled, told
        if before is None or before.message != told.message:
            code = "volume-damaged" if isinstance(error, DamagedError) else "role-unfinished"
            self.node.events.add(code, told.message, volume=volume.name, reason=told.code, job=job)
        return told

    def _finish(self, volume, file):
        if file.role == PRIMARY:
            try:
                self._finish_primary(volume, file)
            finally:
                volume.close_target()  # its host may have it, whatever became of the rest: the superblock lets no session in
        else:
            self._finish_replica(volume, file)
        crashpoint("role-done-before")
        file = file.replace(done=True, before=None)
        standings.save(volume.directory, file)
        other = f"{file.peer}:{file.other}" if file.peer else file.other
        self.node.events.add("role-changed", f"{file.role} now ({file.why}); the other side is {other}", volume=volume.name, job=file.job, role=file.role)
        return file

    def _finish_primary(self, volume, file):
        node = self.node
        if file.same_as and file.other_id:
            self._map_of_other(volume, file)
        target = f"{file.peer}:{file.other}" if file.peer else file.other
        fields = {
            "source": volume.name, "target": target, "target_volume": file.other_id or NOBODY, "role": "source", "size": file.size, "leaf": file.leaf,
            "granule": file.granule, "sync_points": file.sync_points, "keep": file.keep, "whole": volume.inspect().size == file.size,
        }  # fmt: skip
        name, runner = node.jobs.by_id(file.job_id)
        job = msgspec.to_builtins(runner.settings) if runner is not None else {"id": file.job_id}
        node.jobs.put(name or file.job, msgspec.convert(job | fields, Job))
        crashpoint("role-job-written")
        node.grants.drop_pair(file.job_id)
        crashpoint("role-pair-written")
        if not file.peer and node.volumes.get(file.other).is_replica():
            self._add_pair(file, node.volumes.get(file.other), volume.name)
        if file.accepted and file.peer in volume.settings.accept:
            node.volumes.change(volume.name, {"accept": [peer for peer in volume.settings.accept if peer != file.peer]})

    def _map_of_other(self, volume, file):
        """Both sides hold the same: what our own map says is true of the other one, under its id. Nobody needs it to be right: without one the next
        run compares."""
        try:
            self._copy_map(volume, file, _free(self.node.state.path) - ROOM)
        except (QrepError, OSError) as error:
            text = f"{getattr(error, 'message', error)}; the first run to {file.peer or file.other} compares instead"
            self.node.events.add("role-map-left-out", text, volume=volume.name, job=file.job)

    def _copy_map(self, volume, file, room):
        geometry = Geometry(file.size, file.leaf, file.granule)
        own = DigestMap(os.path.join(volume.directory, "map"), geometry, bytes.fromhex(volume.settings.id))
        try:
            theirs = DigestMap(self.map_directory(file.job_id), geometry, bytes.fromhex(file.other_id))
            try:
                if own.tag.hex() == file.common:
                    needed = mapcopy.room_for(own, theirs)
                    if needed > room:
                        raise QrepError(f"no room for a map of {units.format_size(needed)} in {self.node.state.path}", code="no-room")
                    mapcopy.become(theirs, bytes.fromhex(file.same_as), own)
            finally:
                theirs.close()
        finally:
            own.close()

    def _finish_replica(self, volume, file):
        node = self.node
        name, runner = node.jobs.by_id(file.job_id)
        if not file.peer:
            if runner is not None and runner.settings.target == volume.name:
                self._add_pair(file, volume, file.other)
            return
        if file.peer not in volume.settings.accept:
            node.volumes.change(volume.name, {"accept": [*volume.settings.accept, file.peer]})
        self._add_pair(file, volume, f"{file.peer}:{file.other}")
        crashpoint("role-pair-written")
        if runner is not None:
            node.jobs.put(name, msgspec.structs.replace(runner.settings, role="target"))
            crashpoint("role-job-written")
            node.jobs.snapshots.let_go_of_kept(name, file.job_id)  # of a generation that this side is no source of any more
            node.db.set_job(file.job_id, "idle", None)

    def _add_pair(self, file, volume, source):
        node = self.node
        node.grants.add_pair(
            file.job_id, peer=file.peer, fingerprint=node.peers.fingerprint(file.peer) if file.peer else "", job=file.job, source=source,
            volume=volume.name, size=file.size, sync_points=file.sync_points, keep=file.keep,
        )  # fmt: skip

    # ---- at start ----

    def recover(self):
        """Before the volumes are: finish changes whose sector was written, and forget those whose sector was not. Raises nothing: what is wrong with
        one volume or job is told of that one, and the others are served."""
        for volume in self.node.volumes.all():
            self._settle(volume)
        for name, runner in self.node.jobs.all():
            try:
                self._put_role(name, runner)
            except Exception as error:  # whatever it is, it is of this job alone
                _log_bug(name, error)
                self.node.events.add("role-unfinished", f"its role cannot be written down: {error or repr(error)}", job=name, reason=getattr(error, "code", "failed"))

    def settle(self, alone):
        """Now and then: try again what could not be finished, in a thread of its own. alone(file): nothing else goes on in the pair of a StandingFile."""
        volumes = [volume for volume in self.node.volumes.all() if volume.unsettled is not None]
        if volumes and self._settling.acquire(blocking=False):
            threading.Thread(target=self._settle_all, args=(volumes, alone), name="unfinished roles", daemon=True).start()

    def _settle_all(self, volumes, alone):
        try:
            for volume in volumes:
                self._settle(volume, alone)
        finally:
            self._settling.release()

    def _settle(self, volume, alone=lambda file: contextlib.nullcontext()):
        file = None
        try:
            file = standings.load(volume.directory)
            if file is None or file.done:
                volume.unsettled = None
                return
            with alone(file):
                self._bring_to_end(volume, file)
        except Exception as error:  # whatever it is, it is of this volume alone
            if error is not volume.unsettled and getattr(error, "code", "") != "busy":  # busy: a command is at it
                _log_bug(volume.name, error)
                self._unfinished(volume, error, file.job if file is not None else None)

    def _bring_to_end(self, volume, file):
        if self._was_written(volume, file):
            self.finish(volume, file)
            self.node.events.add("role-finished", f"{file.role}: it had been interrupted", volume=volume.name, job=file.job)
        else:
            standings.take_back(volume.directory, file)
            volume.unsettled = None
            self.node.events.add("role-taken-back", f"it did not become {file.role}: it had been interrupted before", volume=volume.name, job=file.job)

    def _put_role(self, name, runner):
        role = self.role_of(runner.settings)
        if role not in ("", runner.settings.role):
            self.node.events.add("role-file", f"its file says {runner.settings.role}, its volume that it is the {role}: that is written down", job=name, role=role)
            self.node.jobs.put(name, msgspec.structs.replace(runner.settings, role=role))

    def role_of(self, job):
        """source or target: what the superblock of the volume here says of a config.Job, whose file may be a copy from before a change of roles;
        "": it says nothing."""
        if ":" not in job.target or job.source not in {volume.name for volume in self.node.volumes.all()}:
            return ""
        directory = self.node.volumes.get(job.source).directory
        try:
            file = standings.load(directory)
        except DamagedError:
            return ""
        if file is None or not file.done or file.job_id != job.id:
            return ""
        return {"replica": "target", "primary": "source"}.get(durable_role(directory)[0], "")


def _free(path):
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _log_bug(name, error):
    if not isinstance(error, (QrepError, OSError)):
        log.error("%s: internal error at its last change of role", name, exc_info=error)
