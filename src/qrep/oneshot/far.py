"""The far end of a copy over ssh: one process per control session, and helpers that bring it the data streams of their ssh.

`qrep serve --stdio` holds the device. `qrep serve --join PATH` was started by another ssh: it hands its standard input and output to
the first through a private socket, and stays until it is told that they are done with, because sshd ends a session with its process.
"""

import contextlib
import os
import secrets
import socket
import stat
import struct
import threading

from qrep.errors import ProtocolError, QrepError, UsageError
from qrep.oneshot import opening
from qrep.oneshot.target import CopyTarget
from qrep.protocol import transport

HELLO = b"qrep join 1"
HANDSHAKES_MAX = 32


class HandedConnection(transport.DataConnection):
    """A data connection whose descriptors a helper brought. helper: the socket to it; closing that lets it go."""

    def __init__(self, stream, index, helper):
        super().__init__(stream, index)
        self._helper = helper

    def interrupt(self):
        super().interrupt()
        with contextlib.suppress(OSError):
            self._helper.shutdown(socket.SHUT_RDWR)  # the helper ends, then sshd closes the other ends of its pipes

    def close(self):
        super().close()
        self._helper.close()


def address_of(name):
    """Of a helper's door: @NAME has no file, so nothing is left behind by whoever is killed; who comes is asked for its user."""
    if not name.startswith("@"):
        raise UsageError(f"{name!r} is no door of a copy", hint="only `qrep copy` calls this")
    return "\0" + name[1:]


def stream_of(receive_fd, send_fd):
    """One stream of two descriptors: a socket if they are one, as sshd may give; else a PipeStream."""
    receive, send = os.fstat(receive_fd), os.fstat(send_fd)
    if stat.S_ISSOCK(receive.st_mode) and receive.st_ino == send.st_ino:
        os.close(send_fd)
        return socket.socket(fileno=receive_fd)
    return transport.PipeStream(receive_fd, send_fd)


class _Blocking:
    """A PipeStream for the opening, where one thread asks and waits."""

    def __init__(self, stream):
        self.stream = stream
        for descriptor in (stream.receive_fd, stream.send_fd):
            os.set_blocking(descriptor, True)

    def __getattr__(self, name):
        return getattr(self.stream, name)


def serve(receive_fd, send_fd, *, state_dir, config_dir):
    """Serve one control session to its end. Returns the exit code."""
    stream = stream_of(receive_fd, send_fd)
    talk = stream if isinstance(stream, socket.socket) else _Blocking(stream)
    try:
        offer = opening.hear(talk, opening.Offer)
        if offer.version != opening.VERSION:
            raise ProtocolError(f"the near end speaks version {offer.version}, this one {opening.VERSION}", hint="update the older one")
        target = CopyTarget(
            offer.target, size=offer.size, source=offer.source, state_dir=state_dir, config_dir=config_dir, leaf_size=offer.leaf_size,
            granule_size=offer.granule_size, overwrite=offer.overwrite, mark=offer.mark,
        )  # fmt: skip
        facts = target.check()
        if offer.dry_run:
            opening.say(talk, opening.Answer(volume_id=getattr(target, "volume_id", b""), **facts))
            return 0
        volume = target.open()
        facts |= {"known": target.known, "compare": target.compare}  # as they were when it was taken
    except (OSError, QrepError) as error:
        opening.say(talk, opening.refusal(error))
        return error.exit_code if isinstance(error, QrepError) else 1
    rendezvous = transport.Rendezvous()
    try:
        with Doors(rendezvous, offer.certificate) as doors:
            opening.say(talk, opening.Answer(volume_id=target.volume_id, **facts, **doors.where))
            volume.serve(transport.Channel(stream, "source"), rendezvous)
    finally:
        target.close()
    return 0


class Doors:
    """Where data connections come in, for as long as the session lasts: helpers, or TLS when the near end gave a certificate."""

    def __init__(self, rendezvous, certificate):
        self._rendezvous, self._certificate = rendezvous, certificate
        self._slots = threading.BoundedSemaphore(HANDSHAKES_MAX)

    def __enter__(self):
        if self._certificate:
            self._listening, self.where = self._listen_tls()
        else:
            name = f"@qrep-copy-{secrets.token_hex(16)}"
            self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listening.bind(address_of(name))
            self._listening.listen(64)
            self.where = {"join": name}
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_exception):
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _listen_tls(self):
        from qrep import config
        from qrep.daemon import tls
        from qrep.oneshot.keys import OneUseIdentity, fingerprint_of_pem

        try:
            fingerprint = fingerprint_of_pem(self._certificate)
        except ValueError as err:
            raise ProtocolError(f"the near end's certificate is none: {err}") from err
        identity = OneUseIdentity()
        self._peers = {"near": config.Peer(addresses=["near"], fingerprint=fingerprint, certificate=self._certificate)}
        self._context = tls.server_context(identity, [self._certificate])
        identity.close()  # the context has read it
        dual = socket.has_dualstack_ipv6()
        listening = socket.create_server(("", 0), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual)
        return listening, {"port": listening.getsockname()[1], "certificate": identity.certificate}

    def _accept(self):
        take = self._take_tls if self._certificate else self._take_helper
        while True:
            try:
                plain, _address = self._listening.accept()
            except OSError:  # closed: the session has ended
                return
            if not self._slots.acquire(blocking=False):
                plain.close()
                continue
            threading.Thread(target=self._guarded, args=(take, plain), daemon=True).start()

    def _guarded(self, take, plain):
        """A stranger at the door costs nothing but its own connection."""
        try:
            take(plain)
        except (OSError, QrepError):
            plain.close()
        finally:
            self._slots.release()

    def _take_tls(self, plain):
        from qrep.daemon import tls

        stream = tls.wrap(self._context, plain)
        try:
            _name, purpose = tls.accept(stream, self._peers)
            if purpose != tls.DATA:
                raise ProtocolError("only data connections come in here")
            tls.welcome(stream)
        except (OSError, QrepError):
            stream.close()
            raise
        self._deliver(stream, lambda ready, index: transport.DataConnection(ready, index))

    def _take_helper(self, helper):
        _pid, uid, _gid = struct.unpack("3i", helper.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        if uid != os.geteuid():
            raise ProtocolError("a helper of another user")
        helper.settimeout(10.0)
        hello, descriptors, _flags, _address = socket.recv_fds(helper, len(HELLO), 2)
        if hello != HELLO or len(descriptors) != 2:
            for descriptor in descriptors:
                os.close(descriptor)
            raise ProtocolError("not a helper of qrep")
        helper.settimeout(None)
        self._deliver(stream_of(*descriptors), lambda ready, index: HandedConnection(ready, index, helper))

    def _deliver(self, stream, make):
        channel = transport.Channel(stream, "source")
        join = transport.admit(channel)
        token = getattr(join, "token", None)
        taken = token is not None and self._rendezvous.deliver(token, lambda index: make(transport.welcome(channel, index), index))
        if taken is None or taken is False:
            channel.close()
            raise ProtocolError("nobody waits for this data connection")


def join(path, receive_fd, send_fd):
    """The helper: hand over the two descriptors and wait until they are done with."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        try:
            door.connect(address_of(path))
            socket.send_fds(door, [HELLO], [receive_fd, send_fd])
        except OSError as err:
            raise UsageError(f"{path}: {err.strerror}", hint="only `qrep copy` calls this") from err
        os.close(receive_fd)
        os.close(send_fd)
        door.recv(1)  # returns when the other end closes, or is gone
    return 0
