"""The agent as one object: identity, peers, volumes, pairs and jobs, started and stopped together, and their status."""

import fcntl
import logging
import os
import socket
import threading
import time
from datetime import UTC, datetime

from qrep import __version__, config, store, timezone
from qrep.audit import AuditLog
from qrep.daemon import plain, snapshotkeeper, tls
from qrep.daemon.attach import Attachments
from qrep.daemon.clones import Clones
from qrep.daemon.events import EventLog
from qrep.daemon.figures import Figures
from qrep.daemon.grants import Grants
from qrep.daemon.grouptarget import GroupTarget
from qrep.daemon.hooks import Hooks
from qrep.daemon.housekeeping import Housekeeping
from qrep.daemon.retaining import Retaining
from qrep.daemon.identity import Identity
from qrep.daemon.joblist import Jobs
from qrep.daemon.known import KnownPeers
from qrep.daemon.listener import Listener
from qrep.daemon.metrics import Metrics
from qrep.daemon.metricsfile import MetricsFile
from qrep.daemon.network import Network
from qrep.daemon.notify import Notifier
from qrep.daemon.offers import Offers
from qrep.daemon.pairs import Pairs
from qrep.daemon.pathwatch import PathWatch
from qrep.daemon.peertested import Tested
from qrep.daemon.reload import Reload
from qrep.daemon.rolecommands import RoleCommands
from qrep.daemon.roles import Roles
from qrep.daemon.rolesteps import SETTLE_S
from qrep.daemon.scheduler import Scheduler
from qrep.daemon.sessions import Sessions
from qrep.daemon.shapes import Shapes
from qrep.daemon.statedb import StateDb
from qrep.daemon.tasks import Tasks
from qrep.daemon.verifytimes import VerifyTimes
from qrep.daemon.volumes import Volumes
from qrep.daemon.watchdog import Watchdog, summary
from qrep.digesttree import ZERO_FILL_LIMIT
from qrep.errors import Refused
from qrep.jobs.shown import job_dict
from qrep.jobs.slots import Slots
from qrep.protocol import transport
from qrep.source.shared import SharedTokens

log = logging.getLogger("qrep.agent")
ROOT_AT_COMMIT = 256 << 20  # bytes of zeroes whose values may be computed while the volume, and up to 63 others of its group, wait
# Seconds for runs to end, for target volumes, and for all of the end together; with 2 for the API's requests before it and KILLED_S for the
# hooks after it below 10.
STOP_S, END_S = 3.0, 6.5
HOOKS_S = 1.0


class Node:
    """Everything behind the local API. What it and its parts do raises QrepError; what changes something writes an event."""

    def __init__(self, config_dir, state_dir, notifier=None, run_dir=None):
        self.notifier = notifier or Notifier({})
        self.config = config.Config(config_dir)
        self.settings = self.config.node()
        self.time_zone, self._zone = timezone.of_node(self.settings.node.time_zone)
        self.name = self.settings.node.name or socket.gethostname().partition(".")[0]
        self.state = store.Directory(state_dir)
        self._alone = self._hold()
        self.started = datetime.now(UTC)
        self.stopping = threading.Event()
        self.db = StateDb(os.path.join(self.state.path, "state.db"))
        self.audit = AuditLog(self.state)
        self.events = EventLog(self.db, audit=self.audit)
        self.grants = Grants(self.state)
        self.pairs_gone = self.grants.made_new and self.db.newest_event() > 0  # an agent was here before, and with it they were
        self.hooks = Hooks(self.settings.hooks, self.events)
        self.figures, self.metrics, self.metrics_file = Figures(self.events), Metrics(self), MetricsFile(self)
        self.identity = Identity(self.state.sub("keys"), self.name)
        self.tasks = Tasks()
        self.rendezvous = transport.Rendezvous()
        self.slots = Slots(self.settings.limits.jobs_running)
        self.jobs = Jobs(self)
        self.shapes = Shapes(self)
        verifies = VerifyTimes(start=self.jobs.verify, db=self.db, events=self.events)
        self.scheduler = Scheduler(jobs=self.jobs.active, start=self.jobs.starting.start_due, db=self.db, events=self.events, verifies=verifies)
        self.network = Network(
            self.identity, self.settings.node, self.settings.limits, lambda: self.peers.all(), lambda: self.listener,
            self.events, self.state.path,
        )  # fmt: skip
        self.peers = KnownPeers(self.config, self.identity, self.network, self.events, self.jobs.of_peer)
        self.group_target, self.shared_tokens = GroupTarget(self), SharedTokens(self.state)
        self.volumes = Volumes(self.config, self.state, self.events, self.group_target.commits, self.committed, self.note_root)
        self.attachments = Attachments(self, run_dir or os.path.join(self.state.path, "run"))
        self.pairs = Pairs(self)
        self.clones, self.offers = Clones(self), Offers(self)
        self.roles = Roles(self)
        self.switch = RoleCommands(self.roles)
        self.sessions = Sessions(self)
        self.volumes.accept_changed = self.sessions.expel_refused
        self.path_watch = PathWatch(self)
        serve = {
            tls.CONTROL: self.sessions.control, tls.DATA: self.sessions.data, tls.ASK: self.sessions.ask, plain.PURPOSE: self.sessions.plain,
            tls.TEST: Tested(self).serve,
        }  # fmt: skip
        self.listener = Listener(self.settings.limits, self.peers.all, serve, self.events)
        # Bound here, so that a port that is taken is known before a device is touched; open from start() on.
        self.network.start()
        self.jobs.load()
        self.events.group_of = self.jobs.group_of
        self._reload = Reload(self)
        self.housekeeping = Housekeeping()
        self.housekeeping.every(1.0, self.events.tell_suppressed)
        self.housekeeping.every(10.0, self.hooks.tell_dropped)
        self.housekeeping.every(snapshotkeeper.EVERY_S, snapshotkeeper.SnapshotKeeper(self).look)
        self.housekeeping.every(1.0, lambda: self.volumes.abandon_old(self.settings.limits.open_generation))
        self.housekeeping.every(2.0, Retaining(self).look)
        self.housekeeping.every(SETTLE_S, self.roles.settle)
        self.housekeeping.every(60.0, lambda: self.events.prune(self.settings.events))

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
        """Recover the replicas, then open the port, then take up the runs that were going."""
        self._tell_damage()
        self.pairs.once.settle()
        self.clones.settle()
        self.group_target.tell_unsettled()
        self.roles.steps.recover()
        self.volumes.recover(self.pairs.policy_of)
        for pair in self.grants.pairs():
            self.pairs.once.look_after(pair["volume"])
        self.network.open()
        self.events.add("agent-started", f"qrep {__version__}, port {self.settings.node.port}", pid=os.getpid())
        self.attachments.recover()
        self.shapes.start()
        self.jobs.settle_shared()
        self.jobs.take_up()
        self.path_watch.start()
        self.housekeeping.start()
        self.metrics_file.start()
        self.scheduler.start()

    def _tell_damage(self):
        """What was not what had been written, of the records that say so themselves."""
        if self.db.damage:
            self.events.add("records-damaged", self.db.damage)
        if self.grants.healed:
            self.events.add("records-healed", f"{self.grants.healed}; made anew of the other copy")
        if self.pairs_gone:
            self.events.add("records-damaged", "pairs.a and pairs.b were gone: no job writes here until it is deleted and created again where its source is")

    def watch(self, signs):
        """Let systemd know that all is well while `signs` and our own threads show themselves. Before start()."""
        own = {"scheduler": lambda: self.scheduler.looked, "peer port": self.network.seen}
        watchdog = Watchdog(self.notifier, signs | own)
        if watchdog.period_s:
            self.housekeeping.every(watchdog.period_s, watchdog.ping)
            self.housekeeping.every(watchdog.period_s, self.scheduler.wake)
        self.housekeeping.every(5.0, lambda: self.notifier.status(summary([job_dict(runner) for _name, runner in self.jobs.all()])))

    def zone(self):
        """The time zone that schedules are read in."""
        return self._zone

    def stop(self):
        """End runs (what has been applied is kept, and they are taken up at the next start), close the port, release the devices."""
        self.stopping.set()
        deadline = time.monotonic() + END_S
        self.housekeeping.stop()
        self.metrics_file.stop()
        self.scheduler.stop()
        self.listener.stop()
        self.path_watch.stop()
        self.shapes.stop()
        self.jobs.interrupt(min(STOP_S, deadline - time.monotonic()))
        self.network.stop()
        self.attachments.stop()
        busy = self.volumes.close(max(0.0, min(STOP_S, deadline - time.monotonic())))
        text = f"{', '.join(busy)} would not end soon; recovery follows at the next start" if busy else "in order"
        self.events.tell_suppressed(everything=True)
        self.events.add("agent-stopped", text, pid=os.getpid())
        self.hooks.stop(max(0.2, min(HOOKS_S, deadline - time.monotonic())))
        self.hooks.tell_dropped()
        self.group_target.close()
        self.audit.close()
        self.db.close()
        os.close(self._alone)

    def reload(self, dry_run=False):
        """Read every file again: Reload.run()."""
        if dry_run:
            return self._reload.run(dry_run)
        self.notifier.reloading()
        try:
            return self._reload.run()
        finally:
            if not self.stopping.is_set():
                self.notifier.ready()

    def check_unused(self, name):
        """Raise Refused if a job, here or of a peer, uses a volume."""
        users = self.jobs.of_volume(name) or [pair["job"] for pair in self.pairs.of_volume(name)]
        if users:
            raise Refused(
                f"volume {name} is used by job {users[0]}",
                hint=f"qrep job delete {users[0]} (where its source is)",
                code="volume-in-use",
            )
        attached = self.attachments.of_volume(name)
        if attached:
            raise Refused(f"{attached[0]} is attached", hint=f"qrep detach {attached[0]}", code="volume-in-use")

    def remove_volume(self, name):
        self.volumes.get(name)
        self.check_unused(name)
        for pair in self.grants.pairs(name):  # of hosts that are not known any more
            self.grants.drop_pair(pair["job_id"])
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
            "time_zone": self.time_zone,
            "runs": self.slots.as_dict(),
            "fingerprint": self.identity.fingerprint,
            "isa": hasher.isa(),
            "config_dir": self.config.directory,
            "state_dir": self.state.path,
            "front": self.network.status(),
        }

    def set_peer(self, name, trusted):
        """Say whether the paths to a peer are trusted. What goes on with the other answer is cut, in both directions."""
        answer, changed = self.peers.set_trusted(name, trusted)
        if changed:
            self.listener.drop(name)
        return answer

    def remove_peer(self, name):
        self.peers.remove(name)
        self.sessions.expel_refused()
        self.listener.drop(name)
        return {"removed": name}

    def note_root(self, target, zeroes=ZERO_FILL_LIMIT):
        """Remember the root of what is committed: after a session, and at a start, for the agent may have died since the commit. zeroes: bytes of them that
        may be hashed for it while the volume waits."""
        volume_id = target.volume_id.hex()
        with target.lock:
            root, status = target.root(zeroes), target.status()
            if root is not None and status["committed_id"] and self.db.add_root(volume_id, status["committed_id"], root.hex()):
                points = target.sync_points()
                if target.out_of_reach is None:  # else they may come back
                    self.db.keep_roots(volume_id, [point.id.hex() for point in points])

    def committed(self, target):
        """The same at each commit, before a later generation can take its place. What is not known so soon is noted after the session. Does not raise:
        the volume has committed, whatever becomes of this."""
        try:
            self.note_root(target, ROOT_AT_COMMIT)
        except Exception:
            log.exception("%s: the root of what was committed was not noted", target.name)
