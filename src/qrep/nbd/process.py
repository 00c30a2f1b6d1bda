"""The server of one attachment as a process: `python -m qrep.nbd.process N`, N being the descriptor of its line to the agent.

It parses what strangers send, so it has no rights: no file but those it was handed (the device and the undo files to read, its own overlay), no new
socket, no other process. It ends when the agent does.
"""

import contextlib
import mmap
import os
import queue
import socket
import sys
import threading
import time

from qrep import lockdown, packets
from qrep._native import disk, sandbox, undo_view
from qrep.errors import DamagedError, NotFound, ProtocolError, QrepError
from qrep.nbd import talk
from qrep.nbd.handshake import Export
from qrep.nbd.overlay import Overlay
from qrep.nbd.server import Server
from qrep.target import view

ANSWER_S = 60.0  # the agent has for a look at the undo files
FIGURES_S = 1.0
FULL_S = 60.0  # between two that say so
FLUSH_FAILED = 1


class Marks:
    """As view.Marks, handed over."""

    def __init__(self, number, descriptor):
        self.number = number
        self.memory = mmap.mmap(descriptor, undo_view.REACH_SIZE, prot=mmap.PROT_READ)
        os.close(descriptor)


class HandedReader(view.Reader):
    """A point whose undo files the agent hands over. line: packets.Line. answers: queue of what came with Way; None: the agent is gone."""

    def __init__(self, line, answers, device_fd, epoch, setup):
        super().__init__(device_fd, setup.size, setup.align, setup.cell_size, epoch)
        self._line, self._answers = line, answers
        self._told = False

    def read_into(self, buffer, offset):
        with self._telling():
            super().read_into(buffer, offset)

    def renew(self):
        with self._telling():
            super().renew()

    @contextlib.contextmanager
    def _telling(self):
        """What is for good, the agent's people are to know, once."""
        try:
            yield
        except (DamagedError, NotFound, view.Gone) as err:
            told, self._told = self._told, True
            if not told:
                with contextlib.suppress(packets.Gone):
                    self._line.send(talk.Lost(reason=str(err)[: talk.TEXT_MAX]))
            raise

    def _list(self):
        self._line.send(talk.Look())
        try:
            answer = self._answers.get(timeout=ANSWER_S)
        except queue.Empty:
            raise OSError(f"the agent says nothing for {ANSWER_S:g} s") from None
        if isinstance(answer, tuple):
            return answer
        raise view.Gone(answer)


class Nbd:
    """line: packets.Line to the agent. setup, descriptors: the first packet, and what came with it."""

    def __init__(self, line, setup, descriptors):
        self.line, self.setup = line, setup
        self._answers = queue.Queue()
        self._told_full = 0.0
        device_fd, epoch_fd, *others = descriptors
        self._listening = [socket.socket(fileno=each) for each in others[: setup.listening]]
        self._kept = {device_fd, *others}
        self._epoch = epoch = mmap.mmap(epoch_fd, view.PAGE, prot=mmap.PROT_READ)
        os.close(epoch_fd)
        self.reader = content = HandedReader(line, self._answers, device_fd, epoch, setup)
        self._overlay = None
        if not setup.read_only:
            self._overlay = content = Overlay(content, others[setup.listening], setup.overlay_limit)
        export = Export(setup.name, setup.description, setup.size, read_only=setup.read_only)
        self.server = Server(export, content, setup.connections, on_flush_failed=self._end, on_bug=self._note, on_full=self._full)

    def descriptors(self):
        return self._kept

    def first_look(self):
        """Index what there is, before anybody may ask. Packets are taken by a thread of their own from here on."""
        threading.Thread(target=self._hear, name="agent", daemon=True).start()
        self.reader.renew()

    def serve(self):
        for listening in self._listening:
            threading.Thread(target=self.server.listen, args=(listening,), name="port", daemon=True).start()
        told, epoch = None, 0
        while True:
            if undo_view.read_counter(self._epoch) != epoch:  # also when nobody reads: files that went away are not held open for long
                epoch = undo_view.read_counter(self._epoch)
                with contextlib.suppress(QrepError, OSError):  # who reads next gets it
                    self.reader.renew()
            figures = self.server.figures() | {"overlay": self._overlay.used if self._overlay is not None else 0}
            if figures != told:
                self.line.send(talk.Figures(**figures))
                told = figures
            time.sleep(FIGURES_S)

    def _hear(self):
        """What the agent says, until it is gone: then so are we."""
        try:
            while True:
                packet, descriptors = self.line.receive()
                if isinstance(packet, talk.Way):
                    self._answers.put(self._way(packet))
                elif isinstance(packet, talk.Serve) and len(descriptors) == 1:
                    self.server.serve(socket.socket(fileno=descriptors[0]), trusted=True)
                else:
                    raise ProtocolError(f"{type(packet).__name__} is not for now")
        except packets.Gone:
            os._exit(0)
        except BaseException as err:
            self._note(err)
            os._exit(1)

    def _way(self, packet):
        if packet.error:
            return packet.error
        files = []
        for _ in range(packet.files):
            file, descriptors = self.line.receive()
            if not isinstance(file, talk.File) or len(descriptors) != 1 + bool(file.marks):
                raise ProtocolError("a File was to come")
            header = disk.UndoHeader(base_id=file.base, new_id=file.new, attempt=file.attempt, size=file.size, batches=file.batches)
            files.append(view.File(header, descriptors[0], Marks(file.marks, descriptors[1]) if file.marks else None))
        return packet.epoch, files

    def _full(self):
        now = time.monotonic()
        if now - self._told_full > FULL_S:
            self._told_full = now
            with contextlib.suppress(packets.Gone):
                self.line.send(talk.Full())

    def _note(self, err):
        note(self.line, err)

    def _end(self, text):
        with contextlib.suppress(packets.Gone):
            self.line.send(talk.Note(text=text[: talk.TEXT_MAX]))
        os._exit(FLUSH_FAILED)


def note(line, exception):
    lockdown.note(line, talk.Note, exception, talk.TEXT_MAX)


def prepare(line, setup, descriptors):
    """The Nbd, locked down, its first look done. Raises QrepError, OSError."""
    server = Nbd(line, setup, descriptors)
    lockdown.warm_up()
    undo_view.read_counter(bytearray(8))
    lockdown.keep_only({line.socket.fileno(), *server.descriptors()})
    rights = sandbox.enter(
        files=64 + setup.connections + 2 * talk.FILES_MAX, uid=setup.uid, gid=setup.gid, empty_root=setup.empty_root or None, storage=True
    )
    server.first_look()
    line.send(talk.Ready(**rights))
    return server


def main(descriptor):
    lockdown.begin()
    line = packets.Line(socket.socket(fileno=descriptor), talk.AGENT_SAYS, talk.DESCRIPTORS_MAX)
    lockdown.tell_bugs(lambda exception: note(line, exception))
    try:
        setup, descriptors = line.receive()
        if not isinstance(setup, talk.Setup) or len(descriptors) != 2 + setup.listening + (not setup.read_only):
            raise ProtocolError("it begins with Setup")
        try:
            server = prepare(line, setup, descriptors)
        except (QrepError, OSError) as err:
            line.send(talk.Failed(message=str(err)[: talk.TEXT_MAX]))
            return 1
        server.serve()
    except packets.Gone:
        return 0
    except BaseException as err:
        note(line, err)
        return 1


if __name__ == "__main__":
    code = main(int(sys.argv[1]))
    os._exit(code)  # threads may be busy with clients
