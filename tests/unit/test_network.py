"""A front that somebody else has taken over: whatever it says, the engine ends it, keeps nothing open, and goes on."""

import contextlib
import os
import socket
import subprocess
import threading
from types import SimpleNamespace

import pytest
from agents import wait_until

from qrep import packets
from qrep.config import Peer
from qrep.daemon import confined, network, tls
from qrep.daemon.front import talk
from qrep.errors import Unreachable

PEER = Peer(addresses=["127.0.0.1"], fingerprint="SHA256:x", certificate="x")


class Front:
    """In place of the process: says whatever a test wants. heard: what the engine asks; None: it is not read."""

    def __init__(self, command, pass_fds, dies=False, **_options):
        self.dies, self.pid, self.heard, self.killed = dies, os.getpid(), [], False
        self.line = packets.Line(socket.socket(fileno=os.dup(pass_fds[0])), talk.ENGINE_SAYS, talk.DESCRIPTORS_MAX)
        self.reads, self.thread = True, threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        with contextlib.suppress(packets.Gone):
            self.line.receive()
            self.line.send(talk.Ready(addresses=[], landlock=0, empty_root=False, unprivileged=False))
            if self.dies:
                self.kill()
            while self.reads:
                self.heard.append(self.line.receive()[0])

    def poll(self):
        return -9 if self.killed else None

    def kill(self):
        self.killed = True
        with contextlib.suppress(OSError):
            self.line.socket.shutdown(socket.SHUT_RDWR)

    def wait(self, timeout=None):
        if not self.killed:
            raise subprocess.TimeoutExpired("front", timeout)
        return -9


class World:
    """The Network, the front it has now, what came in by it, and what it told of."""

    def __init__(self, identity_file):
        self.fronts, self.accepted, self.events, self.peers = [], [], [], {"site-b": PEER}
        self.begun, self.may_begin, self.dying = 0, threading.Event(), set()
        self.may_begin.set()
        identity = SimpleNamespace(key_path=str(identity_file), certificate="x", fingerprint="x")
        settings, limits = SimpleNamespace(user="nobody", listen=[], port=1), SimpleNamespace(connections_half_open=1, connections=1)
        listener = SimpleNamespace(
            accepted=lambda stream, *_what: self.accepted.append(stream), accepted_plain=lambda stream, *_what: self.accepted.append(stream)
        )
        log = SimpleNamespace(add=lambda code, text, **data: self.events.append((code, text, data)))
        self.network = network.Network(identity, settings, limits, lambda: self.peers, lambda: listener, log, "/")

    def popen(self, *arguments, **options):
        self.begun += 1
        self.may_begin.wait()
        self.fronts.append(Front(*arguments, **options, dies=len(self.fronts) in self.dying))
        return self.fronts[-1]

    def front(self, number=0):
        """Front `number`, once it is asked things: it has been told of the peers."""
        wait_until(lambda: len(self.fronts) > number and self.fronts[number].heard)
        return self.fronts[number]

    def ended(self, number=0):
        """Why front `number` was ended, once another one is there."""
        wait_until(lambda: self.fronts[number].killed and len(self.fronts) > number + 1)
        return [text for code, text, _ in self.events if code == "front-ended"][number]


@pytest.fixture
def world(tmp_path, monkeypatch):
    (tmp_path / "key").write_bytes(b"key")
    made = World(tmp_path / "key")
    monkeypatch.setattr(
        network, "subprocess", SimpleNamespace(Popen=made.popen, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired)
    )
    made.network.start()
    yield made
    made.network.stop()
    for front in made.fronts:
        front.line.close()


def packet_with(descriptor):
    return {
        "accepted": talk.Accepted(number=1 << 32, peer="site-b", purpose=tls.CONTROL, host="h"),
        "plain": talk.Plain(token=b"t" * 32, host="h"),
    }[descriptor]


@pytest.mark.parametrize("what", ["accepted", "plain"])
@pytest.mark.parametrize("kind", ["a file", "datagrams", "packets", "udp", "the other one"])
def test_a_descriptor_of_another_kind_ends_the_front_and_is_not_kept(world, what, kind):
    if kind == "a file":
        given = os.memfd_create("given")  # its number is its own, so that it can be counted
    else:
        stream = (socket.AF_INET if what == "accepted" else socket.AF_UNIX, socket.SOCK_STREAM)
        family = {"datagrams": (socket.AF_UNIX, socket.SOCK_DGRAM), "packets": (socket.AF_UNIX, socket.SOCK_SEQPACKET),
                  "udp": (socket.AF_INET, socket.SOCK_DGRAM), "the other one": stream}[kind]  # fmt: skip
        given = socket.socket(*family).detach()
    before = identities()
    mine = os.fstat(given)
    world.fronts[0].line.send(packet_with(what), given)
    os.close(given)
    assert "descriptors that do not belong to" in world.ended()
    assert world.accepted == []
    assert identities().count((mine.st_dev, mine.st_ino)) == before.count((mine.st_dev, mine.st_ino)) - 1


def identities():
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            status = os.fstat(int(name))
            found.append((status.st_dev, status.st_ino))
    return found


def test_a_socket_of_the_right_kind_is_taken(world):
    near, far = socket.socketpair()
    with near, far:
        world.fronts[0].line.send(packet_with("accepted"), far.fileno())
        wait_until(lambda: world.accepted)
    world.accepted[0].close()


@pytest.mark.parametrize(("count", "reason"), [(0, "do not belong"), (2, "do not belong"), (3, "too long")])
def test_another_number_of_descriptors_ends_the_front(world, count, reason):
    near, far = socket.socketpair()
    with near, far:
        world.fronts[0].line.send(packet_with("accepted"), *[near.fileno()] * count)
        assert reason in world.ended()


def test_a_connection_that_only_says_that_the_kernel_encrypts_it_is_never_written_to(world):
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()) as bare:
        near, far = socket.socketpair()
        with near, far:
            world.fronts[0].line.send(talk.Dialled(number=7, plain=False, local="", kernel=True), far.fileno(), bare.fileno())
            assert "does not encrypt" in world.ended()


def test_an_answer_to_another_question_ends_the_front_and_who_asked_hears_it(world):
    asked = {
        "dial": lambda: world.network.connect(("127.0.0.1", 1), tls.ASK, PEER),
        "dial-plain": lambda: world.network.connect_plain(("127.0.0.1", 1)),
        "look": lambda: world.network.look(("127.0.0.1", 1)),
    }
    for number, ask in enumerate(asked.values()):
        front, raised = world.front(number), []

        def attempt(ask=ask, raised=raised):
            try:
                ask()
            except Unreachable as error:
                raised.append(error.code)

        thread = threading.Thread(target=attempt)
        thread.start()
        wait_until(lambda front=front: [each for each in front.heard if hasattr(each, "hosts")])
        question = next(each for each in front.heard if hasattr(each, "hosts"))
        front.line.send(talk.Counted(number=question.number, half_open=0))
        thread.join(20)
        assert raised == ["front-restarting"]
        assert "Counted for" in world.ended(number)


def test_names_that_it_makes_up_are_not_subjects_of_events(world):
    for peer in ("site-b", "made-up-1", "made-up-2"):
        world.fronts[0].line.send(talk.Told(text="x", address="a", peer=peer, reason="r"))
    wait_until(lambda: len(world.events) == 3)
    assert [data.get("peer") for _code, _text, data in world.events] == ["site-b", None, None]


def test_its_notes_are_bounded(world, capfd):
    for _ in range(100):
        world.fronts[0].line.send(talk.Note(text="a bug\x1b[2J"))
    world.fronts[0].line.send(talk.Told(text="the last", address="", peer="", reason=""))
    wait_until(lambda: world.events)
    printed = capfd.readouterr().err
    assert 1 <= printed.count("a bug") <= 20 and "\x1b" not in printed


def test_a_front_that_begins_while_the_agent_ends_is_ended_too(world):
    world.front()
    world.may_begin.clear()
    world.fronts[0].kill()
    wait_until(lambda: world.begun == 2)
    world.network.stop()
    world.may_begin.set()
    wait_until(lambda: len(world.fronts) == 2)
    world.fronts[1].thread.join(10)
    assert not world.fronts[1].thread.is_alive() and world.fronts[1].heard == []
    wait_until(lambda: not world.network._thread.is_alive())
    assert world.network._line.socket.fileno() < 0 and [code for code, *_ in world.events] == ["front-ended"]


def test_a_front_that_is_gone_before_it_is_told_to_open_is_one_that_ended(world):
    world.front()
    world.network._open = True
    world.dying.add(1)
    world.fronts[0].kill()
    world.front(2)
    wait_until(lambda: [code for code, *_ in world.events] == ["front-ended", "front-restarted"] * 2)
    assert not [text for _code, text, _ in world.events if "could not be started" in text]


def test_a_front_that_takes_nothing_is_ended_and_nobody_waits_for_it_for_ever(world):
    world.front().reads = False
    world.network.trust("site-b", PEER)  # it ends with what it reads now
    big = Peer(addresses=["127.0.0.1"], fingerprint="x", certificate="x" * 30000)

    def fill():
        for _ in range(200):
            world.network.trust("site-b", big)

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    world.ended()
    world.fronts[0].line.close()


def test_a_process_that_has_just_ended_has_no_rights():
    process = subprocess.Popen(["true"])
    process.wait()
    assert confined.rights(process.pid) is None and confined.rights(os.getpid())["uid"] == os.getuid()
