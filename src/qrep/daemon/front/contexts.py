"""The TLS contexts of the front. They are made before it gives up its files, because Python's ssl loads a key from a file only."""

import contextlib
import os
import ssl

from qrep import kerneltls
from qrep.daemon import tls
from qrep.daemon.front import kernel


class _Passing:
    """Key and certificate as files that exist only while contexts load them."""

    def __init__(self, certificate, key):
        self._files = [os.memfd_create("front", os.MFD_CLOEXEC) for _ in range(2)]
        for descriptor, data in zip(self._files, (certificate.encode(), key), strict=True):
            os.write(descriptor, data)
        self.certificate_path, self.key_path = (f"/proc/self/fd/{descriptor}" for descriptor in self._files)

    def close(self):
        for descriptor in self._files:
            os.close(descriptor)


class Contexts:
    """server, looking, and dialling[purpose]. What is trusted only grows: whether a pin counts is asked after the handshake."""

    def __init__(self, certificate, key):
        with contextlib.closing(_Passing(certificate, key)) as identity:
            self.server = tls.server_context(identity, [])
            self.looking = tls.looking_context(identity)
            self.dialling = {purpose: tls.client_context(identity, purpose, []) for purpose in tls.PURPOSES}
        self.dialling[tls.DATA].options |= kerneltls.OP_ENABLE
        self.kernel_tls = False  # rehearse() finds out
        self._trusted = set()

    def trust(self, certificate):
        """Raises ssl.SSLError on what is no certificate."""
        if certificate not in self._trusted:
            for context in (self.server, *self.dialling.values()):
                tls.trust(context, [certificate])
            self._trusted.add(certificate)

    def rehearse(self, certificate):
        """One handshake with ourselves, so that everything it loads lazily is loaded."""
        self.trust(certificate)
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = self.dialling[tls.CONTROL].wrap_bio(back, there)
        server = self.server.wrap_bio(there, back, server_side=True)
        for end in (client, server, client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
        server.write(tls.WELCOME)
        tls.fingerprint_of(server.getpeercert(True))
        if client.read(1) != tls.WELCOME:
            raise ssl.SSLError("no TLS 1.3 with ourselves")
        self.kernel_tls = kernel.works(self.dialling[tls.DATA], self.server)
