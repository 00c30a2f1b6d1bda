"""Two network namespaces joined by several cables, each with its rate: a link that is shaped per connection, where each connection has its own.

    with Cables([40 * MIB] * 4) as cables:
        listening = cables.listen()                  # at side b, on all its addresses
        stream = cables.connect(2, listening)        # from side a, over cable 2

Cable i joins 10.98.i.1 (side a) and 10.98.i.2 (side b); what side a sends is shaped by tc's token bucket.
"""

import contextlib
import ctypes
import itertools
import os
import socket
import threading

from machine import run

CLONE_NEWNET = 0x40000000
BURST = 256 << 10  # bytes: several of the largest segments
_numbers = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


def addresses(number):
    return f"10.98.{number}.1", f"10.98.{number}.2"


class Cables:
    """rates: bytes per second of each cable, 0: as fast as it goes. Raises RuntimeError where there are no namespaces or no shaping."""

    def __init__(self, rates):
        self.rates = list(rates)
        self.spaces = [f"qrep-{os.getpid()}-{next(_numbers)}-{side}" for side in "ab"]
        self._undo = contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as undo:
            for space in self.spaces:
                run("ip", "netns", "add", space)
                undo.callback(run, "ip", "netns", "delete", space)
                run("ip", "netns", "exec", space, "ip", "link", "set", "lo", "up")
            for number, rate in enumerate(self.rates):
                self._lay(number, rate)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_exception):
        self._undo.close()

    def _lay(self, number, rate):
        a, b = self.spaces
        run("ip", "link", "add", f"cable-{number}", "netns", a, "type", "veth", "peer", "name", f"cable-{number}", "netns", b)
        for space, address in zip(self.spaces, addresses(number), strict=True):
            run("ip", "-n", space, "address", "add", f"{address}/24", "dev", f"cable-{number}")
            run("ip", "-n", space, "link", "set", f"cable-{number}", "up")
        if rate:
            run("tc", "-n", a, "qdisc", "add", "dev", f"cable-{number}", "root", "tbf", "rate", f"{8 * rate}bit", "burst", str(BURST), "latency", "30ms")

    def sent(self, number):
        """Bytes that went over a cable from side a."""
        return int(run("ip", "netns", "exec", self.spaces[0], "cat", f"/sys/class/net/cable-{number}/statistics/tx_bytes"))

    def inside(self, side, function):
        """What function() returns, called by a thread that lives at side a (0) or b (1); sockets it makes stay there."""
        result = []

        def work():
            with open(f"/run/netns/{self.spaces[side]}") as space:
                if _libc.setns(space.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            try:
                result.append((function(), None))
            except OSError as err:
                result.append((None, err))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if not result:
            raise RuntimeError("no thread in that namespace")
        value, error = result[0]
        if error is not None:
            raise error
        return value

    def listen(self):
        return self.inside(1, lambda: socket.create_server(("0.0.0.0", 0), backlog=64))

    def connect(self, number, listening):
        source, target = addresses(number)
        port = listening.getsockname()[1]
        return self.inside(0, lambda: socket.create_connection((target, port), 10, source_address=(source, 0)))
