"""kill -9 of an agent at every step of a change of roles: its next start finishes what the superblock says, or takes it back, and the command can be
given again. The data is then where it was to be, and the next run goes on from it."""

import contextlib

import pytest
from agents import b3sum, wait_until
from fault.test_role_kills import FINISH_POINTS
from machine import run

pytestmark = pytest.mark.root

TAKE_OVER = ("role-take-over-before", "superblock-write-before", "role-taken-over", *FINISH_POINTS)
GIVE_UP = ("superblock-create-before", "source-frame-sent", "role-give-up-before", "role-mapped", "superblock-write-durable", "role-given-up", *FINISH_POINTS)
def killed(agent, point, *command):
    """Give a command to an agent that dies at a crash point of it, and start that agent again."""
    agent.terminate()
    agent.start(QREP_CRASH=f"{point}:1")
    code, _out, _err = agent.run_command(*command)
    assert code, "the agent was to die in it"
    assert agent.process.wait(30) == -9
    agent.start()


def role(agent):
    return agent.qrep("volume", "show", "db")["role"]


def switched(scene):
    """site-b is primary and site-a its replica, both with the same content; the next runs go there."""
    assert (role(scene.b), role(scene.a)) == ("primary", "replica")
    scene.equal()
    scene.holds("site-b")
    scene.write("site-b", "later", b"later" * 100)
    scene.sync("site-b", "site-a")
    scene.holds("site-b")


@pytest.mark.slow
@pytest.mark.parametrize("point", TAKE_OVER)
def test_a_target_killed_while_it_takes_over(sites, point):
    scene = sites()
    scene.a.qrep("job", "demote", "db", "-y")
    killed(scene.b, point, "job", "promote", "db", "-y")
    codes = scene.b.codes()
    assert ("role-taken-back" in codes) != ("role-finished" in codes)
    if "role-taken-back" in codes:
        assert role(scene.b) == "replica"
        scene.b.qrep("job", "promote", "db", "-y")
    switched(scene)


@pytest.mark.slow
@pytest.mark.parametrize("point", GIVE_UP)
def test_a_source_killed_while_it_gives_up(sites, point):
    scene = sites()
    scene.write("site-a", "second", b"2" * 50000)
    killed(scene.a, point, "job", "demote", "db", "-y")
    wait_until(lambda: scene.a.job()["progress"] is None and scene.a.job()["state"] != "syncing", seconds=60)
    if role(scene.a) != "replica":
        scene.a.qrep("job", "demote", "db", "-y")
    scene.b.qrep("job", "promote", "db", "-y")
    switched(scene)


def fails_back(agent):
    """Whether the command did it; not yet if the run that was taken up waits for its turn still."""
    code, answer, _err = agent.call("job", "failback", "db", "-y")
    assert not code or answer["error"]["code"] == "busy", answer
    return not code


@pytest.mark.slow
@pytest.mark.parametrize(
    ("site", "point"),
    [("site-b", "source-frame-sent"), ("site-a", "target-write-done"), ("site-b", "role-mapped"), ("site-b", "role-given-up"), ("site-a", "role-taken-over")],
)
def test_a_failback_that_is_interrupted_is_given_again(sites, site, point):
    scene = sites()
    only_a = dict(scene.files)
    scene.write("site-a", "only-on-a", b"a" * 30000)
    scene.a.kill()
    scene.b.qrep("job", "promote", "db", "--force")
    scene.files = only_a
    scene.write("site-b", "second", b"2" * 50000)
    scene.a.start()
    discarded = b3sum(scene.device["site-a"])
    scene.a.qrep("job", "demote", "db", "-y")

    agent = scene.sites[site]
    agent.terminate()
    agent.start(QREP_CRASH=f"{point}:1")
    scene.b.run_command("job", "failback", "db", "-y")
    assert agent.process.wait(60) == -9
    agent.start()
    wait_until(lambda: scene.b.job()["progress"] is None, seconds=60)
    if role(scene.b) == "primary":
        wait_until(lambda: fails_back(scene.b), seconds=60)
    elif role(scene.a) == "replica":
        scene.a.qrep("job", "promote", "db", "-y")
    assert (role(scene.a), role(scene.b)) == ("primary", "replica")
    scene.equal()
    scene.holds("site-a")
    assert b3sum(scene.device["site-a"]) != discarded
    scene.sync("site-a", "site-b")


@contextlib.contextmanager
def small_state(agent, scratch):
    """The state directory of an agent on a filesystem of its own; yields a function that fills it, and returns the file that does."""
    agent.terminate()
    run("cp", "-a", agent.state, scratch / "state")
    run("mount", "-t", "tmpfs", "-o", "size=128m,mode=0700", "none", agent.state)
    try:
        run("cp", "-a", f"{scratch / 'state'}/.", agent.state)
        agent.start()

        def fill():
            with open(agent.state / "filler", "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
                while True:
                    file.write(bytes(4096))
            return agent.state / "filler"

        yield fill
    finally:
        agent.end()
        run("umount", agent.state)


@pytest.mark.slow
def test_a_full_state_disk_refuses_a_switch_and_keeps_neither_the_agent_nor_the_host_from_one_that_was_decided(sites, tmp_path):
    scene = sites()
    scene.a.qrep("job", "demote", "db", "-y")
    with small_state(scene.b, tmp_path) as fill:
        filler = fill()
        error = scene.b.refused("job", "promote", "db", "-y")
        assert (error["code"], error["exit"], role(scene.b)) == ("no-room", 5, "replica"), error
        filler.unlink()

        scene.b.terminate()
        scene.b.start(QREP_CRASH="role-taken-over:1")
        assert scene.b.run_command("job", "promote", "db", "-y")[0] and scene.b.process.wait(30) == -9
        filler = fill()
        scene.b.start()
        shown = scene.b.qrep("volume", "show", "db")
        assert shown["role"] == "primary" and "not finished" in shown["problem"]["message"] and "make room" in shown["problem"]["hint"]
        problem = scene.b.job()["problem"]
        assert "not finished" in problem["text"] and problem["action"]
        scene.holds("site-b")
        filler.unlink()
        wait_until(lambda: scene.b.qrep("volume", "show", "db")["problem"] is None, seconds=60)
        assert "role-finished" in scene.b.codes() and role(scene.a) == "replica"
        scene.write("site-b", "later", b"later" * 100)
        scene.sync("site-b", "site-a")
        scene.holds("site-b")
