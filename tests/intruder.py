"""Someone at an agent's peer port who does not play by the rules: raw TLS with any key, any version, any first bytes."""

import socket
import ssl

from qrep.daemon import plain as plain_data
from qrep.daemon import tls
from qrep.daemon.identity import Identity
from qrep.protocol import messages
from qrep.store import Directory

CLOSED = b""


def make_identity(directory, name="intruder"):
    """A key of its own."""
    with Directory(directory) as keys:
        return Identity(keys, name)


def identity_of(agent):
    """The very key of an agent: what someone has who stole it, or the agent itself."""
    with Directory(agent.state / "keys") as keys:
        return Identity(keys, agent.name)


def plain(agent):
    stream = socket.create_connection((agent.host, agent.port), 5)
    stream.settimeout(15)
    return stream


def plain_join(agent, token):
    """A plain data connection that brought `token`; what the agent makes of it is read from the stream."""
    stream = plain(agent)
    stream.sendall(plain_data.MAGIC + token)
    return stream


def handshake(agent, identity, *, alpn=(tls.CONTROL,), maximum=None):
    """A TLS socket to the agent, whoever it is; identity None: without a certificate. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if maximum is not None:
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, maximum
    if identity is not None:
        context.load_cert_chain(identity.certificate_path, identity.key_path)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context.wrap_socket(plain(agent))


def hears(stream):
    """Everything the agent says until it closes; CLOSED if nothing. The agent must close, or this times out."""
    said = b""
    try:
        while part := stream.recv(65536):
            said += part
    except TimeoutError:
        raise AssertionError(f"the agent did not close the connection; it said {said!r}") from None
    except OSError:  # a reset, or a TLS alert
        pass
    finally:
        stream.close()
    return said


def admitted(agent, identity, purpose):
    """A connection that the agent has let in: its key is pinned there."""
    stream = handshake(agent, identity, alpn=(purpose,))
    assert stream.recv(1) == tls.WELCOME
    return stream


def read_message(stream):
    size = int.from_bytes(read_exactly(stream, 4), "little")
    assert size <= messages.MESSAGE_MAX
    body = read_exactly(stream, size)
    for sender in ("target", "joined", "tested"):
        try:
            return messages.decode(body, sender)
        except messages.ProtocolError:
            continue
    raise AssertionError(body)


def read_exactly(stream, size):
    data = b""
    while len(data) < size:
        part = stream.recv(size - len(data))
        assert part, "the agent closed the connection"
        data += part
    return data
