"""A handshake that the network cut or damaged is tried again; one that the other end refuses is not. Found by python -m chaos 1 110."""

import contextlib
import socket
import threading
from types import SimpleNamespace

import pytest
from agents import wait_until
from chaos.network import Fault, Network

from qrep.daemon import tls
from qrep.daemon.front.stream import TlsStream
from qrep.errors import Refused, Unreachable
from qrep.oneshot.keys import OneUseIdentity

CUT = {"flip": Fault("flip", what="control", direction="up"), "truncate": Fault("truncate", what="control", direction="up")}
WRAPS = {"ssl": tls.wrap_client, "front": TlsStream.client}


@pytest.fixture(scope="module")
def identity():
    with contextlib.closing(OneUseIdentity()) as made:
        yield made


@pytest.fixture
def server(identity):
    """Its address. It lets `identity` in, and nobody else."""
    context = tls.server_context(identity, [identity.certificate])
    peers = {"site-a": SimpleNamespace(fingerprint=identity.fingerprint)}
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                plain, _address = listening.accept()
            except OSError:
                return
            with contextlib.suppress(OSError, Refused), tls.wrap(context, plain) as stream:
                tls.accept(stream, peers)
                tls.welcome(stream)

    thread = threading.Thread(target=serve)
    thread.start()
    yield listening.getsockname()
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


def dial(identity, wrap, address, server_identity):
    context = tls.client_context(identity, tls.CONTROL, [server_identity.certificate])
    tls.dial(wrap, context, identity.fingerprint, address, tls.CONTROL, server_identity.fingerprint).close()


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", CUT)
def test_damage_on_the_way_is_no_refusal(server, identity, wrap, seed, kind):
    with Network("", [(("127.0.0.1", 0), server)], seed) as network:
        address = network.paths[0][0]
        dial(identity, WRAPS[wrap], address, identity)
        wait_until(network.is_empty)
        network.begin(CUT[kind])
        with pytest.raises(Unreachable):
            dial(identity, WRAPS[wrap], address, identity)
        network.heal()
        dial(identity, WRAPS[wrap], address, identity)


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_key_that_is_not_known_there_is(server, identity, wrap):
    with contextlib.closing(OneUseIdentity()) as stranger:
        with pytest.raises(Refused) as refused:
            dial(stranger, WRAPS[wrap], server, identity)
    assert refused.value.code == "not-pinned"
