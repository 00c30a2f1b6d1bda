"""The agent's side of the process that serves one attachment (qrep.nbd.process): started, handed its descriptors, heard until it ends."""

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
import time

from qrep import packets
from qrep._native import undo_view
from qrep.daemon import confined
from qrep.errors import ProtocolError, QrepError
from qrep.nbd import talk
from qrep.target import view

START_S = 600.0  # it indexes the undo files of the point
END_S = 2.0
TAKE_S = 10  # one that takes nothing for so long is ended
LOOK_S = 0.02  # between two looks at the undo files: they cost us something, and it is not trusted
CONNECTIONS = 16


class AttachServer:
    """target: TargetVolume. point: its id. listening: sockets, which stay the caller's. overlay_fd: or -1.

    on_end(reason): called once, from a thread, when it ended by itself. on_full(), on_lost(reason): as it says so.
    """

    def __init__(self, target, point, *, name, description, listening, overlay_fd, overlay_limit, user, empty_root, on_end, on_full, on_lost):
        self.figures = {name: 0 for name in talk.Figures.__struct_fields__}
        self._target, self._point = target, point
        self._on_end, self._on_full, self._on_lost = on_end, on_full, on_lost
        self._started, self._failure, self._note = threading.Event(), "it ended as it began", ""
        self._ready = None
        self._stopping = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "qrep.nbd.process", str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                env=confined.environment(),
            )  # fmt: skip
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", TAKE_S, 0))
        self._line = packets.Line(ours, talk.SERVER_SAYS, talk.DESCRIPTORS_MAX)
        self._thread = threading.Thread(target=self._listen, name=f"attachment {name}", daemon=True)
        try:
            self._set_up(name, description, listening, overlay_fd, overlay_limit, user, empty_root)
        except BaseException:
            self.stop()
            raise

    def _set_up(self, name, description, listening, overlay_fd, overlay_limit, user, empty_root):
        record = self._target.machine.record
        uid, gid = confined.user(user)
        with contextlib.ExitStack() as opened:
            descriptors = []
            for open_one in (lambda: view.reopen(self._target.device_fd), lambda: undo_view.read_only(self._target.epoch.descriptor)):
                descriptors.append(open_one())
                opened.callback(os.close, descriptors[-1])
            descriptors += [each.fileno() for each in listening] + ([overlay_fd] if overlay_fd >= 0 else [])
            setup = talk.Setup(
                name=name, description=description, size=record.size, align=self._target.device.io_alignment, cell_size=record.granule_size,
                read_only=overlay_fd < 0, overlay_limit=overlay_limit, listening=len(listening), connections=CONNECTIONS, uid=uid, gid=gid,
                empty_root=empty_root,
            )  # fmt: skip
            try:
                self._line.send(setup, *descriptors)
            except packets.Gone as err:
                raise QrepError(f"{name}: its server ended as it began", code="attach-server") from err
        self._thread.start()
        if not self._started.wait(START_S) or self._ready is None:
            raise QrepError(f"{name}: it cannot be served: {self._note or self._failure}", code="attach-server", hint="see the agent's log")

    @property
    def pid(self):
        return self._process.pid

    def rights(self):
        """What is in force, as the kernel says it; None when it has ended."""
        try:
            return confined.rights(self._process.pid) if self._process.poll() is None else None
        except FileNotFoundError:
            return None

    def connect(self):
        """A connected socket on which data may be asked for at once. Raises QrepError."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._line.send(talk.Serve(), theirs.fileno())
            except packets.Gone as err:
                ours.close()
                raise QrepError("the server of the attachment has ended", code="attach-server") from err
        return ours

    def stop(self):
        """End it and wait for that."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._line.socket.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._line.close()

    # ---- what it says ----

    def _listen(self):
        why = self._hear()
        self._started.set()
        if not self._stopping and self._ready is not None:
            self._on_end(why)

    def _hear(self):
        """Until it is gone; why it is."""
        why = None
        try:
            while True:
                packet, descriptors = self._line.receive()
                for each in descriptors:
                    os.close(each)
                if descriptors:
                    raise ProtocolError("a descriptor came, which is not for it to send")
                self._take(packet)
        except packets.Gone:
            pass
        except ProtocolError as err:  # it is not ours any more
            why = f"it does not speak as it should: {err}"
            self._process.kill()
        except Exception as err:  # a bug of ours: told with its place
            why = f"what it said could not be taken: {err!r}"
            self._process.kill()
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return why or self._note or (f"killed by signal {-code}" if code < 0 else f"exit code {code}")

    def _take(self, packet):
        if isinstance(packet, talk.Look):
            self._look()
        elif isinstance(packet, talk.Figures):
            self.figures = {name: getattr(packet, name) for name in packet.__struct_fields__}
        elif isinstance(packet, talk.Ready):
            self._ready = packet
            self._started.set()
        elif isinstance(packet, talk.Failed):
            self._failure = packet.message
        elif isinstance(packet, talk.Full):
            self._on_full()
        elif isinstance(packet, talk.Lost):
            self._on_lost(packet.reason)
        elif isinstance(packet, talk.Note):
            self._note = packet.text.strip().splitlines()[-1] if packet.text.strip() else ""
            print(f"attachment: {packet.text}", file=sys.stderr, flush=True)
        else:
            raise ProtocolError(f"{type(packet).__name__} is not for now")

    def _look(self):
        """Answer with the undo files as they are now; it gets descriptors to read, and marks it cannot write."""
        began = time.monotonic()
        with contextlib.ExitStack() as opened:
            try:
                answer, files = self._way(opened)
            except (QrepError, OSError) as err:
                answer, files = talk.Way(error=str(err)[: talk.TEXT_MAX] or repr(err)), []
            self._line.send(answer)
            for packet, descriptors in files:
                self._line.send(packet, *descriptors)
        time.sleep(max(0.0, LOOK_S - (time.monotonic() - began)))

    def _way(self, opened):
        """(Way, [(File, descriptors)]); what is opened goes with `opened`. Raises QrepError, OSError."""
        while True:
            epoch, files = view.way(self._target, self._point)
            for file in files:
                opened.callback(file.close)
            if len(files) > talk.FILES_MAX:
                raise QrepError(f"{len(files)} undo files lie between")
            try:
                return talk.Way(epoch=epoch, files=len(files)), [_packet(file, opened) for file in files]
            except view.AttemptEnded:
                continue  # while we looked: now its file grows no more


def _packet(file, opened):
    header, descriptors = file.header, [file.descriptor]
    if file.marks is not None:
        descriptors.append(file.marks.open_to_read())
        opened.callback(os.close, descriptors[-1])
    number = file.marks.number if file.marks is not None else 0
    made = talk.File(new=header.new_id, base=header.base_id, attempt=header.attempt, size=header.size, batches=header.batches, marks=number)
    return made, descriptors
