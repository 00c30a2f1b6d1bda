"""Two agents in two network namespaces, a job that is to be nice, and somebody who reads its source meanwhile."""

import mmap
import os
import subprocess
import threading

import pytest
from agents import MIB, wait_until
from system.cables import Cables
from system.pathscene import over_cables

from qrep import device
from qrep.source.neighbours import Neighbours

pytestmark = pytest.mark.root
SIZE, LEAF = 64 * MIB, 4096
TRIES = 50  # a machine may be so busy that nobody reads in the moment in which the run listens


class Reader(threading.Thread):
    """Reads single leaves of a device past the page cache, one after the other."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.fd, self.ended, self.reads = os.open(path, os.O_RDONLY | os.O_DIRECT), threading.Event(), 0
        self.start()

    def run(self):
        buffer = mmap.mmap(-1, LEAF)
        while not self.ended.is_set():
            os.preadv(self.fd, [buffer], self.reads * 37 * LEAF % SIZE)
            self.reads += 1
        os.close(self.fd)

    def end(self):
        """As often as one likes."""
        self.ended.set()
        self.join()


def write_all(path, data):
    with open(path, "r+b") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def test_a_nice_run_holds_back_while_somebody_reads_its_source_says_so_and_comes_to_its_end(agents, loop_device, undo_after, random_source):
    source, target = loop_device(SIZE), loop_device(SIZE)
    write_all(source, random_source.randbytes(SIZE))
    a = over_cables(agents, Cables(undo_after), source, target, SIZE).a
    assert a.qrep("job", "set", "db", "--nice")["nice"] is True
    assert a.job()["nice"] is True and "nice             yes" in a.text("job", "show", "db")[0]

    reader = Reader(source)
    undo_after.callback(reader.end)
    held = []
    for counter in range(TRIES):
        a.qrep("start", "db")

        def looked(counter=counter):
            job = a.job()
            nice = (job["progress"] or {}).get("nice")
            if nice and nice["holds_back"]:
                held.append((nice, a.text("status", "db")[0]))
            return held or (job["state"] == "idle" and (job["counter"] or 0) > counter)

        wait_until(looked, seconds=60)
        if held:
            break
    reader.end()  # now it may go on as fast as it can
    wait_until(lambda: a.job()["state"] == "idle", seconds=90)
    nice, text = held[0]
    assert nice["limit_bytes_per_s"] >= MIB and nice["others_ios_per_s"] > 0
    assert "holds back for" in text or "nice" not in text  # the run may have ended between the two questions
    assert subprocess.run(["cmp", source, target], check=False).returncode == 0
    assert a.run()["changed"] == 0
    assert a.qrep("verify", "db")["equal"]
    assert a.qrep("job", "set", "db", "--no-nice")["nice"] is False


def seen_while_somebody_reads(path, neighbours):
    """(before, after, number of reads)."""
    before = neighbours.seen()
    reader = Reader(path)
    wait_until(lambda: reader.reads >= 100)
    reader.end()
    after = neighbours.seen()
    neighbours.close()
    return before, after, reader.reads


def test_who_reads_a_device_is_seen_on_it_and_who_reads_what_it_lies_on_below_it(loop_device):
    path = loop_device(SIZE)
    neighbours = Neighbours(device.inspect(path))
    before, after, reads = seen_while_somebody_reads(path, neighbours)
    assert after.ios - before.ios >= reads and neighbours.numbers >= {device.inspect(path).device_number}
    upper = loop_device(backing=path)
    before, after, reads = seen_while_somebody_reads(path, Neighbours(device.inspect(upper)))
    assert after.ios == before.ios and after.below - before.below >= reads
