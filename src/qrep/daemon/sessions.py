"""The purposes of a peer's connection, each served in the thread of that connection: control sessions, data over TLS or plain, questions."""

import contextlib
import functools
import threading

from qrep.daemon import asks
from qrep.errors import ProtocolError, QrepError, Refused
from qrep.protocol import messages, transport
from qrep.target.pulse import Pulse


class Sessions:
    """node: the Node. `peer` is always the name of the pinned host at the other end."""

    def __init__(self, node):
        self.node = node
        self._lock = threading.Lock()
        self._going = {}  # channel -> (job id, peer, TargetVolume)

    def ask(self, stream, peer):
        asks.answer(stream, lambda question: self.node.pairs.answer(question, peer))

    def control(self, stream, peer):
        """A run of a pair: who may talk about which volume is decided before the volume hears a word."""
        channel = transport.Channel(stream, "source")
        hello = transport.admit(channel, tell=True)
        try:
            # A volume that is opened now may have to wait for a dead process's writes and put much back.
            if isinstance(hello, messages.Offer):
                self.node.offers.serve(channel, hello, peer)
                return
            if self.node.pairs.once.tell(channel, hello, peer):
                return
            with Pulse(channel, lambda: messages.Beat(busy="opening", received=0, written=0, undo=0)):
                target, pair = self._admit(hello, peer)
        except QrepError as error:
            with contextlib.suppress(transport.Disconnected):
                channel.send(messages.Error(code=error.code, message=error.message, hint=error.hint))
            channel.close()
            raise
        owner = transport.Owner(peer, hello.plain)
        with self._lock:
            self._going[channel] = pair["job_id"], peer, target
        try:
            rendezvous = self.node.rendezvous.of(owner)
            self.serve(target, channel, hello, pair["volume"], pair["job"], rendezvous, lambda: self._refusal(pair["job_id"], peer))
        finally:
            with self._lock:
                del self._going[channel]

    def expel_refused(self):
        """Who may write where was changed: end the sessions of those who may not any more."""
        with self._lock:
            going = list(self._going.items())
        for channel, (job_id, peer, target) in going:
            refused = self._refusal(job_id, peer)
            if refused is not None:
                target.expel(channel, refused)

    def _refusal(self, job_id, peer):
        """The QrepError that keeps a peer's job from writing here, or None."""
        try:
            self._accepted(job_id, peer)
        except QrepError as error:
            return error
        return None

    def _accepted(self, job_id, peer):
        """(pair, ManagedVolume) of a job. Raises Refused, NotFound unless it is this peer's and may write here."""
        fingerprint, pair = self.node.pairs.check_known(peer), self.node.grants.pair(job_id)
        if pair is None or pair["peer"] != peer or pair["fingerprint"] != fingerprint:
            raise Refused(f"{self.node.name} has no pair for this job", hint="delete the job and create it again", code="not-paired")
        volume = self.node.volumes.get(pair["volume"])
        self.node.pairs.check_accepted(volume, peer)
        return pair, volume

    def _admit(self, hello, peer):
        if not isinstance(hello, messages.Hello):
            raise ProtocolError("a control connection begins with Hello")
        self.node.roles.check_session(hello.job_id.hex(), peer)
        pair, volume = self._accepted(hello.job_id.hex(), peer)
        if volume.settings.id != hello.volume_id.hex():
            raise Refused(
                f"{self.node.name}:{volume.name} is not the volume of this job any more",
                hint="delete the job and create it again",
                code="wrong-volume",
            )
        self.check_trust(peer, hello.plain)
        return volume.replica(), pair

    def check_trust(self, peer, plain):
        """Refuse a peer that does not say of the path what this host says. plain: it says that it is trusted.

        Neither end can be talked down: that of a peer whose file was changed, or lies, ends here, and what it cannot change is that its tokens
        are good for the one kind of connection only that both agreed on.
        """
        ours = self.node.peers.trusted(peer)
        if ours == plain:
            return
        says = {True: "trusted", False: "not trusted"}
        options = {True: "--trusted", False: "--no-trusted"}
        raise Refused(
            f"{self.node.name} says that the path to {peer} is {says[ours]}, and {peer} says that it is {says[plain]}",
            hint=f"on {peer}: qrep peer set {self.node.name} {options[ours]}; or on {self.node.name}: qrep peer set {peer} {options[plain]}",
            code="trust-mismatch",
        )

    def serve(self, target, channel, hello, volume, job, rendezvous=None, refusal=lambda: None):
        """One session to its end. An open generation is kept for the next one; a volume that is written once is given back when it was."""
        target.observer = functools.partial(self._tell, volume, job, hello is None)
        reason = target.serve(channel, rendezvous or self.node.rendezvous, hello, refusal)
        if reason is not None:
            self.node.events.add("session-ended", reason, volume=volume, job=job)
        if target.damaged:
            self.node.events.add("volume-damaged", target.damaged, volume=volume, job=job)
        else:
            self.node.note_root(target)
            self.node.pairs.once.look_after(volume)

    def _tell(self, volume, job, local, code, text, **data):
        """What a target volume says. Of blocks that were left out, the source of a job on this host says it."""
        if not local or code in ("generation-abandoned", "points-out-of-reach"):
            self.node.events.add(code, text, volume=volume, job=job, **data)

    def data(self, stream, peer):
        """A connection of a run that was told the token by the volume it writes to."""
        channel = transport.Channel(stream, "source")
        try:
            join = transport.admit(channel)
            if not isinstance(join, messages.Join):
                raise ProtocolError("a data connection begins with Join")

            def make(index):
                return transport.DataConnection(transport.welcome(channel, index), index)

            if self.node.rendezvous.deliver(join.token, make, lambda owner: owner == (peer, False)) is None:
                raise ProtocolError("nobody waits for this data connection")
        except QrepError:
            channel.close()
            raise

    def plain(self, stream, token):
        """The same without TLS: the token says whose it is, and whether that path is trusted."""
        channel = transport.Channel(stream, "source")

        def make(index):
            return transport.DataConnection(transport.welcome(channel, index), index)

        def fits(owner):
            return owner is not None and owner.plain and self.node.peers.trusted(owner.peer)

        try:
            if self.node.rendezvous.deliver(token, make, fits) is None:
                raise ProtocolError("nobody waits for this plain data connection")
        except QrepError:
            channel.close()
            raise
