"""Networks that misbehave: old frames that come after a fail-over, single bytes, data connections that take nothing more. Both ends are equal after."""

import time

import pytest
from agents import MIB, wait_until
from badlink import BadLink
from system.pathscene import FAIL_OVER_S, over_links

pytestmark = pytest.mark.root
SIZE = 48 * MIB
RATE = 10 * MIB


@pytest.fixture
def links():
    """Those of the paths, once there are some: 1 is the first."""
    return []


@pytest.fixture
def scene(agents, links, loop_device, fill, undo_after):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    return over_links(agents, links, source, target, SIZE, lambda host, port: undo_after.enter_context(BadLink(host, port, RATE)))


def test_frames_that_the_lost_path_brings_after_the_fail_over_are_not_applied(scene, links):
    scene.going()
    before, began = scene.carried(2), time.monotonic()
    links[0].hold(16 * MIB)
    assert scene.failed_over("a relay that holds everything", began, before) < FAIL_OVER_S
    links[0].release()  # in the middle of the run over path 2
    print(f"held {links[0].held} bytes, {links[0].refused} of them refused, {links[0].delivered} still taken by a socket that nobody reads")
    assert links[0].held >= 8 * MIB
    scene.ends_well()
    assert scene.switched()[0] == 2 and scene.b.job()["counter"] == 1
    assert "volume-damaged" not in scene.b.codes()


def test_single_bytes_are_slow_and_not_dead(scene, links):
    links[0].crumble(3000)  # the greetings of control and data connections
    scene.a.qrep("start", "db")
    wait_until(lambda: scene.carried(1) > SIZE / 4)
    links[0].crumble(400_000)
    scene.ends_well()
    assert links[0].crumbs <= 0 and scene.a.job()["last_run"]["interruptions"] == 0 and scene.switched() == []


@pytest.mark.slow
def test_data_connections_that_take_nothing_more_while_the_heartbeat_goes_on_are_made_anew(scene, links):
    scene.going()
    before, began = scene.carried(2), time.monotonic()
    links[0].stall()
    seconds = scene.failed_over("data connections stalled in a relay, heartbeat alive", began, before)
    assert 30 <= seconds < 45
    scene.ends_well()
    assert "nothing moved on the data connections" in scene.a.events("run-interrupted")[0]["text"]
