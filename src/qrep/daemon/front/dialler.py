"""Connections that the engine asks for."""

from qrep.daemon import tls
from qrep.daemon.front import talk
from qrep.daemon.front.kernel import KernelStream
from qrep.daemon.front.stream import TlsStream
from qrep.errors import QrepError, Unreachable


class Dialler:
    """front: process.Front. Each function is the whole life of a thread."""

    def __init__(self, front):
        self._front = front

    def dial(self, packet):
        """Answer with Dialled and relay, or with NotDialled."""
        front = self._front
        try:
            front.contexts.trust(packet.certificate)
            stream = self._first(packet.hosts, lambda host: self._connect(packet, host))
        except (QrepError, OSError) as err:
            self._refuse(packet.number, err)
            return
        rtt_us = tls.tune_data(stream.plain) if packet.purpose == tls.DATA else None
        local, kernel = tls.local_address(stream.plain) or "", isinstance(stream, KernelStream)
        dialled = talk.Dialled(number=packet.number, plain=False, local=local, rtt_us=rtt_us, kernel=kernel)
        front.carry(stream, packet.purpose, packet.number, dialled)

    def dial_plain(self, packet):
        front = self._front
        try:
            stream = self._first(packet.hosts, lambda host: tls.tcp((host, packet.port), packet.timeout, packet.source))
        except QrepError as err:
            self._refuse(packet.number, err)
            return
        with stream:
            stream.settimeout(None)
            front.line.send(talk.Dialled(number=packet.number, plain=True, local=""), stream.fileno())

    def look(self, packet):
        context = self._front.contexts.looking
        try:
            seen = self._first(packet.hosts, lambda host: tls.look_with(TlsStream.client, context, (host, packet.port), packet.timeout))
        except (QrepError, OSError) as err:
            self._refuse(packet.number, err)
            return
        self._front.line.send(talk.Seen(number=packet.number, certificate=seen))

    def _connect(self, packet, host):
        """A TlsStream, or a KernelStream that the kernel encrypts."""
        contexts = self._front.contexts
        if packet.purpose == tls.DATA and contexts.kernel_tls:
            stream = self._connect_as(KernelStream.client, packet, host)
            if stream.encrypts:
                return stream
            stream.close()  # not with this peer's cipher, or the kernel has it no more
            contexts.kernel_tls = False
        return self._connect_as(TlsStream.client, packet, host)

    def _connect_as(self, wrap, packet, host):
        context = self._front.contexts.dialling[packet.purpose]
        return tls.dial(
            wrap, context, self._front.setup.fingerprint, (host, packet.port), packet.purpose, packet.fingerprint, packet.timeout,
            packet.source,
        )  # fmt: skip

    @staticmethod
    def _first(hosts, attempt):
        """Of the first host that answers; of the last one if none does."""
        for host in hosts[:-1]:
            try:
                return attempt(host)
            except Unreachable:
                continue
        return attempt(hosts[-1])

    def _refuse(self, number, err):
        error = err if isinstance(err, QrepError) else Unreachable(f"no connection: {err.strerror or err}")
        self._front.line.send(talk.NotDialled(number=number, code=error.code, exit=error.exit_code, message=error.message, hint=error.hint))
