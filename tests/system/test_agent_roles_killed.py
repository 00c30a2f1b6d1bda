"""kill -9 of an agent at every step of a change of roles: its next start finishes what the superblock says, or takes it back, and the command can be
given again. The data is then where it was to be, and the next run goes on from it."""

import pytest
from agents import b3sum, wait_until
from fault.test_role_kills import FINISH_POINTS

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
