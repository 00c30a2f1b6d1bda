"""The two ends of a replication as programs, over TCP on the loopback, for tests that kill them.

    ends.py target DEVICE STATE          prints a JSON line once it is ready: port, seconds it took, committed counter; ends with its stdin,
                                         when it has done what it was asked for
    ends.py rollback DEVICE STATE COUNTER  puts a sync point back, prints its counter
    ends.py take-over|give-up|role DEVICE STATE  changes the role, or none; prints what the volume is then
    ends.py delete DEVICE STATE COUNTER    gives a sync point up
    ends.py points DEVICE STATE            prints {counter: BLAKE3 of what a sync point shows} of all there are
    ends.py source DEVICE STATE PORT [none|reflink|hints] [resize]  one run; prints its report as a JSON line. hints: reflink, and the
                                         last generation's snapshot is kept. resize: it begins with one connection,
                                         slowly, gets two more, loses them, and goes on at full speed
    ends.py defect NAME ...              any of these, with a defect of power/defects.py or misconduct.py
    ends.py verify DEVICE STATE PORT     verify --repair; prints its report as a JSON line

Each says on stderr what it has left open at its end.
"""

import collections
import contextlib
import json
import os
import socket
import sys
import threading
import time

import blake3

from qrep import device
from qrep._native.bucket import Bucket
from qrep.copy import local_request
from qrep.errors import QrepError, Unreachable
from qrep.protocol import messages as say
from qrep.protocol.transport import Channel, DataConnection, Rendezvous, admit, join, welcome
from qrep.source.flow import Run
from qrep.source.found import put_into_map
from qrep.source.verify import verify
from qrep.target.volume import TargetVolume
from qrep.volumes.none import Live
from qrep.volumes.reflink import Reflink

JOB, VOLUME = bytes([1]) * 16, bytes([2]) * 16
LEAF, GRANULE = 4096, 1 << 20
LEAVE_S, CLOSE_S = 2.0, 10.0
OF_AN_ATTEMPT = (".undo", "memfd:")  # stay open with an attempt that is taken up again


def held():
    """What this process has open: {what a descriptor leads to: how many}; sockets and pipes by their kind."""
    found = collections.Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # of the listing itself
            found[os.readlink(f"/proc/self/fd/{name}").partition(":[")[0]] += 1
    return found


def tell_what_is_left_open(before, allowed=()):
    """What is open and was not before; threads that are ending have CLOSE_S to close theirs. allowed: parts of names of what may be."""
    deadline = time.monotonic() + CLOSE_S
    while left := [name for name in held() - before if not any(part in name for part in allowed)]:
        if time.monotonic() > deadline:
            print(f"ResourceWarning: left open: {left}", file=sys.stderr, flush=True)
            break
        time.sleep(0.002)


def open_volume(path, state):
    volume = TargetVolume(
        device.inspect(path), os.path.join(state, "target"), volume_id=VOLUME, leaf_size=LEAF, granule_size=GRANULE, sync_points=2
    )
    return volume.open()


def target(path, state):
    start = time.monotonic()
    volume, rendezvous = open_volume(path, state), Rendezvous()
    listener = socket.create_server(("127.0.0.1", 0))
    status = volume.status()
    ready = {"port": listener.getsockname()[1], "seconds": time.monotonic() - start, **status}
    print(json.dumps(ready), flush=True)
    threading.Thread(target=leave, args=([volume], held()), daemon=True).start()
    while True:
        stream, _ = listener.accept()
        threading.Thread(target=accept, args=(volume, rendezvous, stream), daemon=True).start()


def leave(volumes, before):
    """Once stdin ends: when no session is left and what the last one asked for is done."""
    sys.stdin.read()
    deadline = time.monotonic() + LEAVE_S
    while any(volume._channels for volume in volumes) and time.monotonic() < deadline:
        time.sleep(0.002)
    tell_what_is_left_open(before, OF_AN_ATTEMPT)
    for volume in volumes:
        volume.lock.acquire()
    os._exit(0)


def accept(volume, rendezvous, stream):
    channel = Channel(stream, "source")
    try:
        first = admit(channel)
    except QrepError:
        return
    if isinstance(first, say.Hello):
        volume.serve(channel, rendezvous, first)
    elif rendezvous.deliver(first.token, lambda index: DataConnection(welcome(channel, index), index)) is None:
        channel.close()


def rollback(path, state, counter):
    volume = open_volume(path, state)
    (point,) = [point for point in volume.sync_points() if point.counter == int(counter)]
    print(json.dumps({"counter": volume.rollback(point.id).counter}), flush=True)
    volume.close()


def change_role(path, state, what):
    volume = open_volume(path, state)
    if what == "take-over":
        volume.take_over(os.urandom(16))
    elif what == "give-up":
        volume.give_up(os.urandom(16), time.time_ns())
    print(json.dumps(volume.status() | {"changed": volume.changed}), flush=True)
    volume.close()


def delete(path, state, counter):
    volume = open_volume(path, state)
    (point,) = [point for point in volume.sync_points() if point.counter == int(counter)]
    volume.delete_point(point.id)
    volume.close()


def points(path, state):
    """Each is copied out and hashed by the packaged blake3: nothing of what wrote the undo files is asked."""
    volume, found = open_volume(path, state), {}
    for point in volume.sync_points():
        copy = os.path.join(state, "copy")
        volume.copy_out(point.id, copy)
        with open(copy, "rb") as file:
            found[point.counter] = blake3.blake3(file.read()).hexdigest()
        os.unlink(copy)
    print(json.dumps(found), flush=True)
    volume.close()


def resize(run, buckets):
    """Connections come and go while the first granules are under way."""

    def until(count, state):
        while sum(entry["state"] == state for entry in run.progress()["connections"]) != count:
            time.sleep(0.005)

    until(1, "up")
    run.set_connections(3)
    until(3, "up")
    run.set_connections(1)
    until(2, "finishing")
    for bucket in buckets:
        bucket.set_rate(0)


def connected(port):
    try:
        return socket.create_connection(("127.0.0.1", int(port)))
    except OSError as err:
        raise Unreachable(str(err)) from err


def source(path, state, port, backend="none", how=""):
    slow, buckets = how == "resize", []

    def connect(token, slot):
        index, stream = join(connected(port), token)
        if slow:
            buckets.append(Bucket(128 << 10))
        return DataConnection(stream, index, bucket=buckets[-1] if slow else None)

    def dial():
        return Channel(connected(port), "target")

    request = local_request(
        path, state, job_id=JOB, volume_id=VOLUME, backend=Live() if backend == "none" else Reflink(), leaf_size=LEAF, hints=backend == "hints",
        granule_size=GRANULE, frame_limit=64 << 10, timeout_s=0.0, compress="on", **({"connections": 1, "slots": 1} if slow else {}),
    )  # fmt: skip
    put_into_map(request)
    try:
        run = Run(request, dial, connect)
        if slow:
            threading.Thread(target=resize, args=(run, buckets), daemon=True).start()
        print(json.dumps(run.run().as_dict()), flush=True)
    except QrepError as err:
        print(json.dumps(err.as_dict()), flush=True)
        sys.exit(1)


def verify_and_repair(path, state, port, backend="none", how=""):
    request = local_request(path, state, job_id=JOB, volume_id=VOLUME, leaf_size=LEAF, granule_size=GRANULE)
    try:
        report = verify(request, lambda: Channel(connected(port), "target"), repair=how != "look")
        print(json.dumps({"ok": report.ok, **report.as_dict()}), flush=True)
    except QrepError as err:
        print(json.dumps(err.as_dict()), flush=True)
        sys.exit(1)


def main(arguments):
    before = held()
    try:
        act(arguments)
    finally:
        tell_what_is_left_open(before)


def act(arguments):
    if arguments[0] in ("take-over", "give-up", "role"):
        change_role(*arguments[1:], arguments[0])
    elif arguments[0] == "defect":
        import misconduct
        from power import defects

        (defects.DEFECTS | misconduct.DEFECTS)[arguments[1]]()
        act(arguments[2:])
    elif arguments[0].startswith("group"):
        import groupends

        getattr(groupends, arguments[0])(*arguments[1:])
    else:
        programs = {"target": target, "rollback": rollback, "delete": delete, "points": points, "source": source, "verify": verify_and_repair}
        programs[arguments[0]](*arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
