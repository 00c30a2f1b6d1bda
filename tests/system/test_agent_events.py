"""Events of a real agent: followed across its restarts, and kept in bounds while something flaps."""

import json
import signal
import socket
import threading

import pytest
from agents import wait_until
from cli_process import start

pytestmark = pytest.mark.root


def test_a_follower_loses_nothing_and_is_told_nothing_twice_over_restarts_and_kills(agents):
    agent = agents.agent("site-a")
    process = start(agent.socket, "events", "-f", "--json")
    seen, told = [], []
    reader = threading.Thread(target=lambda: [seen.append(json.loads(line)["id"]) for line in process.stdout], daemon=True)
    complaints = threading.Thread(target=lambda: [told.append(line) for line in process.stderr], daemon=True)
    reader.start()
    complaints.start()
    for end in (agent.terminate, agent.kill, agent.terminate):
        wait_until(lambda: len(seen) == len(agent.events()))
        end()
        agent.start()
    newest = agent.events()[-1]["id"]
    wait_until(lambda: seen and seen[-1] == newest)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    reader.join(20)
    assert seen == list(range(1, newest + 1))
    assert seen == [event["id"] for event in agent.events()]


def test_followers_do_not_keep_the_agent_from_ending_or_answering(agents):
    agent = agents.agent("site-a")
    followers = []
    for _ in range(60):  # more than the API has threads
        follower = socket.socket(socket.AF_UNIX)
        follower.connect(str(agent.socket))
        follower.sendall(b"GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        followers.append(follower)
    for follower in followers:
        assert follower.recv(4096).startswith(b"HTTP/1.1 200")
    assert agent.qrep("status")["jobs"] == []
    code, seconds = agent.terminate()
    assert code == 0 and seconds < 10
    for follower in followers:
        follower.close()


def test_levels_and_codes_are_chosen_on_the_command_line(agents):
    agent = agents.agent("site-a")
    assert [json.loads(line)["code"] for line in agent.run_command("--json", "events", "--code", "agent-started")[1].splitlines()] == ["agent-started"]
    assert agent.text("events", "--level", "warning") == ("", 0)
    code, _out, err = agent.run_command("events", "--code", "agent-startd")
    assert code == 2 and "did you mean agent-started?" in err
