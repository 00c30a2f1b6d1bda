"""Who this node is: a key and a self-signed certificate, made once. Others know it by the SHA-256 of its public key (SPKI)."""

import datetime
import hashlib
import os
import secrets
import stat

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from qrep.errors import Refused

KEY_FILE, CERTIFICATE_FILE = "node.key", "node.pem"
FILE_MAX = 1 << 16
YEARS = 20  # trust is the pin, not the date; a certificate that runs out would only break pairs


def fingerprint_of(certificate):
    """`SHA256:7b:1f:...` of the public key in an x509 certificate, or in the DER bytes of one."""
    if isinstance(certificate, bytes):
        certificate = x509.load_der_x509_certificate(certificate)
    key = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return "SHA256:" + hashlib.sha256(key).digest().hex(":")


def certificate_pem(der):
    return x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM).decode()


def make_key(keys, node_name):
    """A new key and its certificate, written to `keys`: anything with write(name, bytes)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"qrep {secrets.token_hex(4)} {node_name}"[:64])])  # no two alike
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # the other side's clock may be behind
        .not_valid_after(now + datetime.timedelta(days=365 * YEARS))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    encoding = serialization.Encoding.PEM
    keys.write(
        KEY_FILE, key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    keys.write(CERTIFICATE_FILE, certificate.public_bytes(encoding))


class Identity:
    """Key and certificate of this node, in `keys` (a store.Directory). Makes them when they are missing."""

    def __init__(self, keys, node_name):
        if CERTIFICATE_FILE not in keys.names():
            make_key(keys, node_name)
        self.key_path = os.path.join(keys.path, KEY_FILE)
        self.certificate_path = os.path.join(keys.path, CERTIFICATE_FILE)
        mode = stat.S_IMODE(os.stat(self.key_path, follow_symlinks=False).st_mode)
        if mode & 0o077:
            raise Refused(
                f"{self.key_path}: mode {mode:04o}, others may read the key of this node",
                hint=f"chmod 600 {self.key_path}",
            )
        self.certificate = bytes(keys.read(CERTIFICATE_FILE, FILE_MAX)).decode()
        self.fingerprint = fingerprint_of(x509.load_pem_x509_certificate(self.certificate.encode()))
