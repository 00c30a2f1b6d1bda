"""Site-a and site-b with a job between them, and two ways to get there: cables between namespaces, or relays."""

import time

from agents import MIB, b3sum, inside, wait_until
from system.cables import ADDRESSES

FAIL_OVER_S = 10.0  # with the default settings, in every scenario


class PathScene:
    """job db, not yet run. carried(path): bytes that site-a has sent over path 1 or 2."""

    def __init__(self, a, b, addresses, carried, source, target, size, *, job=()):
        self.a, self.b, self.carried, self.source, self.target, self.size = a, b, carried, source, target, size
        a.qrep("peer", "add", "site-b", ",".join(addresses), "-y")
        b.qrep("peer", "add", "site-a", f"{a.host}:{a.port}", "-y")
        a.qrep("volume", "add", "db", source, "--granule", "1M")
        b.qrep("volume", "add", "db", target, "--accept", "site-a")
        a.qrep("job", "create", "db", "--source", "db", "--target", "site-b:db", *job)

    def going(self, part=0.25, path=1):
        """Start a run and wait until so much of the volume has left over a path."""
        before = self.carried(path)
        self.a.qrep("start", "db")
        wait_until(lambda: self.carried(path) - before > part * self.size)

    def failed_over(self, scenario, began, before, to=2):
        """Wait until frames go over the other path, which had carried `before` bytes. Returns the seconds since `began`."""
        wait_until(lambda: self.carried(to) - before > MIB, seconds=60)
        seconds = time.monotonic() - began
        print(f"fail-over in {seconds:.1f} s: {scenario}")
        return seconds

    def switched(self):
        """The paths that the job moved to, in order."""
        return [event["data"]["path"] for event in self.a.events("path-switched")]

    def ends_well(self, counter=1, seconds=60):
        wait_until(lambda: self.a.job()["counter"] == counter and self.a.job()["progress"] is None, seconds=seconds)
        assert self.a.job()["root"] == b3sum(self.target) == b3sum(self.source)


def over_cables(agents, cables, source, target, size, **options):
    node = options.pop("node", None)
    a, b = (
        agents.agent(name, host=host, port=7414, prefix=inside(space), start=False, node=node)
        for name, host, space in zip(("site-a", "site-b"), ("0.0.0.0", "0.0.0.0"), cables.spaces, strict=True)
    )
    for agent in (a, b):
        agent.start()
    a.host = ADDRESSES[0][0]  # by which site-b knows it
    return PathScene(a, b, [there for _here, there in ADDRESSES], cables.sent, source, target, size, **options)


def over_links(agents, links, source, target, size, make_link, **options):
    """links: filled with what make_link(host, port) makes, entered, one per path."""
    a, b = agents.pair(known=False)
    links += [make_link(b.host, b.port) for _ in range(2)]
    return PathScene(a, b, [f"127.0.0.1:{link.port}" for link in links], lambda path: links[path - 1].carried, source, target, size, **options)
