"""kill -9 of whoever, whenever: seed and time of each kill are printed, and one line at the end says what came of it.

QREP_KILLS=n: how many (default 20); QREP_SEED=n: which. A kill after the end of its run is made, and not counted.
"""

import os
import random
import time

import oracle
import pytest
from fault.scene import Torn, changed

pytestmark = pytest.mark.root
KILLS = int(os.environ.get("QREP_KILLS", "20"))
# What a kill before and after the end of a run makes of the time within which the next one is made: one in five comes after it.
LONGER, SHORTER = 1.03, 0.9
RUNS = 3  # times as many at most


def test_kills_at_random_times(scene, seed, random_source, capsys):
    killed = recovered = torn = lies = late = both = number = 0
    image, started = scene.first, time.monotonic()
    scene.complete(image)
    image = changed(image, random_source)
    length = whole_run(scene, image)
    try:
        while killed < KILLS:
            assert number < RUNS * KILLS, f"{late} of {number} kills came too late"
            chance = random.Random(f"{seed}:{number}")
            if chance.random() < 0.5:  # otherwise what the last run left is taken up again
                image = changed(image, random_source)
                scene.write(image)
            counter, dead = kill_one(scene, image, chance, number, length)
            number, killed, both, late = number + 1, killed + (dead > 0), both + (dead == 2), late + (not dead)
            length *= LONGER if dead else SHORTER
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
                f"\n{killed} kills (seed {seed}), {both} of them of both, and {late} after the end of a run; {recovered} recoveries, "
                f"worst restart-ready time {scene.worst_ready_s:.3f} s, {torn} torn targets, {lies} map lies; {killed / minutes:.0f} kills/minute"
            )
    scene.complete(image)


def whole_run(scene, image):
    """Seconds of a run of a change, from the start of its source to its end."""
    scene.write(image)
    target = scene.start("target")
    ready, started = scene.ready(target), time.monotonic()
    scene.images[ready["committed_counter"] + 1] = image
    scene.start("source", ready["port"]).communicate()
    length = time.monotonic() - started
    scene.finish(target)
    assert scene.end_all() == [0, 0]
    return length


def kill_one(scene, image, chance, number, length):
    """One run and one kill. Returns the counter that was committed before, and how many died of it before the run had ended."""
    victims, delay = chance.choice(["source", "target", "both"]), chance.uniform(0.0, length)
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
    elif victims == "target":
        source.communicate()
    codes = scene.end_all()
    return counter, sum(code == -9 for code in codes) if codes[1] else 0
