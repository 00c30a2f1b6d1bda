"""Two hosts joined by two cables: network namespaces and veth pairs, with a switch in the middle of each cable that can swallow what it is given."""

import os

import pytest
from machine import need_tool, run

ADDRESSES = (("10.97.1.1", "10.97.1.2"), ("10.97.2.1", "10.97.2.2"))  # of cable 1 and 2: site-a's and site-b's end


class Cables:
    """spaces: the namespaces of site-a and site-b; between them a third one with a bridge per cable."""

    def __init__(self, undo_after, shaped_mbit=0):
        need_tool("ip")
        name = f"qrep-{os.getpid()}"
        self.spaces, self.switch = (f"{name}-a", f"{name}-b"), f"{name}-m"
        try:
            for space in (*self.spaces, self.switch):
                run("ip", "netns", "add", space)
                undo_after.callback(run, "ip", "netns", "delete", space)
            for space in self.spaces:
                self.inside(space, "ip", "link", "set", "lo", "up")
            for number, addresses in enumerate(ADDRESSES, 1):
                self._lay(number, addresses, shaped_mbit)
        except RuntimeError as err:
            pytest.skip(f"no network namespaces here: {err}")

    @staticmethod
    def inside(space, *command):
        return run("ip", "netns", "exec", space, *command)

    def _lay(self, number, addresses, shaped_mbit):
        self.inside(self.switch, "ip", "link", "add", f"br{number}", "type", "bridge")
        self.inside(self.switch, "ip", "link", "set", f"br{number}", "up")
        for space, side, address in zip(self.spaces, "ab", addresses, strict=True):
            run("ip", "link", "add", f"end{number}", "netns", space, "type", "veth", "peer", "name", f"{side}{number}", "netns", self.switch)
            self.inside(space, "ip", "address", "add", f"{address}/24", "dev", f"end{number}")
            self.inside(space, "ip", "link", "set", f"end{number}", "up")
            self.inside(self.switch, "ip", "link", "set", f"{side}{number}", "master", f"br{number}", "up")
            if shaped_mbit:
                shape = ("rate", f"{shaped_mbit}mbit", "burst", "64k", "latency", "50ms")
                self.inside(space, "tc", "qdisc", "add", "dev", f"end{number}", "root", "tbf", *shape)

    def pull(self, number, side=0):
        """Site-a's (0) or site-b's (1) end of the cable has no link."""
        self.inside(self.spaces[side], "ip", "link", "set", f"end{number}", "down")

    def plug(self, number, side=0):
        self.inside(self.spaces[side], "ip", "link", "set", f"end{number}", "up")

    def swallow(self, number):
        """The switch takes everything and passes nothing on; both ends have link, and nobody says a word."""
        self.inside(self.switch, "ip", "link", "set", f"b{number}", "nomaster")
        self.inside(self.switch, "ip", "link", "set", f"a{number}", "nomaster")

    def pass_on(self, number):
        for side in "ab":
            self.inside(self.switch, "ip", "link", "set", f"{side}{number}", "master", f"br{number}")

    def sent(self, number):
        """Bytes that site-a has put on a cable."""
        return int(self.inside(self.spaces[0], "cat", f"/sys/class/net/end{number}/statistics/tx_bytes"))
