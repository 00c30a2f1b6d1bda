"""A key for one copy: it lives in memory, so that not even a kill -9 leaves it behind."""

import os

from cryptography import x509

from qrep.daemon.identity import CERTIFICATE_FILE, KEY_FILE, fingerprint_of, make_key


class OneUseIdentity:
    """As daemon.identity.Identity, for tls.connect and tls.server_context. close() it."""

    def __init__(self):
        self._files = {}
        make_key(self, "copy")
        self.key_path, self.certificate_path = (f"/proc/self/fd/{self._files[name]}" for name in (KEY_FILE, CERTIFICATE_FILE))
        with open(self.certificate_path) as file:
            self.certificate = file.read()
        self.fingerprint = fingerprint_of_pem(self.certificate)

    def write(self, name, data):
        """What make_key asks of a directory."""
        self._files[name] = os.memfd_create(f"qrep {name}", os.MFD_CLOEXEC)
        os.write(self._files[name], data)

    def close(self):
        while self._files:
            os.close(self._files.popitem()[1])


def fingerprint_of_pem(certificate):
    """Of a certificate as it came from the other end. Raises ValueError if it is none."""
    return fingerprint_of(x509.load_pem_x509_certificate(certificate.encode()))
