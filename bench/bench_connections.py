"""n connections over a link that is shaped per connection: n times the rate (N1); and one of four that is slow (N2).

Whole runs through the engine; data travels over n cables between two network namespaces, each with a token bucket of tc's, so nothing that
limits is qrep's. The run's clock runs from before the snapshot to after the commit.
"""

import contextlib
import os
import shutil
import socket
import tempfile
import threading

import pytest
from cables import Cables
from measure import FULL, MIB, add_row, figure_row

from qrep import device
from qrep.copy import LocalTarget, local_request
from qrep.errors import QrepError
from qrep.protocol.transport import Channel, DataConnection, admit, join, welcome
from qrep.source.flow import Run
from qrep.target.volume import TargetVolume

RATE = 40 * MIB  # bytes/s of a cable
SECONDS = 4 if FULL else 0.4  # that a run takes at n times that
JOB, VOLUME = bytes([1]) * 16, bytes([2]) * 16
WIRE = 1448 / 1514  # of a full segment on a cable is data (timestamps, Ethernet); the bucket of tc counts all of it


@contextlib.contextmanager
def cables(rates):
    try:
        made = Cables(rates).__enter__()
    except RuntimeError as err:
        pytest.skip(f"no shaped namespaces here: {err}")
    with contextlib.ExitStack() as undo:
        undo.callback(made.__exit__)
        yield made


def serve(listening, rendezvous):
    """Data connections that arrive, until the listener is shut down."""
    while True:
        try:
            stream, _ = listening.accept()
        except OSError:
            return
        channel = Channel(stream, "source")
        with contextlib.suppress(QrepError):
            first = admit(channel)
            if rendezvous.deliver(first.token, lambda index, channel=channel: DataConnection(welcome(channel, index), index)) is None:
                channel.close()


def full_copy(rates, size):
    """Seconds of one full run of `size` random bytes, and what each connection has carried."""
    directory = tempfile.mkdtemp(prefix="qrep-bench-", dir="/dev/shm")
    try:
        source, target = (os.path.join(directory, name) for name in ("source", "target"))
        with open(source, "wb") as image:
            for start in range(0, size, 64 * MIB):
                image.write(os.urandom(min(64 * MIB, size - start)))
        with open(target, "wb") as image:
            image.truncate(size)
        with cables(rates) as link, TargetVolume(device.inspect(target), f"{directory}/t", volume_id=VOLUME) as volume:
            local, listening = LocalTarget(volume), link.listen()
            thread = threading.Thread(target=serve, args=(listening, local.rendezvous), daemon=True)
            thread.start()

            def connect(token, slot):
                index, stream = join(link.connect(slot, listening), token)
                return DataConnection(stream, index)

            request = local_request(source, directory, job_id=JOB, volume_id=VOLUME, connections=len(rates))
            try:
                report = Run(request, local.dial, connect).run()
            finally:
                listening.shutdown(socket.SHUT_RDWR)
                thread.join()
                listening.close()
            assert report.interruptions == 0
            return report.seconds, [link.sent(number) for number in range(len(rates))]
    finally:
        shutil.rmtree(directory)


def test_n_connections_carry_n_times_what_one_does(benchmark):
    figures = {}

    def sweep():
        for count in (1, 2, 4):
            size = int(count * RATE * SECONDS) // (8 * MIB) * (8 * MIB) + 8 * MIB
            seconds, _ = full_copy([RATE] * count, size)
            figures[count] = size / seconds

    benchmark.pedantic(sweep, rounds=1, iterations=1)
    add_row(figure_row("N1", f"one connection over a cable of {RATE // MIB} MiB/s: of what it carries", [figures[1] / (RATE * WIRE)],
                       first=0.90, goal=0.98, at_most=False), benchmark)  # fmt: skip
    for count in (2, 4):
        add_row(figure_row("N1", f"rate of {count} connections / {count} x rate of one", [figures[count] / (count * figures[1])],
                           first=0.95, goal=0.98, at_most=False), benchmark)  # fmt: skip


def test_a_slow_connection_among_four_holds_nobody_back(benchmark):
    rates = [RATE, RATE, RATE, RATE // 10]
    size = int(sum(rates) * SECONDS) // (8 * MIB) * (8 * MIB) + 8 * MIB
    found = []
    benchmark.pedantic(lambda: found.append(full_copy(rates, size)), rounds=1, iterations=1)
    [(seconds, sent)] = found
    ideal = size / (sum(rates) * WIRE)
    add_row(figure_row("N2", "4 connections, one at a tenth: seconds / all at their rates", [seconds / ideal], first=1.5, goal=1.2), benchmark)
    add_row(figure_row("N2", "share of the slow one / its share of the link", [sent[3] / sum(sent) / (rates[3] / sum(rates))], first=0.5, goal=0.9,
                       at_most=False), benchmark)  # fmt: skip
