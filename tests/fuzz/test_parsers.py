"""The parsers in Python, fed for some seconds with what is nearly right; what was found before, again; and each kind of defect is noticed."""

import json
import logging
import random
import struct
import types

import msgspec
import pytest
from fuzz import parsers
from fuzz.parsers import BLOCK, Broken, Fuzzer

from qrep import packets, sealed, units
from qrep.daemon import control
from qrep.daemon.front import screen
from qrep.errors import ProtocolError
from qrep.nbd import handshake, transmission
from qrep.protocol import messages as say

BLOCKS, CANARY_BLOCKS = 60, 200

# What came out before it was put right: (parser, input).
FOUND = [
    ("packets to the front", b"\x81\xa1t\xa5se\xc6\xff\xff\xff\xffrve"),  # UnicodeDecodeError, which ended the thread that listens to the other process
    ("packets of the front", b"\x91" * 5000),  # RecursionError
    ("request", b"[" * 60_000),  # RecursionError: "internal error" instead of exit code 2
    ("query of events", {"after": "9" * 30}),  # OverflowError of SQLite
    ("query of events", {"since": "0001-01-01"}),
    ("parse_space", "39999999999999999999x"),  # it was that many bytes
]


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)  # each damaged file is told
    yield
    logging.disable(logging.NOTSET)


def test_nothing_comes_out_of_a_parser_that_it_does_not_document(seed):
    fuzzer = Fuzzer(seed)
    for number in range(BLOCKS):
        fuzzer.block(number)
    print(f"{sum(fuzzer.counts.values())} executions, the slowest {fuzzer.slowest[0]:.3f} s, of {fuzzer.slowest[1]}")


def test_every_parser_takes_what_is_right_and_has_its_share(seed):
    fuzzer = Fuzzer(seed)
    for parser in fuzzer.parsers:
        fuzzer.run(parser, random.Random(f"{seed}:{parser.name}"), 200, f"seed {seed}")


@pytest.mark.parametrize("name, data", FOUND, ids=range(len(FOUND)))
def test_what_was_found_is_refused_as_documented(name, data):
    (parser,) = Fuzzer(1, only=(name,)).parsers
    with pytest.raises(parser.allowed):
        parser.parse(data)


def _lengths(patch):
    patch.setattr(say, "_check_chunk", lambda message: None)
    encode = say.encode

    def checked(message):
        if isinstance(message, (say.Applied, say.Digests)) and len(message.values) != 32 * len(message.states):
            raise IndexError("a list that is shorter than its states was used")
        return encode(message)

    patch.setattr(say, "encode", checked)


def _wide(patch):
    patch.setattr(say, "_check_wide", lambda message: None)
    encode = say.encode

    def checked(message):
        for name in say._wide_fields[type(message)]:
            getattr(message, name).to_bytes(8, "little")
        return encode(message)

    patch.setattr(say, "encode", checked)


def _but_for_text(decode):
    """Refuses what is no message, but for texts that are none."""

    def check(data):
        try:
            return decode(data)
        except msgspec.DecodeError as err:
            raise ProtocolError(str(err)) from err

    return check


def _screen(patch):
    question = screen.Rule(_but_for_text(screen._question.decode), 1 << 16, 0)
    patch.setitem(screen.RULES, parsers.tls.ASK, (question, screen.RULES[parsers.tls.ASK][1]))


def _line(patch):
    patch.setattr(packets.Line, "receive", lambda self: _but_for_text(self._decoder.decode)(self.socket.recv(packets.PACKET_MAX)))


def _info(patch):
    def unchecked(data):
        (length,) = struct.unpack_from(">I", data)
        (count,) = struct.unpack_from(">H", data, 4 + length)
        return data[4 : 4 + length], set(struct.unpack_from(f">{count}H", data, 6 + length))

    patch.setattr(handshake, "_info_request", unchecked)


def _bounds(patch):
    check = transmission.Transmission._check

    def unchecked(self, flags, command, offset, length):
        error = check(self, flags, command, offset, length)
        return 0 if error in (28, 22) and command in (0, 1, 4, 6) and not flags and length else error

    patch.setattr(transmission.Transmission, "_check", unchecked)


def _units(patch):
    def parse_size(text):
        return -1 if text.startswith("-") else 0

    patch.setattr(units, "parse_size", parse_size)


def _sealed(patch):
    patch.setattr(sealed, "load", lambda data, name: json.loads(bytes(data)[: -sealed.DIGEST_LINE]))


def _body(patch):
    def unchecked(data):
        try:
            return json.loads(data)
        except RecursionError as err:
            raise MemoryError from err

    patch.setattr(control, "json", types.SimpleNamespace(loads=unchecked))


# Defects by what they are left out of: (seed_it(monkeypatch), parsers that are to notice).
CANARIES = {
    "the lengths of lists that belong together": (_lengths, ("target says",)),
    "numbers of more than 64 bits": (_wide, ("source says",)),
    "questions that are none": (_screen, ("screen of qrep-ask/1",)),
    "packets with half characters": (_line, ("packets of the front",)),
    "lengths within an NBD option": (_info, ("NBD handshake",)),
    "bounds of an NBD request": (_bounds, ("NBD requests",)),
    "sizes below zero": (_units, ("parse_size",)),
    "digests of files": (_sealed, ("points", "standing", "pairs")),
    "depth of a request": (_body, ("request",)),
}


def caught(seed, seed_it, names):
    with pytest.MonkeyPatch.context() as patch:
        seed_it(patch)
        fuzzer = Fuzzer(seed, only=names)
        for number in range(CANARY_BLOCKS):
            try:
                fuzzer.block(number)
            except Broken as broken:
                print(f"after {number * BLOCK} executions: {str(broken)[:300]}")
                return True
    return False


@pytest.mark.parametrize("canary", CANARIES)
def test_a_defect_is_noticed(canary, seed):
    assert caught(seed, *CANARIES[canary]), f"{CANARY_BLOCKS * BLOCK} executions did not notice, seed {seed}"


def test_an_example_of_every_message_is_one():
    for union in (say.Union[say.SOURCE_SAYS], say.Union[say.TARGET_SAYS]):
        for cls in parsers.classes(union):
            msgspec.convert(parsers.example(cls), cls)
