"""Who stands between two agents and changes what passes: not one byte of it is believed, and once it stops, the job goes on."""

import os
import socket

import pytest
from agents import MIB, Agents, b3sum, wait_until
from intruder import CLOSED, hears
from machine import loop_devices
from security.hand import job_of
from security.wiretap import Middle

from qrep.daemon import plain, tls
from qrep.protocol import messages as say

pytestmark = pytest.mark.root
SIZE, LEAF = 8 * MIB, 4096
PLACE = 2 * MIB  # in a stream, well behind its handshake


@pytest.fixture(scope="module")
def tapped(tmp_path_factory):
    """(site-a, site-b, source, target, Middle): job db, run once through the Middle."""
    directory = tmp_path_factory.mktemp("agents")
    for name in ("source", "target"):
        (directory / name).write_bytes(os.urandom(SIZE) if name == "source" else bytes(SIZE))
    with loop_devices(directory / "source", directory / "target") as (source, target), Agents(directory) as agents:
        a, b = agents.pair(known=False)
        with Middle(b.host, b.port) as middle:
            a.qrep("peer", "add", b.name, f"127.0.0.1:{middle.port}", "-y")
            b.qrep("peer", "add", a.name, f"{a.host}:{a.port}", "-y")
            a.qrep("volume", "add", "db", source, "--granule", "1M")
            b.qrep("volume", "add", "db", target, "--accept", "site-a")
            a.qrep("job", "create", "db", "--source", "db", "--target", "site-b:db", "--connections", 1, "--timeout", "1s")
            a.run()
            yield a, b, source, target, middle


@pytest.fixture
def attacked(tapped, random_source):
    """tapped, with other bytes in the source; afterwards nobody stands there, and the job goes on."""
    a, b, source, target, middle = tapped
    with open(source, "r+b") as file:
        file.write(random_source.randbytes(SIZE))
    yield tapped
    middle.on_open = middle.change = middle.back = None
    assert a.run()["root"] == b3sum(target) == b3sum(source), "it goes on"
    assert "Traceback" not in a.log + b.log


def hello_of(a):
    job = job_of(a)
    fields = {
        "version_min": 1, "version_max": 1, "job_id": bytes.fromhex(job["id"]), "volume_id": bytes.fromhex(job["target_volume"]), "epoch": 900,
        "size": job["size"], "leaf_size": job["leaf"], "granule_size": job["granule"], "sector_size": 512, "plain": False, "features": [],
    }  # fmt: skip
    return say.encode(say.Hello(**fields))


def test_tls_is_not_stripped_for_either_end(attacked):
    """The near end is answered in the clear, the far end is spoken to in the clear."""
    a, b, _source, target, middle = attacked
    before, refused = b3sum(target), len(b.events("peer-refused"))
    middle.back = lambda _number, _data: tls.WELCOME + say.encode(say.Pong())
    middle.change = lambda _number, _data: hello_of(a)
    error = a.refused("start", "db", "--wait")
    assert error["code"] in ("peer-unreachable", "unreachable"), error
    wait_until(lambda: len(b.events("peer-refused")) > refused)
    assert b3sum(target) == before


@pytest.mark.parametrize("what", ["a message", *(pytest.param(name, marks=pytest.mark.slow) for name in ("a token", "half a handshake"))])
def test_what_was_put_before_the_handshake_ends_it(attacked, what):
    """As with STARTTLS, had there been one: what came in the clear would be taken for what came after."""
    a, b, _source, target, middle = attacked
    before, refused = b3sum(target), len(b.events("peer-refused"))
    put = {"a message": hello_of(a), "a token": plain.MAGIC + bytes(32), "half a handshake": b"\x16\x03\x01\x02\x00\x01"}[what]
    middle.on_open = lambda _number: put
    assert a.refused("start", "db", "--wait")["exit"]
    wait_until(lambda: len(b.events("peer-refused")) > refused)
    assert b3sum(target) == before


@pytest.mark.parametrize("attack", ["cut", "a bit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("a record of its own", "a record twice", "records exchanged"))])
def test_a_stream_that_is_changed_far_behind_its_handshake_is_given_up_and_the_rest_is_sent_anew(attacked, attack):
    a, b, source, target, middle = attacked
    done, held = [], []

    def change(number, data):
        if done or len(middle.recorded[number]) < PLACE:
            return data
        if attack == "records exchanged":
            held.append(data)
            if len(held) == 1:
                return b""
            done.append(number)
            return held[1] + held[0]
        done.append(number)
        middle_of = len(data) // 2
        return {
            "cut": None, "a record of its own": b"\x17\x03\x03\x00\x20" + bytes(32) + data, "a record twice": data + data,
            "a bit": data[:middle_of] + bytes([data[middle_of] ^ 1]) + data[middle_of + 1 :],
        }[attack]  # fmt: skip

    middle.change = change
    assert a.run()["root"] == b3sum(target) == b3sum(source)
    assert done and a.job()["last_run"]["resumed"], "it was noticed"


def test_a_recorded_session_that_is_played_again_is_nothing(attacked):
    """Every connection of a run, byte for byte; the target makes other keys each time."""
    a, b, _source, target, middle = attacked
    first = middle.opened
    root = a.run()["root"]
    played = [bytes(middle.recorded[number]) for number in range(first, middle.opened)]
    assert sum(map(len, played)) > SIZE
    refused = len(b.events("peer-refused"))
    for record in played:
        with socket.create_connection((b.host, b.port), 5) as stream:
            stream.settimeout(15)
            try:
                stream.sendall(record)
            except OSError:
                continue
            said = hears(stream)
            assert said == CLOSED or said[:1] in (b"\x16", b"\x15"), "its own hello, and an alert"
    wait_until(lambda: len(b.events("peer-refused")) > refused)
    assert b3sum(target) == root


def test_a_stream_is_not_spliced_into_another_session(attacked):
    """Behind its own handshake every data connection goes on with what the one of an earlier session said."""
    a, b, source, target, middle = attacked
    first = middle.opened
    a.run()
    earlier = max((bytes(middle.recorded[number]) for number in range(first, middle.opened)), key=len)
    with open(source, "r+b") as file:
        file.write(os.urandom(SIZE))
    done = set()

    def change(number, data):
        sent = len(middle.recorded[number])
        if sent < PLACE or (number not in done and len(done) == 2):
            return data
        done.add(number)
        return earlier[sent - len(data) : sent]

    middle.change = change
    assert a.run()["root"] == b3sum(target) == b3sum(source)
    assert done and a.job()["last_run"]["resumed"], "it was noticed each time"
