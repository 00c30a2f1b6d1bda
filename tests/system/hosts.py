"""Site-a and site-b as two hosts: an agent in a network namespace each, a cable between them, and both know each other."""

from agents import inside
from cables import addresses


def two_hosts(agents, cables):
    """The two agents. cables: cables.Cables with at least one cable, entered."""
    a, b = (
        agents.agent(name, host="0.0.0.0", port=7414, prefix=inside(space), start=False)
        for name, space in zip(("site-a", "site-b"), cables.spaces, strict=True)
    )
    for agent in (a, b):
        agent.start()
    here, there = addresses(0)
    a.qrep("peer", "add", "site-b", there, "-y")
    b.qrep("peer", "add", "site-a", here, "-y")
    return a, b
