"""The three purposes of a peer's connection, each served in the thread of that connection: control sessions, data, questions."""

import contextlib

from qrep.daemon import asks
from qrep.errors import ProtocolError, QrepError, Refused
from qrep.protocol import messages, transport
from qrep.target.pulse import Pulse


class Sessions:
    """node: the Node. `peer` is always the name of the pinned host at the other end."""

    def __init__(self, node):
        self.node = node

    def ask(self, stream, peer):
        asks.answer(stream, lambda question: self.node.pairs.answer(question, peer))

    def control(self, stream, peer):
        """A run of a pair: who may talk about which volume is decided before the volume hears a word."""
        channel = transport.Channel(stream, "source")
        hello = transport.admit(channel)
        try:
            # A volume that is opened now may have to wait for a dead process's writes and put much back.
            with Pulse(channel, lambda: messages.Beat(busy="opening", received=0, written=0, undo=0)):
                target, pair = self._admit(hello, peer)
        except QrepError as error:
            with contextlib.suppress(transport.Disconnected):
                channel.send(messages.Error(code=error.code, message=error.message, hint=error.hint))
            channel.close()
            raise
        self.serve(target, channel, hello, pair["volume"], pair["job"])

    def _admit(self, hello, peer):
        if not isinstance(hello, messages.Hello):
            raise ProtocolError("a control connection begins with Hello")
        pair = self.node.db.pair(hello.job_id.hex())
        if pair is None or pair["peer"] != peer or pair["fingerprint"] != self.node.peers.fingerprint(peer):
            raise Refused(
                f"{self.node.name} has no pair for this job", hint="delete the job and create it again", code="not-paired"
            )
        volume = self.node.volumes.get(pair["volume"])
        if volume.settings.id != hello.volume_id.hex():
            raise Refused(
                f"{self.node.name}:{volume.name} is not the volume of this job any more",
                hint="delete the job and create it again",
                code="wrong-volume",
            )
        if peer not in volume.settings.accept:
            raise Refused(
                f"{self.node.name}:{volume.name} does not accept replication from this host any more",
                hint=f"on {self.node.name}: qrep volume set {volume.name} --accept {peer}",
                code="not-accepted",
            )
        return volume.replica(), pair

    def serve(self, target, channel, hello, volume, job):
        """One session to its end. An open generation is kept for the next one."""
        reason = target.serve(channel, self.node.rendezvous, hello)
        if reason is not None:
            self.node.events.add("session-ended", reason, volume=volume, job=job)
        if target.damaged:
            self.node.events.add("volume-damaged", target.damaged, volume=volume, job=job)
        else:
            self.node.note_root(target)

    def data(self, stream, peer):
        """A connection of a run that was told the token by the volume it writes to."""
        channel = transport.Channel(stream, "source")
        try:
            join = transport.admit(channel)
            if not isinstance(join, messages.Join):
                raise ProtocolError("a data connection begins with Join")

            def make(index):
                return transport.DataConnection(transport.welcome(channel, index), index)

            if self.node.rendezvous.deliver(join.token, make) is None:
                raise ProtocolError("nobody waits for this data connection")
        except QrepError:
            channel.close()
            raise
