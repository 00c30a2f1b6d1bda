"""The peer port and those who may not use it: closed before a byte of qrep's protocol is looked at, one event each."""

import ssl

import pytest
from agents import MIB, Agents, b3sum, wait_until
from intruder import CLOSED, handshake, hears, identity_of, make_identity, plain

from qrep.daemon import tls

pytestmark = pytest.mark.root
HELLO = b"\x10\x00\x00\x00" + b"\x80" * 16  # framed like a message; nobody may come as far as to refuse it


@pytest.fixture(scope="module")
def listening(tmp_path_factory):
    """(site-a, site-b): they have pinned each other."""
    with Agents(tmp_path_factory.mktemp("agents")) as agents:
        yield agents.pair()


def refused_once(agent, attempt):
    """attempt() leads to exactly one more event, a refusal; returns its text."""
    before = len(agent.events("peer-refused"))
    attempt()
    events = wait_until(lambda: len(agent.events("peer-refused")) > before and agent.events("peer-refused"))
    assert len(events) == before + 1
    return events[-1]["text"]


def test_a_plaintext_client(listening):
    _a, b = listening

    def attempt():
        stream = plain(b)
        stream.sendall(b"GET / HTTP/1.1\r\nHost: b\r\n\r\n")
        hears(stream)

    assert "127.0.0.1" in refused_once(b, attempt)


def test_tls_1_2_even_with_a_pinned_key(listening):
    a, b = listening

    def attempt():
        with pytest.raises(OSError):
            handshake(b, identity_of(a), maximum=ssl.TLSVersion.TLSv1_2)

    assert "PROTOCOL" in refused_once(b, attempt)


@pytest.mark.parametrize("who", ["an unknown key", "no key"])
def test_a_key_that_is_not_pinned(listening, memory_dir, who):
    _a, b = listening
    identity = make_identity(memory_dir / "keys") if who == "an unknown key" else None

    def attempt():
        stream = handshake(b, identity)  # TLS 1.3: the client is done before it is looked at
        try:
            stream.sendall(HELLO)
        except OSError:
            return
        assert hears(stream) == CLOSED

    assert ("not pinned" if who == "an unknown key" else "CERTIFICATE") in refused_once(b, attempt)


@pytest.mark.parametrize("alpn", [(), ("h2",)])
def test_a_pinned_key_that_does_not_say_what_it_wants(listening, alpn):
    a, b = listening

    def attempt():
        stream = handshake(b, identity_of(a), alpn=alpn)
        stream.sendall(HELLO)
        assert hears(stream) == CLOSED

    assert "does not say what the connection is for" in refused_once(b, attempt)


def test_a_certificate_with_the_name_and_serial_of_a_pinned_one_and_another_key(listening, memory_dir):
    """Trust is the key: what a certificate says of itself is worth nothing."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    a, b = listening
    real = x509.load_pem_x509_certificate(identity_of(a).certificate.encode())
    key = ec.generate_private_key(ec.SECP256R1())
    forged = (
        x509.CertificateBuilder().subject_name(real.subject).issuer_name(real.issuer).public_key(key.public_key())
        .serial_number(real.serial_number).not_valid_before(real.not_valid_before_utc)
        .not_valid_after(real.not_valid_after_utc + datetime.timedelta(days=1)).sign(key, hashes.SHA256())
    )  # fmt: skip
    identity = make_identity(memory_dir / "keys")
    encoding = serialization.Encoding.PEM
    with open(identity.certificate_path, "wb") as file:
        file.write(forged.public_bytes(encoding))
    with open(identity.key_path, "wb") as file:
        file.write(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))

    def attempt():
        stream = handshake(b, identity)
        assert hears(stream) == CLOSED

    assert "not pinned" in refused_once(b, attempt)


def test_a_host_that_was_set_up_anew_is_not_the_one_that_was_pinned(agents, loop_device, fill):
    source, target = loop_device(8 * MIB), loop_device(8 * MIB)
    fill(source, MIB)
    a, b = agents.replica(source, target, job=("--timeout", "1s"))
    root = a.run()["root"]
    fill(source, MIB)
    for rekeyed, code, words in ((a, "not-pinned", "does not know this host"), (b, "wrong-fingerprint", "another key than the pinned")):
        rekeyed.terminate()
        kept = {name: (rekeyed.state / "keys" / name).read_bytes() for name in ("node.key", "node.pem")}
        for name in kept:
            (rekeyed.state / "keys" / name).unlink()
        rekeyed.start()
        error = a.refused("start", "db", "--wait")
        assert (error["code"], error["exit"]) == (code, 5) and words in error["message"] and error["hint"]
        assert b3sum(target) == root
        rekeyed.terminate()
        for name, data in kept.items():
            (rekeyed.state / "keys" / name).write_bytes(data)
            (rekeyed.state / "keys" / name).chmod(0o600)
        rekeyed.start()
    assert a.run()["root"] == b3sum(target) != root


def test_a_peer_that_is_removed_is_cut_off_in_the_middle_of_its_run(agents, loop_device, fill):
    source, target = loop_device(16 * MIB), loop_device(16 * MIB)
    fill(source, 16 * MIB)
    a, b = agents.replica(source, target, link_rate=6 * MIB)
    a.qrep("start", "db")
    wait_until(lambda: agents.link.carried > 4 * MIB)
    b.qrep("peer", "remove", "site-a", "-y")
    wait_until(lambda: a.job()["state"] == "failed")
    assert a.job()["problem"]["code"] == "not-pinned" and b.job()["counter"] is None


def test_peer_add_pins_only_what_was_shown(agents):
    a, b = agents.pair(known=False)
    wrong = "SHA256:" + ":".join(["00"] * 32)
    address = f"{b.host}:{b.port}"
    error = a.refused("peer", "add", "site-b", address, "--fingerprint", wrong)
    assert (error["code"], error["exit"]) == ("wrong-fingerprint", 5)
    assert a.refused("peer", "add", "site-b", address)["code"] == "needs-confirmation"
    assert a.refused("peer", "add", "me", f"{a.host}:{a.port}", "-y")["code"] == "self"
    assert a.qrep("peer") == []
    added = a.qrep("peer", "add", "site-b", address, "-y")
    assert not added["mutual"], "site-b does not know site-a yet"
    assert a.refused("peer", "add", "again", address, "-y")["code"] == "peer-known"
    assert b.qrep("peer", "add", "site-a", f"{a.host}:{a.port}", "-y")["mutual"]


def test_two_hosts_of_the_same_name_are_told_apart(agents, memory_dir, loop_device):
    """Certificates that say the same of themselves must not shadow one another."""
    with Agents(memory_dir / "twins") as others:
        twin = others.agent("site-a")
        a, b = agents.pair()
        b.qrep("peer", "add", "twin", f"{twin.host}:{twin.port}", "-y")
        for agent in (a, twin):
            stream = handshake(b, identity_of(agent), alpn=(tls.ASK,))
            assert stream.recv(1) == tls.WELCOME
            stream.close()


def test_connections_that_only_sit_there_do_not_stop_a_run(agents, loop_device, fill):
    source, target = loop_device(8 * MIB), loop_device(8 * MIB)
    fill(source, 8 * MIB)
    a, b = agents.replica(source, target)
    sitting = [plain(b) for _ in range(150)]
    for stream in sitting[::2]:
        stream.sendall(b"\x16\x03\x01")  # the beginning of a handshake
    assert a.run()["root"] == b3sum(target) == b3sum(source)

    def still_open():
        count = 0
        for stream in sitting:
            stream.settimeout(0)
            try:
                count += stream.recv(1) != b""
            except BlockingIOError:
                count += 1
            except OSError:
                pass
        return count

    wait_until(lambda: still_open() <= 32, seconds=5)
    assert 1 <= len(b.events("peer-refused")) <= 25, "told of, and bounded"
    for stream in sitting:
        stream.close()


@pytest.mark.slow
def test_a_handshake_may_take_ten_seconds_and_no_longer(listening):
    _a, b = listening
    stream = plain(b)
    stream.settimeout(1)
    for _ in range(30):  # a byte a second is no way to keep it
        try:
            stream.sendall(b"\x16")
            if stream.recv(1) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    else:
        raise AssertionError("it was kept for 30 s")
