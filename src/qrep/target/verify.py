"""Verify at the target: the device is read and compared with the own map beside everything else, nodes are told, damaged leaves are healed.

A reader has a descriptor and a thread of its own and takes the volume's lock only to hand over what it found, so runs, rollbacks and
status never wait for it; the machine says whether what was read still counts (protocol/target_checks.py).
"""

import contextlib
import itertools
import logging
import mmap
import os
import threading

from qrep._native import hasher
from qrep._native.disk import STATE_HASHED, STATE_MASK
from qrep.crashpoint import crashpoint
from qrep.errors import DeviceReadError, QrepError
from qrep.maptree import UNKNOWN
from qrep.protocol import actions as do
from qrep.protocol import messages as say
from qrep.protocol.transport import Disconnected
from qrep.rehash import Piece, Rehash, independent_root, own_page, read_granule, read_range, tree_of
from qrep.store import flush, write_all

log = logging.getLogger("qrep.target")
READERS_MAX = 4  # the last one works, those before it are told to end and do so within moments


class Reader:
    """One thread that reads the device for a session. work(reader, descriptor): what it does; it ends soon after stopped is set. failed(error): told
    what ended it early, if anything did."""

    def __init__(self, device_fd, work, failed):
        self.stopped = threading.Event()
        self._descriptor = os.dup(device_fd)  # of the same open file: the claim lasts until both are closed (R1)
        self._work, self._failed = work, failed
        self._thread = threading.Thread(target=self._run, name="verify", daemon=True)
        self._thread.start()

    def _run(self):
        try:
            self._work(self, self._descriptor)
        except (OSError, QrepError) as err:
            log.warning("verify: %s", err)
            self._tell(err)
        except Exception as err:  # a bug of ours
            log.exception("verify: internal error")
            self._tell(QrepError(f"internal error: {err!r}", code="internal"))
        finally:
            os.close(self._descriptor)

    def _tell(self, error):
        if not self.stopped.is_set():
            self._failed(error)

    def is_going(self):
        return self._thread.is_alive()

    def end(self):
        """Stop, and wait until the descriptor is closed. Not while the volume's lock is held."""
        self.stopped.set()
        self._thread.join()


class CheckDriver:
    """Mixin of TargetDriver; its handlers run under the volume's lock."""

    _readers = ()  # the last one works or has ended, those before it are about to end
    _tree = None  # (mark, MapTree): what the map says, and what was read since where it says nothing

    def end_checks(self):
        """Before the device is closed, without the lock."""
        for reader in self._readers:
            reader.end()

    def _read_beside(self, action, work):
        """Carry out `work` for the session that asked for `action`; its source waits for an answer, so one that fails is told, too."""

        def failed(error):
            with self.lock:
                if self.device_fd >= 0 and action.handle in self._channels:
                    self.execute(self.machine.failed(action, error))

        going = [reader for reader in self._readers if reader.is_going()]
        if len(going) >= READERS_MAX:
            raise QrepError(f"{len(going)} readings are about to end; no more is begun before", code="busy")
        for reader in going:
            reader.stopped.set()  # not waited for: it may be waiting for the lock that is held here
        self._readers = (*going, Reader(self.device_fd, work, failed))

    def _session_ended(self):
        """What was kept for questions goes with the last session: it takes as much as the map."""
        if not self._channels:
            self._tree = None

    def _tree_of(self, mark):
        if self._tree is None or self._tree[0] != mark:
            self._tree = mark, tree_of(self.digest_map, known=self.digest_map.tag == mark[0])
        return self._tree[1]

    def _start_check(self, action):
        tree, handle, mark = self._tree_of(action.mark), action.handle, action.mark
        sector_size = self.device.io_alignment

        def work(reader, descriptor):
            def stopped():
                return reader.stopped.is_set() or handle not in self._channels or mark != self.machine.mark()

            rehash, differ = Rehash(descriptor, tree, sector_size, action.rate, stopped), 0
            for piece in rehash.only(self._unknown_before(tree, action.first)):  # of this end's life before the last restart
                self._adopt(mark, tree, piece)
            for piece in itertools.chain(rehash.only(action.again), rehash.pieces(action.first)):
                self._adopt(mark, tree, piece)
                last = piece.first >= action.first and piece.first + piece.count == self.geometry.granules
                message, differ = self._checked(piece, last), differ + len(piece.bad) + len(piece.unreadable) + len(piece.whole)
                if message.done and differ:
                    self.tell("device-differs", f"{self.name} is not what was committed in {differ} place{'' if differ == 1 else 's'} that a verify read", places=differ)
                self._say_beside(reader, handle, mark, message)
            if action.first == self.geometry.granules or mark != self.machine.mark():
                self._say_beside(reader, handle, mark, self._checked(Piece(self.geometry.granules, 0, 0), True))

        self._read_beside(action, work)

    @staticmethod
    def _unknown_before(tree, first):
        return [granule for granule in range(first) if not tree.known(granule)] if UNKNOWN in tree.kinds[:first] else []

    def _adopt(self, mark, tree, piece):
        """Note what the map does not know, if it was the committed generation that was read."""
        with self.lock:
            if mark == self.machine.mark():
                for granule, (kind, value) in piece.fresh.items():
                    tree.adopt(granule, kind, value)

    @staticmethod
    def _checked(piece, done):
        return say.Checked(
            first=piece.first, count=piece.count, size=piece.size, bad=[say.BadLeaf(leaf, value) for leaf, value in piece.bad], whole=piece.whole,
            unreadable=[say.Extent(offset, size) for offset, size in piece.unreadable], unknown=len(piece.fresh),
            done=done,
        )  # fmt: skip

    def _say_beside(self, reader, handle, mark, message):
        """From a reader: have the machine say it, if it still counts."""
        with self.lock:
            if self.device_fd >= 0 and handle in self._channels and not reader.stopped.is_set():
                self.execute(self.machine.checked(handle, mark, message))

    def _start_root(self, action):
        geometry, sector_size, handle, mark, rate = self.geometry, self.device.io_alignment, action.handle, action.mark, action.rate

        def progress(done):
            channel = self._channels.get(handle)
            if channel is not None:
                with contextlib.suppress(Disconnected):  # the thread of that session sees it, too
                    channel.send(say.Progress(received=0, written=done, undo=0))

        def work(reader, descriptor):
            def stopped():
                return reader.stopped.is_set() or handle not in self._channels or mark != self.machine.mark()

            root = independent_root(descriptor, geometry, sector_size, progress, stopped, rate)
            self._say_beside(reader, handle, mark, say.Root(root=root or bytes(32)))  # None: it was stopped, and nobody is told, or the mark moved

        self._read_beside(action, work)

    def _send_nodes(self, action):
        kinds, values = self._tree_of(action.mark).nodes(action.level, action.indexes)
        self._reply(do.Reply(action.handle, say.Nodes(level=action.level, kinds=kinds, values=values)))

    # ---- repair ----

    def _repair_leaf(self, action):
        why = self._repair(action.leaf, action.data)
        log.info("%s: leaf at %d: %s", self.name, action.leaf * self.geometry.leaf_size, why or "healed")
        self._reply(do.Reply(action.handle, say.Repaired(leaf=action.leaf, healed=not why, why=why)))

    def _repair(self, leaf, data):
        """"", or why the leaf was left as it is. A kill at any moment leaves it damaged, healed, or some sectors of either: what is written is
        the content of the committed generation, so no sector gets worse, and nothing else can be opened before this has ended."""
        geometry = self.geometry
        offset = leaf * geometry.leaf_size
        refusal = self._is_not_ours(leaf, offset, data)
        if refusal:
            return refusal
        buffer = mmap.mmap(-1, len(data))  # whole sectors: the machine takes no volume whose size is not
        buffer[:] = data
        crashpoint("target-repair-before")
        try:
            write_all(self.device_fd, buffer, offset)
        except OSError as err:
            log.warning("%s: a damaged leaf at %d does not take a write: %s", self.name, offset, err)
            return "write"
        crashpoint("target-repair-written")
        flush(self.device_fd, self.device.path)
        crashpoint("target-repair-durable")
        try:
            return "" if bytes(read_range(self.device_fd, buffer, offset, len(data), self.device.io_alignment)) == data else "write"
        except DeviceReadError:
            return "write"

    def _is_not_ours(self, leaf, offset, data):
        """Why `data` is not what the own map says of this leaf; "" if it is."""
        tree, geometry = self._tree_of(self.machine.mark()), self.geometry
        granule = leaf >> tree.granule_level
        known = self.digest_map.tag == self.machine.record.committed_id
        page = own_page(tree, granule) if known else None
        place = leaf - (granule << tree.granule_level)
        if page is not None:
            return "" if hasher.subtree(data, offset, geometry.leaf_size) == bytes(page[place * 32 : place * 32 + 32]) else "map"
        # The value of the granule is known, those of its leaves are not: it must come out right with this leaf in it.
        if not known or self.digest_map.states[granule] & STATE_MASK != STATE_HASHED:
            return "unknown"
        buffer = mmap.mmap(-1, geometry.granule_size)
        try:
            whole = read_granule(self.device_fd, geometry, granule, buffer, self.device.io_alignment)
        except DeviceReadError:
            return "unknown"
        at = place * geometry.leaf_size
        whole[at : at + len(data)] = data
        value = hasher.subtree(whole, granule * geometry.granule_size, geometry.leaf_size)
        return "" if value == tree.node(tree.granule_level, granule)[1] else "map"

    handlers = {
        do.StartCheck: _start_check, do.StartRoot: _start_root, do.SendNodes: _send_nodes, do.RepairLeaf: _repair_leaf,
    }  # fmt: skip
