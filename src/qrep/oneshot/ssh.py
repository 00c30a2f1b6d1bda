"""The near end of a copy over ssh: `qrep serve` on the other host, reached by processes of ssh; data beside it or over TLS.

Each stream is one ssh process whose standard input and output are one end of a socket pair, so that here every stream is a socket.
"""

import shlex
import signal
import socket
import subprocess
import threading

from qrep.errors import ProtocolError, Unreachable, UsageError, from_dict
from qrep.oneshot import opening
from qrep.protocol import transport

BUFFER = 4 << 20  # bytes of a socket pair's buffer
GRACE_S = 1.0  # what a process of ssh gets that has not even answered
END_S = 30.0  # what the far end gets to let go of its device
ANSWER_S = 180.0  # recovery and a claim that a dead process still holds come before the answer; so does a typed password
OPTIONS = ("-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3", "-T")


class SshTarget:
    """host: [USER@]HOST. offer: opening.Offer. rsh: the command instead of ssh. remote_qrep: how qrep is called there, a piece of shell.

    direct: data goes over TLS connections to `address` (the host's name by default) and a port that the far end opens.
    """

    def __init__(self, host, offer, *, rsh=None, remote_qrep="qrep", direct=False, address=None, bucket=None):
        if host.startswith("-") or not host:
            raise UsageError(f"{host!r} is no host")
        user, at, name = host.rpartition("@")
        self.host, self.offer, self._bucket = f"{user}{at}{name.strip('[]')}", offer, bucket
        self._rsh = shlex.split(rsh) if rsh else ["ssh", *OPTIONS]
        self._remote_qrep, self._direct = remote_qrep, direct
        self._address = address or name.strip("[]")
        self.answer = self._identity = None
        self._processes, self._closed = [], False
        self._starting = threading.Lock()
        self._connecting = threading.Lock()  # one after the other, should they ask for a password

    def ask(self, **changes):
        """The far end's Answer, without a session. Raises what it refuses with, Unreachable."""
        stream, process = self._start("--stdio")
        answer = self._open(stream, process, self._offer(**changes))
        stream.close()
        self._wait(process)
        return answer

    def dial(self):
        """A fresh control Channel to a far end of its own."""
        stream, process = self._start("--stdio")
        self.answer = self._open(stream, process, self._offer())
        return transport.Channel(stream, "target")

    def connect(self, token, slot):
        """A data connection of the present session."""
        if self._direct:
            stream = self._connect_directly()
        else:
            with self._connecting:
                stream, _process = self._start("--join", self.answer.join)
        index, stream = transport.join(stream, token, timeout=ANSWER_S)
        return transport.DataConnection(stream, index, bucket=self._bucket)

    def close(self):
        """Wait until the far ends have let go of the device; the channels were closed before. Nothing is begun any more: a connection of a session that
        is over may still be in the making."""
        with self._starting:
            self._closed = True
        for process in self._processes:
            self._wait(process)
        if self._identity is not None:
            self._identity.close()
            self._identity = None

    @property
    def identity(self):
        """The one-use key of this copy."""
        if self._identity is None:
            from qrep.oneshot.keys import OneUseIdentity

            self._identity = OneUseIdentity()
        return self._identity

    def _offer(self, **changes):
        fields = {name: getattr(self.offer, name) for name in self.offer.__struct_fields__} | changes
        return opening.Offer(**fields | {"certificate": self.identity.certificate if self._direct else ""})

    def _start(self, *arguments):
        near, far = socket.socketpair()
        with far, self._starting:
            if self._closed:
                near.close()
                raise Unreachable("the copy is over")
            for end in (near, far):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            command = f"{self._remote_qrep} serve {shlex.join(arguments)}"
            try:
                process = subprocess.Popen(
                    [*self._rsh, self.host, command], stdin=far, stdout=far,
                    preexec_fn=_ignore_interrupt,  # Ctrl-C is ours: the run ends first, in order
                )  # fmt: skip
            except OSError as err:
                near.close()
                raise Unreachable(f"{self._rsh[0]}: {err.strerror}", hint="install openssh-client, or give -e COMMAND") from err
            self._processes = [*(old for old in self._processes if old.poll() is None), process]
        return near, process

    def _open(self, stream, process, offer):
        """The answer to an offer. When there is none, for whatever reason, the process is ended: ssh may hang in a connect."""
        try:
            return self._exchange(stream, process, offer)
        except BaseException:
            stream.close()
            self._wait(process, GRACE_S)
            raise

    def _exchange(self, stream, process, offer):
        stream.settimeout(ANSWER_S)
        try:
            opening.say(stream, offer)
            answer = opening.hear(stream, opening.Answer)
        except TimeoutError:
            raise Unreachable(f"{self.host} did not answer in {ANSWER_S:g} s", hint="try that ssh command by hand") from None
        except (OSError, Unreachable) as err:
            raise self._ended(process) from err
        stream.settimeout(None)
        if answer.error is not None:
            self._wait(process)
            raise from_dict(answer.error)
        return answer

    def _ended(self, process):
        """Why there was no answer."""
        try:
            code = process.wait(5)
        except subprocess.TimeoutExpired:
            return Unreachable(f"{self.host} closed the connection", hint="try that ssh command by hand")
        if code in (126, 127):
            return Unreachable(
                f"{self.host} has no {self._remote_qrep.split()[0]}", code="no-remote-qrep",
                hint="install qrep there, or say where it is: --remote-qrep /path/to/qrep",
            )  # fmt: skip
        why = "cannot be reached" if code == 255 else f"ended with {code} before it answered"
        return Unreachable(f"{self.host} {why}", hint=f"what {self._rsh[0]} says stands above; try it by hand")

    def _connect_directly(self):
        from qrep import config
        from qrep.daemon import tls
        from qrep.oneshot.keys import fingerprint_of_pem

        certificate = self.answer.certificate
        try:
            far = config.Peer(addresses=[self._address], fingerprint=fingerprint_of_pem(certificate), certificate=certificate)
        except ValueError as err:
            raise ProtocolError(f"the far end's certificate is none: {err}") from err
        return tls.connect(self.identity, (self._address, self.answer.port), tls.DATA, far, 10.0)

    @staticmethod
    def _wait(process, seconds=END_S):
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()


def _ignore_interrupt():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
