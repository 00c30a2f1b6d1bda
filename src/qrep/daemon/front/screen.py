"""What a peer may say on a connection of each purpose, looked at before the engine hears it: sizes, and the strict form of messages.

Frames of data connections pass as bytes: the engine's C codec checks their keyed tag before it believes a field of them.
"""

import msgspec

from qrep.daemon import asks, tls
from qrep.errors import ProtocolError
from qrep.protocol import messages
from qrep.protocol.transport import FIRST_MAX

LENGTH = 4  # bytes before every message
_question, _answer = msgspec.msgpack.Decoder(asks.Question), msgspec.msgpack.Decoder(asks.Answer)


def _ask(decoder):
    def check(body):
        try:
            decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            raise ProtocolError(f"not a message of this protocol: {err}") from err

    return check


def _message(sender):
    return lambda body: messages.decode(body, sender)


class Rule:
    """check(body): raises ProtocolError. first, later: bytes of the first message and of those after it; later 0: there are none, None: bytes
    that are no messages follow."""

    def __init__(self, check, first, later):
        self.check, self.first, self.later = check, first, later


# purpose -> what the end that accepted hears, what the end that dialled hears
RULES = {
    tls.CONTROL: (
        Rule(_message("source"), FIRST_MAX, messages.MESSAGE_MAX),
        Rule(_message("target"), messages.MESSAGE_MAX, messages.MESSAGE_MAX),
    ),
    tls.DATA: (Rule(_message("join"), FIRST_MAX, None), Rule(_message("joined"), FIRST_MAX, None)),
    tls.TEST: (
        Rule(_message("tester"), FIRST_MAX, messages.MESSAGE_MAX), Rule(_message("tested"), messages.MESSAGE_MAX, messages.MESSAGE_MAX),
    ),
    tls.ASK: (Rule(_ask(_question), asks.MESSAGE_MAX, 0), Rule(_ask(_answer), asks.MESSAGE_MAX, 0)),
}


class Screen:
    """One direction of one connection: takes bytes in pieces, gives back what may pass. Holds one message at most."""

    def __init__(self, purpose, *, accepted):
        self._rule = RULES[purpose][0 if accepted else 1]
        self._partial, self._limit = bytearray(), self._rule.first

    def take(self, data):
        """The bytes that are through, possibly none. data: a view, used before this returns or given back. Raises ProtocolError."""
        if self._limit is None:
            return data
        self._partial += data
        passed = 0
        while len(self._partial) - passed >= LENGTH and self._limit is not None:
            size = int.from_bytes(self._partial[passed : passed + LENGTH], "little")
            if not 0 < size <= self._limit:
                raise ProtocolError(f"a message of {size} bytes was announced; the limit is {self._limit}")
            end = passed + LENGTH + size
            if len(self._partial) < end:
                break
            self._rule.check(bytes(self._partial[passed + LENGTH : end]))
            passed, self._limit = end, self._rule.later
        if self._limit is None:
            passed = len(self._partial)
        elif self._limit == 0 and len(self._partial) > passed:
            raise ProtocolError("more than one message")
        through = bytes(self._partial[:passed])
        del self._partial[:passed]
        return through
