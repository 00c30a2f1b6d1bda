"""Attachments: sync points as devices or exports, each served by a process of its own, while replication goes on underneath.

What ends one: `qrep detach`, the end of the agent, the end of its process, and its volume going out of service. What was written to one is thrown away
with it. Nothing is attached anew by itself: whoever uses it would not know that what he wrote is gone.
"""

import contextlib
import errno
import os
import socket
import stat
import tempfile
import threading
from datetime import UTC, datetime

from qrep import sealed, units
from qrep.daemon import attachdevice, snapshots
from qrep.daemon.attachserver import AttachServer
from qrep.daemon.attachdevice import FuseDevice, KernelDevice
from qrep.errors import DamagedError, NotFound, QrepError, Refused, UsageError
from qrep.jobs.shown import iso
from qrep.nbd import kernel
from qrep.nbd.handshake import Export
from qrep.settings import check_address

PATH_MAX = 107  # bytes of a unix socket's path
ATTACHMENTS_MAX = 32
FACTS_MAX = 4096  # bytes
NOTES, SUFFIX = "attached", ".json"  # below the state directory: one file for each device that is to be taken away


class Attachment:
    """One. name: VOLUME@POINT. Everything of it is in `opened`, closed last made first."""

    def __init__(self, name, volume, found, *, read_only, nbd, limit):
        self.name, self.volume, self.point, self.read_only, self.nbd, self.limit = name, volume, found, read_only, nbd, limit
        self.since = datetime.now(UTC)
        self.opened = contextlib.ExitStack()
        self.server = self.device = None
        self.socket_path, self.addresses = "", []
        self.error = ""  # why it is of no use any more
        self.made = False  # all of it is there: until then nobody takes it apart but who makes it

    def as_dict(self):
        server, figures = self.server, self.server.figures if self.server is not None else {}
        path = self.device.path if self.device is not None else None
        in_use = attachdevice.users(path) if path else ""
        return {
            "name": self.name, "volume": self.volume, "point": str(self.point.counter), "id": self.point.id.hex(), "read_only": self.read_only,
            "device": path, "by": self.device.kind if self.device is not None else None, "socket": self.socket_path,
            "addresses": self.addresses, "since": self.since.isoformat(timespec="seconds"), "in_use": in_use, "error": self.error,
            "space": None if self.read_only else {"used": figures.get("overlay", 0), "limit": self.limit},
            "connections": figures.get("connections", 0), "read": figures.get("read", 0), "written": figures.get("written", 0),
            "pid": server.pid if server is not None and not self.error else None,
        }  # fmt: skip


class Attachments:
    """node: the Node. directory: for sockets."""

    def __init__(self, node, directory):
        self.node, self.path = node, os.path.join(directory, "attached")
        self._lock = threading.RLock()
        self._all = {}
        self._left = {}  # name -> facts of what an earlier agent left and could not be taken away

    def list(self):
        with self._lock:
            found, left = list(self._all.values()), list(self._left.items())
        return [each.as_dict() for each in sorted(found, key=lambda each: each.name)] + [_left_dict(name, facts) for name, facts in left]

    def of_volume(self, volume):
        """Names of what is attached of a volume."""
        with self._lock:
            return [name for name, each in self._all.items() if each.volume == volume]

    # ---- attach ----

    def attach(self, task, volume, *, point="", read_only=False, nbd=None, space=""):
        """nbd: None for a block device; "" for the unix socket alone; ADDRESS:PORT beside it. space: of what may be written. Returns its as_dict()."""
        address = _address(nbd) if nbd else None
        managed = self.node.volumes.get(volume)
        target = managed.replica()
        if point:
            target, found, _points = snapshots.find(self.node, volume, point)
        else:
            points = target.sync_points()
            if not points:
                raise NotFound(f"{volume} has no sync point yet", hint="it has one when its job's first run is committed", code="no-such-point")
            found = points[0]
        name = f"{volume}@{found.counter}"
        limit = self._limit(space, target) if not read_only else 0
        made = Attachment(name, volume, found, read_only=read_only, nbd=nbd, limit=limit)
        with self._lock:
            if name in self._all or name in self._left:
                raise Refused(f"{name} is attached already", hint=f"qrep attach shows it; qrep detach {name}", code="attached")
            if len(self._all) >= ATTACHMENTS_MAX:
                raise Refused(f"{ATTACHMENTS_MAX} sync points are attached", hint="qrep detach one of them", code="too-many")
            self._all[name] = made
        try:
            self._make(made, target, address)
            made.made = True
        except BaseException:
            with self._lock:
                del self._all[name]
            made.opened.close()
            raise
        what = made.device.path if made.device is not None else ", ".join([made.socket_path, *made.addresses])
        self.node.events.add("attached", f"{name} as {what}{' (read-only)' if read_only else ''}", volume=volume, point=str(found.counter))
        return made.as_dict()

    def _limit(self, text, target):
        """Bytes. What others may write yet is not free: clients, who may be strangers, must not fill the filesystem that the replicas' state is on."""
        free = os.fstatvfs(self.node.state.descriptor)
        with self._lock:
            promised = sum(each.limit - (min(each.limit, each.server.figures["overlay"]) if each.server is not None else 0) for each in self._all.values())
        room = free.f_bavail * free.f_frsize - promised
        size = target.machine.record.size
        limit = units.parse_space(text, size) if text else min(size, room // 2)
        if limit <= 0:
            raise UsageError(f"{text or units.format_size(max(0, room))}: no space to write to", hint="--space 1G, or --read-only")
        if min(limit, size) > room:
            raise Refused(
                f"{units.format_size(limit)} may be written, and {self.node.state.path} has {units.format_size(max(0, room))} free for it", code="no-space",
                hint="a smaller --space, or --read-only",
            )  # fmt: skip
        return limit

    def _make(self, made, target, address):
        made.opened.enter_context(target.pin(made.point.id))
        self._check_directory()
        listening = [self._unix_socket(made)]
        if address is not None:
            listening.append(_tcp_socket(made, address))
        overlay_fd = -1
        if not made.read_only:
            overlay_fd = _overlay(self.node.state.path)
            made.opened.callback(os.close, overlay_fd)
        try:
            made.server = AttachServer(
                target, made.point.id, name=made.name, description=_describe(self.node, made), listening=listening, overlay_fd=overlay_fd,
                overlay_limit=made.limit, user=self.node.settings.node.user, empty_root=self.node.state.path,
                on_end=lambda why: self._ended(made, why), on_full=lambda: self._full(made), on_lost=lambda why: self._lost(made, why),
            )  # fmt: skip
        finally:
            for each in listening:
                each.close()  # it is the server's
        made.opened.callback(made.server.stop)
        if made.nbd is None:
            self._make_device(made, target)

    def _check_directory(self):
        """Sockets and what is mounted lie in it: nobody else may have made it, or may change what is in it."""
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        found = os.lstat(self.path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise Refused(f"{self.path} is not a directory of the agent's alone", hint="look whose it is, then remove it; the agent makes it anew", code="directory")

    def _make_device(self, made, target):
        if kernel.available():
            export = Export(made.name, "", target.machine.record.size, read_only=made.read_only)
            made.device = KernelDevice(made.server, export.size, export.flags)
        else:
            made.device = FuseDevice(os.path.join(self.path, made.name), made.socket_path, read_only=made.read_only)
        made.opened.callback(self._close_device, made)
        self._note(made.name, made.device.facts())

    def _close_device(self, made):
        """What cannot be taken away stays written down, for a detach once it can."""
        try:
            made.device.close()
        except (QrepError, OSError):
            self._left[made.name] = made.device.facts()
            raise
        self._forget(made.name)

    def _unix_socket(self, made):
        path = os.path.join(self.path, f"{made.name}.sock")
        if len(os.fsencode(path)) > PATH_MAX:
            raise UsageError(f"{path} is too long for a unix socket", hint="a shorter --socket of the agent: its directory is used")
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # of an agent that was killed: there is one agent per state directory, and one name here
        mask = os.umask(0o177)
        try:
            listening.bind(path)
        finally:
            os.umask(mask)
        made.opened.callback(_unlink, path)
        listening.listen(64)
        made.socket_path = path
        return listening

    # ---- what is written down ----

    def _note(self, name, facts):
        with self.node.state.sub(NOTES) as directory:
            sealed.write(directory, name + SUFFIX, facts)

    def _forget(self, name):
        with self.node.state.sub(NOTES) as directory:
            directory.remove(name + SUFFIX)

    # ---- what happens to one ----

    def _ended(self, made, why):
        made.error = f"its server ended: {why}"
        self.node.events.add("attach-ended", f"{made.name}: {made.error}; what was written to it is gone", volume=made.volume)

    def _lost(self, made, why):
        made.error = why
        self.node.events.add("attach-ended", f"{made.name} cannot be read any more: {why}", volume=made.volume)
        if made.server is not None:
            made.server.stop()  # it lets go of the device and of the undo files

    def _full(self, made):
        text = f"{made.name}: {units.format_size(made.limit)} were written, which is its limit; whoever writes is told that there is no space"
        self.node.events.add("attach-full", text, volume=made.volume)

    # ---- detach ----

    def detach(self, name):
        """name: VOLUME@POINT, or VOLUME if one point of it is attached. Raises NotFound, Refused while its device is in use."""
        with self._lock:
            name = self._resolve(name)
            if name in self._left:
                return self._take_left(name)
            made = self._all[name]
            if not made.made:
                raise Refused(f"{name} is being attached", hint="try again in a moment", code="busy")
            self._check_unused(made)
            written = made.server.figures["written"]
            try:
                made.opened.close()
            finally:
                del self._all[name]
        self.node.events.add("detached", name, volume=made.volume)
        return {"detached": name, "written": written}

    def _resolve(self, name):
        names = [*self._all, *self._left]
        if name in names:
            return name
        found = [each for each in names if each.rpartition("@")[0] == name]
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(f"of {name} are attached: {', '.join(found)}", hint="name one of them")
        raise NotFound(f"{name} is not attached", hint="qrep attach lists what is", code="not-attached")

    @staticmethod
    def _check_unused(made):
        use = attachdevice.users(made.device.path) if made.device is not None else ""
        if use:
            raise Refused(f"{made.name} is in use: {use} ({made.device.path})", hint=_way_out(use), code="attach-in-use")

    def _take_left(self, name):
        facts = self._left[name]
        use = attachdevice.users_of(facts)
        if use:
            raise Refused(f"{name} is in use: {use} ({facts['path']})", hint=_way_out(use), code="attach-in-use")
        attachdevice.take_away(facts)
        self._forget(name)
        del self._left[name]
        return {"detached": name, "written": 0}

    # ---- the agent's life ----

    def recover(self):
        """At start: take away what an earlier agent left. Its servers ended with it."""
        with self.node.state.sub(NOTES) as directory:
            directory.sweep()
            names = [name.removesuffix(SUFFIX) for name in directory.names() if name.endswith(SUFFIX)]
            facts = {name: _read_facts(directory, name) for name in names}
        for name, each in facts.items():
            self._left[name] = each
            try:
                self._take_left(name)
                text = f"{name} was attached when the agent ended; it is not any more, and what was written to it is gone"
            except (QrepError, OSError) as err:
                text = f"{name} was attached when the agent ended, gives errors now and could not be taken away: {err}"
            self.node.events.add("attach-ended", text, volume=name.rpartition("@")[0])

    def stop(self):
        """At the end: all go. What is mounted gives errors from here on, and is taken away by the next start once it is not."""
        with self._lock:
            for made in [each for each in self._all.values() if each.made]:  # what is being made ends with us
                use = attachdevice.users(made.device.path) if made.device is not None else ""
                try:
                    if use:
                        made.server.stop()
                    else:
                        made.opened.close()
                except (QrepError, OSError) as err:
                    use = str(err)
                if use:
                    self.node.events.add("attach-ended", f"{made.name}: the agent ends, and {use}: it gives errors from here on", volume=made.volume)
            self._all.clear()


def _left_dict(name, facts):
    volume, _at, point = name.rpartition("@")
    return {
        "name": name, "volume": volume, "point": point, "id": None, "read_only": None, "device": facts.get("path") or None, "by": facts.get("kind"),
        "socket": "", "addresses": [], "since": None, "in_use": attachdevice.users_of(facts),
        "error": "the agent that served it has ended", "space": None, "connections": 0, "read": 0, "written": 0, "pid": None,
    }  # fmt: skip


def _read_facts(directory, name):
    """{} where nothing can be believed: then there is nothing that could be taken away."""
    try:
        facts = sealed.read(directory, name + SUFFIX, FACTS_MAX)
    except (OSError, DamagedError):
        return {}
    return {key: value for key, value in facts.items() if isinstance(value, str)} if isinstance(facts, dict) else {}


def _describe(node, made):
    when = iso(made.point.frozen_at_ns or made.point.committed_at_ns)
    return f"sync point {made.point.counter} of {node.name}:{made.volume}" + (f", {when}" if when else "")


def _address(text):
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not port.isascii() or not 0 < int(port) < 65536:
        raise UsageError(f"{text!r} is not ADDRESS:PORT", hint="such as --nbd 10.0.1.2:10809; --nbd alone: only a unix socket")
    check_address(host)
    return host, int(port)


def _tcp_socket(made, address):
    host, port = address
    try:
        family, *_rest, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(place[:2], family=family, backlog=64)
    except OSError as err:
        raise Refused(f"{host}:{port}: {err.strerror or err}", hint="name an address of this host and a port that is free", code="address") from err
    made.addresses = [f"{host}:{port}"]
    return listening


def _overlay(directory):
    """A file that nobody can find: it goes with its last descriptor, however we end."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as err:
        if err.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
    descriptor, path = tempfile.mkstemp(prefix="attached.", dir=directory)  # a filesystem without such files
    os.unlink(path)
    return descriptor


def _unlink(path):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _way_out(use):
    return f"umount {use.removeprefix('it is mounted on ')}" if use.startswith("it is mounted on ") else "stop what uses it first"
