"""Who may talk to an agent, and what of it is secret."""

import os
import socket
import stat

import pytest
from agents import MIB, wait_until

pytestmark = pytest.mark.root
NOBODY = 65534


def as_nobody(action):
    """What action() returned, a string, in a child process of the user nobody."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        try:
            text = action()
        except OSError as err:
            text = repr(err)
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode()
    assert os.waitpid(child, 0)[1] == 0
    return said


def ask(path):
    """The answer to a good request, sent by whoever this is."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(path))
        stream.settimeout(5)
        try:
            stream.sendall(b"GET /v1/node HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return f"heard {stream.recv(1000)!r}"
        except ConnectionError:
            return "heard b''"


@pytest.fixture
def open_agent(agents, memory_dir):
    """An agent whose directories anyone may enter, so that only the socket itself keeps people out."""
    agent = agents.agent("site-a")
    for directory in (memory_dir, agent.directory):
        directory.chmod(0o755)
    return agent


def test_another_user_may_not_open_the_socket_and_is_told_so(open_agent):
    assert "HTTP/1.1 200" in ask(open_agent.socket)
    assert stat.S_IMODE(open_agent.socket.stat().st_mode) == 0o600
    assert "PermissionError" in as_nobody(lambda: ask(open_agent.socket))
    open_agent.qrep("status")  # everything is imported that nobody could not read
    said = as_nobody(lambda: "{0} {2}".format(*open_agent.run_command("status")))
    assert said.startswith("4 ") and "does not serve this user" in said and "run qrep as root" in said


def test_a_socket_that_someone_opened_to_all_still_serves_root_only(open_agent):
    """SO_PEERCRED, whatever the mode says: not a byte of the request is answered."""
    open_agent.socket.chmod(0o666)
    assert as_nobody(lambda: ask(open_agent.socket)) == "heard b''"
    assert open_agent.qrep("status")["jobs"] == []


def test_keys_that_others_may_read_are_refused_at_start(agents):
    agent = agents.agent("site-a")
    agent.terminate()
    key = agent.state / "keys" / "node.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    key.chmod(0o640)
    agent.spawn()
    assert agent.process.wait(20) == 5
    assert f"chmod 600 {key}" in agent.log
    assert not agent.socket.exists()


def test_a_second_agent_does_not_start_on_the_state_the_socket_or_the_port_of_the_first(agents, memory_dir):
    first = agents.agent("site-a")
    second = agents.agent("site-b", start=False)
    cases = {
        "an agent uses": {"state": first.state}, "an agent answers": {"socket": first.socket}, "cannot listen": {"config": first.config},
    }  # fmt: skip
    for words, places in cases.items():
        kept = {name: getattr(second, name) for name in places}
        for name, place in places.items():
            setattr(second, name, place)
        second.spawn()
        assert second.process.wait(20) == 5
        assert words in second.log and "action:" in second.log
        for name, place in kept.items():
            setattr(second, name, place)
    assert first.qrep("status")["node"]["name"] == "site-a", "the first one goes on"
    second.start()


def test_a_socket_that_a_dead_agent_left_is_replaced_and_a_file_is_not(agents):
    agent = agents.agent("site-a")
    agent.kill()
    assert agent.socket.exists()
    agent.start()
    agent.terminate()
    agent.socket.write_text("mine")
    agent.spawn()
    assert agent.process.wait(20) == 5 and "is no socket" in agent.log
    assert agent.socket.read_text() == "mine"


def test_nothing_secret_is_shown_and_everything_kept_is_private(agents, loop_device, fill):
    source, target = loop_device(8 * MIB), loop_device(8 * MIB)
    fill(source, 8 * MIB)
    a, b = agents.replica(source, target, link_rate=4 * MIB)
    a.qrep("start", "db")
    wait_until(lambda: agents.link.carried > MIB)
    secrets = {line for agent in (a, b) for line in (agent.state / "keys" / "node.key").read_text().splitlines()[1:-1]}
    shown = ""
    for agent in (a, b):
        with open(f"/proc/{agent.process.pid}/cmdline") as file:
            shown += file.read()
        for command in ("status", "events", "peer", "volume", "job"):
            shown += agent.run_command("--json", command)[1]
    wait_until(lambda: a.job()["counter"] == 1)
    shown += a.log + b.log
    assert "PRIVATE" not in shown and not [secret for secret in secrets if secret in shown]
    for agent in (a, b):
        for place in (agent.state, agent.config / "peers", agent.config / "volumes"):
            for path in [place, *place.rglob("*")]:
                mode = stat.S_IMODE(path.stat().st_mode)
                assert not mode & 0o077, f"{path} has mode {mode:04o}"


def test_requests_that_are_none(agents):
    """The API answers each with an error of its own, and goes on."""
    agent = agents.agent("site-a")

    def ask(request):
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(agent.socket))
            stream.settimeout(10)
            stream.sendall(request)
            said = b""
            try:
                while part := stream.recv(65536):
                    said += part
                    if b"\r\n\r\n" in said and said.endswith(b"}"):
                        break
            except ConnectionError:
                pass
        return said

    def post(body, path=b"/v1/volumes"):
        return ask(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    for request, status, words in (
        (ask(b"GET /v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n"), b"404", b"no-such-request"),
        (ask(b"PUT /v1/volumes HTTP/1.1\r\nHost: x\r\n\r\n"), b"405", b"no-such-request"),
        (post(b"{"), b"400", b"not JSON"),
        (post(b"[]"), b"400", b"not a JSON object"),
        (post(b'{"name": 1, "device": "/dev/x"}'), b"400", b"not of type str"),
        (post(b'{"name": "a", "device": "/dev/x", "colour": "red"}'), b"400", b"unknown field"),
        (post(b'{"name": "a"}'), b"400", b"missing field"),
        (post(b'{"name": "a\\u001b[31m", "device": "/dev/null"}'), b"400", b"cannot name"),
        (post(b'{"name": "a", "device": "/dev/\\n"}'), b"400", b"cannot be the device"),
        (post(b"x" * 70000), b"400", b"more than"),
        (ask(b"GET /v1/events?since=yesterday HTTP/1.1\r\nHost: x\r\n\r\n"), b"400", b"ISO"),
        (ask(b"GET /v1/tasks/../node HTTP/1.1\r\nHost: x\r\n\r\n"), b"404", b"no-such-request"),
    ):
        assert status in request.split(b"\r\n")[0] and words in request, request
    assert os.path.exists(agent.socket) and agent.qrep("status")["jobs"] == []
