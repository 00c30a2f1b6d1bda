"""A source that only says that it is there does not hold a device that is offered to it."""

import itertools
from types import SimpleNamespace

import pytest

from qrep.daemon import offers
from qrep.errors import Refused
from qrep.protocol import messages as say


def test_a_device_is_let_go_when_nothing_is_asked_of_it(monkeypatch):
    clock, answered = [0.0], []
    monkeypatch.setattr(offers, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    node = SimpleNamespace(name="site-b", pairs=SimpleNamespace(check_accepted=lambda volume, peer: None), volumes=SimpleNamespace(get=lambda name: None))
    conversation = offers.Conversation(node, SimpleNamespace(send=lambda message: None), None, "site-a", None)
    conversation._volume = SimpleNamespace(name="db")
    said = itertools.chain([say.Ping()] * 500, [say.Sample([0])], itertools.repeat(say.Ping()))

    def hear():
        clock[0] += 1
        return next(said)

    conversation._hear = hear
    conversation._answer = lambda message, question: answered.append((clock[0], message)) or True
    with pytest.raises(Refused, match="site-b:db for 600 s") as raised:
        conversation._converse(None)
    assert raised.value.code == "idle"
    at = next(when for when, message in answered if isinstance(message, say.Sample))
    assert clock[0] == at + offers.IDLE_S + 1, "a question is a reason to go on"
