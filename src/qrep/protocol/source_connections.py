"""Data connections that come and go while a run sends: the part of SourceMachine that asks for them.

One that ends needs no message: its lane says END, the target answers it when all it brought is written, and that is all there is to know.
"""

from qrep.errors import ProtocolError
from qrep.protocol import actions as do
from qrep.protocol import messages as say


class SourceConnections:
    """Mixin of SourceMachine."""

    def set_connections(self, count):
        """How many the next session begins with."""
        self._connections = count

    def may_add_connections(self):
        """How many may be asked for now, as far as this session has numbers left; one request at a time."""
        if self.phase != "sending" or not self._lanes or self._asked_for:
            return 0
        return min(say.CONNECTIONS_MAX, say.CONNECTION_NUMBERS_MAX - self._numbers)

    def add_connections(self, count):
        """Ask for `count` more, 1 to may_add_connections(). The driver knows how many are there: the target closes a session that asks for
        more than CONNECTIONS_MAX at a time."""
        self._take("add_connections")
        assert 1 <= count <= self.may_add_connections()
        self._numbers += count
        self._asked_for = count
        return [do.Send(say.AddConnections(self.record.attempt, count))]

    def _on_added(self, message):
        self._check_attempt(message)
        asked_for, self._asked_for = self._asked_for, 0
        if len(message.tokens) != asked_for or len(set(message.tokens)) != asked_for:
            raise ProtocolError(f"the target gave {len(message.tokens)} tokens for {asked_for} more connections")
        return [do.AddSending(tuple(message.tokens))] if self._lanes else []
