"""kill -9 of whoever, whenever: seed and time of each kill are printed, and one line at the end says what came of it.

QREP_KILLS=n: how many (default 20); QREP_SEED=n: which.
"""

import os
import random
import time

import oracle
import pytest
from fault.scene import Torn, changed

pytestmark = pytest.mark.root
KILLS = int(os.environ.get("QREP_KILLS", "20"))
MISSED = 1.2  # times the length of a whole run, so that some kills come after its end


def test_kills_at_random_times(scene, seed, random_source, capsys):
    killed = recovered = torn = lies = 0
    image, started = scene.first, time.monotonic()
    length = whole_run(scene, image)
    try:
        for number in range(KILLS):
            chance = random.Random(f"{seed}:{number}")
            if chance.random() < 0.5:  # otherwise what the last run left is taken up again
                image = changed(image, random_source)
                scene.write(image)
            counter = kill_one(scene, image, chance, number, length)
            killed += 1
            after = scene.recover()
            recovered += 1
            assert after in (counter, counter + 1)
            if chance.random() < 0.2:
                scene.complete(image)
    except Torn:
        torn += 1
        raise
    except oracle.Wrong:
        lies += 1
        raise
    finally:
        minutes = (time.monotonic() - started) / 60
        with capsys.disabled():
            print(
                f"\n{killed} kills (seed {seed}), {recovered} recoveries, worst restart-ready time {scene.worst_ready_s:.3f} s, "
                f"{torn} torn targets, {lies} map lies; {killed / minutes:.0f} kills/minute"
            )
    scene.complete(image)


def whole_run(scene, image):
    """Seconds of a run from the start of its source to its end."""
    started = time.monotonic()
    scene.complete(image)
    return time.monotonic() - started


def kill_one(scene, image, chance, number, length):
    """One run and one kill. Returns the counter that was committed before."""
    victims, delay = chance.choice(["source", "target", "both"]), chance.uniform(0.0, MISSED * length)
    print(f"kill {number}: {victims} after {delay:.4f} s")
    target = scene.start("target")
    ready = scene.ready(target)
    assert ready is not None, target.errors()
    counter = ready["committed_counter"]
    scene.images[counter + 1] = image
    source = scene.start("source", ready["port"])
    time.sleep(delay)
    if victims != "source":
        target.kill()
    if victims != "target":
        source.kill()
    if victims == "source":
        scene.finish(target)  # it sees the end of its sessions, and goes in order
    scene.stop_all()
    return counter
