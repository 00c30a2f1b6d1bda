"""Keys and certificates: what is refused although its key is pinned, and what a change of key leaves of the old pin."""

import datetime
import ssl

import pytest
from agents import Agents, wait_until
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from intruder import CLOSED, handshake, hears, identity_of, make_identity

from qrep import kerneltls
from qrep.daemon import tls
from qrep.daemon.front.contexts import Contexts
from qrep.daemon.identity import certificate_pem, fingerprint_of

pytestmark = pytest.mark.root
DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def listening(tmp_path_factory):
    with Agents(tmp_path_factory.mktemp("agents")) as agents:
        yield agents.pair()


def expired(directory):
    """An identity whose certificate was good until yesterday, and its DER."""
    identity, key = make_identity(directory), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "qrep old")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
        .not_valid_before(now - 9 * DAY).not_valid_after(now - DAY).sign(key, hashes.SHA256())
    )  # fmt: skip
    encoding = serialization.Encoding
    with open(identity.certificate_path, "wb") as file:
        file.write(certificate.public_bytes(encoding.PEM))
    with open(identity.key_path, "wb") as file:
        file.write(key.private_bytes(encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return identity, certificate.public_bytes(encoding.DER)


def pin(agent, name, der):
    """As the administrator of `agent` would by hand: a file, and a reload."""
    pem = certificate_pem(der).replace("\n", "\\n")
    path = agent.config / "peers" / f"{name}.toml"
    path.write_text(f'addresses = ["127.0.0.1:1"]\nfingerprint = "{fingerprint_of(der)}"\ncertificate = "{pem}"\n')
    path.chmod(0o600)
    agent.qrep("reload")


def test_an_expired_certificate_is_refused_although_its_key_is_pinned_and_the_reason_says_so(listening, memory_dir):
    _a, b = listening
    identity, der = expired(memory_dir / "keys")
    pin(b, "old", der)
    before = len(b.events("peer-refused"))
    stream = handshake(b, identity)
    assert hears(stream) == CLOSED
    refused = wait_until(lambda: b.events("peer-refused")[before:])
    assert "certificate has expired" in refused[0]["text"], refused


def test_a_key_that_was_replaced_is_worth_nothing_from_then_on(listening, memory_dir):
    """Rotation: the administrator unpins the host and pins its new key; whoever has the old one is a stranger."""
    a, b = listening
    old = identity_of(a)
    new = make_identity(memory_dir / "new", "site-a")
    with open(new.certificate_path, "rb") as file:
        der = ssl.PEM_cert_to_DER_cert(file.read().decode())
    b.qrep("peer", "remove", "site-a", "-y")
    pin(b, "site-a", der)
    assert hears(handshake(b, old)) in (CLOSED, tls.UNKNOWN)
    stream = handshake(b, new, alpn=(tls.ASK,))
    assert stream.recv(1) == tls.WELCOME
    stream.close()


def test_every_context_is_tls_1_3_only_with_certificates_asked_for_and_nothing_resumed(memory_dir):
    identity = make_identity(memory_dir / "keys")
    with open(identity.key_path, "rb") as file:
        contexts = Contexts(identity.certificate, file.read())
    for context in (contexts.server, *contexts.dialling.values()):
        assert (context.minimum_version, context.maximum_version) == (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3)
        assert context.verify_mode == ssl.CERT_REQUIRED and context.options & ssl.OP_NO_TICKET and context.options & ssl.OP_NO_COMPRESSION
        spoken = {cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] == "TLSv1.3"}
        assert spoken <= {"TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256"}
    assert contexts.server.num_tickets == 0, "nothing to resume, and no early data"
    assert kerneltls.OP_ENABLE & contexts.dialling[tls.DATA].options
