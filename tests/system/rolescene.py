"""Two sites whose volume changes hands: agents in network namespaces of their own, loop devices with a filesystem, and what people do to them."""

import contextlib

from agents import MIB, b3sum, inside, wait_until
from cables import addresses
from machine import is_free, run

SIZE = 24 * MIB


class RoleScene:
    """job db: site-a:db -> site-b:db, with one sync point. files: what every file of the filesystem holds."""

    def __init__(self, agents, cables, source, target, point, *, job=(), synced=True, switch=False):
        self.a, self.b = (
            agents.agent(name, host="0.0.0.0", port=7414, prefix=inside(space), start=False)
            for name, space in zip(("site-a", "site-b"), cables.spaces, strict=True)
        )
        self.sites = {"site-a": self.a, "site-b": self.b}
        self.device = {"site-a": source, "site-b": target}
        self.point, self.cables = point, cables
        for agent in (self.a, self.b):
            agent.start()
        here, there = addresses(0)
        self.a.qrep("peer", "add", "site-b", f"{there}:7414", "-y")
        self.b.qrep("peer", "add", "site-a", f"{here}:7414", "-y")
        if switch:
            self.a.qrep("peer", "set", "site-b", "--may-switch")
            self.b.qrep("peer", "set", "site-a", "--may-switch")
        self.files = {}
        run("mkfs.ext4", "-q", "-F", source)
        self.write("site-a", "first", b"one" * 1000)
        self.a.qrep("volume", "add", "db", source, "--granule", "1M")
        self.b.qrep("volume", "add", "db", target, "--accept", "site-a", "--undo-space", "8x")
        self.a.qrep("job", "create", "db", "--source", "db", "--target", "site-b:db", *job)
        if synced:
            self.a.run()

    @contextlib.contextmanager
    def mounted(self, site):
        """The volume of a site in the hands of its host."""
        self.point.mkdir(exist_ok=True)
        run("mount", self.device[site], self.point)
        try:
            yield self.point
        finally:
            run("umount", self.point)
            wait_until(lambda: is_free(self.device[site]), seconds=60)  # a namespace made meanwhile may keep the mount a moment longer

    def write(self, site, name, content):
        with self.mounted(site) as point:
            (point / name).write_bytes(content)
        self.files[name] = content

    def holds(self, site, files=None):
        with self.mounted(site) as point:
            found = {path.name: path.read_bytes() for path in point.iterdir() if path.is_file()}
        assert found == (self.files if files is None else files)

    def equal(self):
        """Both devices, by a stranger's b3sum."""
        sums = {site: b3sum(device, SIZE) for site, device in self.device.items()}
        assert sums["site-a"] == sums["site-b"], sums
        return sums["site-a"]

    def sync(self, site, other):
        """A run from a site to the other one; it ends with both sides equal."""
        report = self.sites[site].run()
        assert report["root"] == b3sum(self.device[other], SIZE)
        return report

    def idle(self, site):
        wait_until(lambda: self.sites[site].job()["progress"] is None and self.sites[site].job()["state"] in ("idle", "failed"), seconds=60)
