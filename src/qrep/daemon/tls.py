"""TLS 1.3 in both directions, mutual, trust by pinned key and nothing else: no CA, no names, no resumption.

What a connection is for is chosen by ALPN, so that nothing of qrep's is parsed before the peer has proved its key.
"""

import contextlib
import errno
import socket
import ssl

from qrep._native import sockets
from qrep.daemon.identity import fingerprint_of
from qrep.errors import Refused, Unreachable
from qrep.protocol import unpaced

PURPOSES = CONTROL, DATA, ASK, TEST = "qrep-control/1", "qrep-data/1", "qrep-ask/1", "qrep-test/1"
HANDSHAKE_S = 10.0  # an accepted connection may take
CONNECT_S, GREETING_S = 3.0, 5.0  # for a connection of ours: until it is there, and until the other end has let us in
SILENCE_S = 5  # whole seconds in which not one acknowledgement came
CERTIFICATE_NOT_YET_VALID, CERTIFICATE_EXPIRED = 9, 10  # X509_V_ERR_...
# TLS 1.3 lets a client speak before the server has looked at its certificate. This byte says that it has, so that a host which is
# not pinned there hears so here, and not as some broken stream later.
WELCOME = b"\x01"
UNKNOWN = b"\x00"  # the key was known when this process began, and is not trusted any more
# What TLS itself tells of a certificate that does not suffice there. Whatever else breaks a handshake is a network that cut or damaged it: tried again.
NOT_TRUSTED = {
    "TLSV1_ALERT_UNKNOWN_CA", "TLSV1_ALERT_ACCESS_DENIED", "TLSV13_ALERT_CERTIFICATE_REQUIRED",
    *(f"SSLV3_ALERT_{word}" for word in ("BAD_CERTIFICATE", "UNSUPPORTED_CERTIFICATE", "CERTIFICATE_REVOKED", "CERTIFICATE_EXPIRED", "CERTIFICATE_UNKNOWN")),
}  # fmt: skip


def keep_alive(plain):
    """Notice a peer that is gone or cut off within SILENCE_S, whether we wait for it or send to it."""
    for level, option, value in (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_S * 1000),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, SILENCE_S - 2),
    ):
        plain.setsockopt(level, option, value)


def tune_data(plain):
    """A data connection: cubic where the peer is near, and no time-out of the kernel's, because a target that flushes for long takes
    nothing meanwhile and is not gone. Returns the round-trip time in microseconds, None if it broke meanwhile: it says so when it is used."""
    with contextlib.suppress(OSError):
        return sockets.tune(plain.fileno(), user_timeout_ms=0)["rtt_us"]
    return None


def _context(side, identity, pinned):
    """pinned: PEM certificates that are trusted; each is its own anchor."""
    context = ssl.SSLContext(side)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    context.load_cert_chain(identity.certificate_path, identity.key_path)
    trust(context, pinned)
    return context


def trust(context, pinned):
    """Let the handshake pass for these certificates, too; whom it may speak for is decided by the fingerprint, after it."""
    if pinned:
        context.load_verify_locations(cadata="\n".join(pinned))


def client_context(identity, purpose, pinned):
    context = _context(ssl.PROTOCOL_TLS_CLIENT, identity, pinned)
    context.set_alpn_protocols([purpose])
    return context


def looking_context(identity):
    """For look(): trusts whoever is there, and is good for nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the connection only asks who is there; a person decides, and connect() checks
    context.load_cert_chain(identity.certificate_path, identity.key_path)
    context.set_alpn_protocols([ASK])
    return context


def server_context(identity, pinned):
    context = _context(ssl.PROTOCOL_TLS_SERVER, identity, pinned)
    context.num_tickets = 0
    context.set_alpn_protocols(list(PURPOSES))
    return context


def tcp(address, timeout=CONNECT_S, source=None):
    """A TCP connection to `address` = (host, port) that notices when it is cut off. source: the address of this host that it comes from, None:
    the system picks. Raises Unreachable."""
    where = f"{address[0]}:{address[1]}"
    try:
        stream = unpaced.connect(address, timeout, source)
    except OSError as err:
        if err.errno == errno.EADDRNOTAVAIL and source:
            raise Unreachable(f"{source} is no address of this host any more", hint="qrep path shows where it is used") from err
        raise Unreachable(f"{where}: {err.strerror or err}", hint="check the address, the link and that qrep daemon runs there") from err
    try:
        keep_alive(stream)
    except OSError as err:
        stream.close()
        raise Unreachable(f"{where}: {err.strerror or err}") from err
    return stream


def connect(identity, address, purpose, peer, timeout=CONNECT_S, source=None):
    """A TLS socket to `address` = (host, port), whose other end is `peer` (config.Peer) and nobody else. source: the address of this host
    that it comes from, None: the system picks.

    Raises Unreachable when nothing answers there, Refused when someone else does or when this node is not known there.
    """
    context = client_context(identity, purpose, [peer.certificate])
    return dial(wrap_client, context, identity.fingerprint, address, purpose, peer.fingerprint, timeout, source)


def wrap_client(context, plain):
    return context.wrap_socket(plain, do_handshake_on_connect=False)


def dial(wrap, context, own, address, purpose, fingerprint, timeout=CONNECT_S, source=None):
    """connect() with a context of one's own. wrap(context, plain): the TLS stream, its handshake not made yet. own: our fingerprint, for people."""
    where = f"{address[0]}:{address[1]}"
    plain = tcp(address, timeout, source)
    plain.settimeout(GREETING_S)
    stream = wrap(context, plain)
    try:
        _check_server(stream, where, purpose, fingerprint)
        _hear_welcome(stream, where, own)
    except BaseException:
        stream.close()
        raise
    stream.settimeout(None)
    return stream


def is_date(error):
    """Whether a certificate was refused for its dates, and nothing else was looked at."""
    return error.verify_code in (CERTIFICATE_NOT_YET_VALID, CERTIFICATE_EXPIRED)


def _check_server(stream, where, purpose, fingerprint):
    try:
        stream.do_handshake()
        pinned = fingerprint_of(stream.getpeercert(binary_form=True)) == fingerprint
    except ssl.SSLCertVerificationError as err:
        if is_date(err):
            raise Refused(
                f"{where}: {err.verify_message}", hint="set the clocks of both hosts; a host whose certificate has ended needs a new key", code="certificate-date"
            ) from err
        pinned = False
    except OSError as err:
        raise Unreachable(f"{where}: no TLS handshake: {err.strerror or err}") from err
    if not pinned or stream.selected_alpn_protocol() != purpose:
        raise Refused(
            f"{where} presents another key than the pinned {fingerprint}",
            hint="if the host was set up anew: qrep peer remove, then qrep peer add",
            code="wrong-fingerprint",
        )


def _hear_welcome(stream, where, own):
    try:
        said = stream.recv(1)
    except OSError as err:
        if not (isinstance(err, ssl.SSLError) and err.reason in NOT_TRUSTED):
            raise Unreachable(f"{where}: no TLS handshake: {err.strerror or err}") from err
        said = UNKNOWN  # it broke the handshake off when it saw our key
    if said == UNKNOWN:
        raise Refused(
            f"{where} does not know this host ({own})", hint="on that host: qrep peer add NAME ADDRESS-OF-THIS-HOST", code="not-pinned"
        )
    if said != WELCOME:
        raise Unreachable(f"{where} closed the connection at once", hint="it may have too many connections; see qrep events there")


def local_address(stream):
    """The address of this host that a connection comes from, None where that cannot be told."""
    try:
        return getattr(stream, "local_address", None) or stream.getsockname()[0] or None
    except (OSError, IndexError):
        return None


def welcome(stream):
    """Tell the other end that accept() let it in. Raises OSError."""
    stream.sendall(WELCOME)


def wrap(context, plain, timeout=HANDSHAKE_S):
    """The server's end of a handshake that accept() is to make; it may take `timeout` seconds in all. `plain` is given up."""
    plain.settimeout(max(0.001, timeout))
    return context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)


def accept(stream, peers):
    """Make the handshake. Returns (peer name, purpose). Raises OSError, or Refused after a handshake that does not suffice.

    peers: name -> config.Peer. The key must be one of theirs exactly, whatever else the certificate says.
    """
    stream.do_handshake()
    der = stream.getpeercert(binary_form=True)
    fingerprint = fingerprint_of(der) if der else None
    name = next((name for name, peer in peers.items() if peer.fingerprint == fingerprint), None)
    if name is None:
        with contextlib.suppress(OSError):
            stream.sendall(UNKNOWN)
        raise Refused("it presents a key that is not pinned here (qrep peer add pins it)", code="not-pinned")
    purpose = stream.selected_alpn_protocol()
    if purpose not in PURPOSES:
        raise Refused(f"{name} does not say what the connection is for", code="no-purpose")
    stream.settimeout(None)
    return name, purpose


def look(identity, address, timeout=HANDSHAKE_S):
    """The certificate (DER) that `address` presents, before it is trusted. Nothing is sent but the handshake."""
    return look_with(wrap_client, looking_context(identity), address, timeout)


def look_with(wrap, context, address, timeout):
    plain = tcp(address, timeout)
    plain.settimeout(timeout)
    stream = wrap(context, plain)
    try:
        stream.do_handshake()
        return stream.getpeercert(binary_form=True)
    except OSError as err:
        raise Unreachable(
            f"{address[0]}:{address[1]}: no TLS handshake: {err.strerror or err}", hint="check that qrep daemon runs there"
        ) from err
    finally:
        stream.close()
