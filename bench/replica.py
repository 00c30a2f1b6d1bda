"""Jobs between two real agents, for benches that go through the command line."""

from measure import GIB, MIB, Sample, cpu_of, process_peak


class Replica:
    """agents: an Agents. pairs: [(source, target)], each a job, db0, db1, ... of as many connections, over TLS unless trust() said otherwise.

    size: bytes of all sources together.
    """

    def __init__(self, agents, pairs, size, connections=2):
        self.pairs, self.size, self.connections = dict(enumerate(pairs)), size, connections
        self.near, self.far = agents.pair()
        self.names = [f"db{number}" for number in self.pairs]
        for number, (source, _) in self.pairs.items():
            self.near.qrep("volume", "add", f"db{number}", source, "--snapshots", "none")
        self._made = False

    def renew(self, connections=None):
        """As if there had been no run: the next one is a full one."""
        self.connections = connections or self.connections
        for number, (_, target) in self.pairs.items():
            name = f"db{number}"
            if self._made:
                self.near.qrep("job", "delete", name, "-y")
                self.far.qrep("volume", "remove", name, "-y")
            self.far.qrep("volume", "add", name, target, "--snapshots", "none", "--accept", self.near.name)
            self.near.qrep("job", "create", name, "--source", name, "--target", f"{self.far.name}:{name}", "--connections", self.connections, "-y")
        self._made = True

    def trust(self, trusted):
        """Whether data travels plain from now on."""
        for end, other in ((self.near, self.far), (self.far, self.near)):
            end.qrep("peer", "set", other.name, "--trusted" if trusted else "--no-trusted")

    def run(self, changed=0):
        """From `qrep start --wait` to its prompt: a rate over all sources, with what it cost each agent. changed: bytes, if known."""
        pids = self.near.process.pid, self.far.process.pid
        reports, cost = cpu_of(lambda: self.near.qrep("start", *self.names, "--wait"), *pids)
        self.reports = reports
        figures = {"wire": self._sum("sent") / changed, "read": self._sum("read") / changed} if changed else {}
        source, target = (cost.of[pid] / (self.size / GIB) for pid in pids)
        return Sample(self.size / cost.seconds, cpu_source=source, cpu_target=target, rss=max(map(process_peak, pids)) / MIB, **figures)

    def _sum(self, name):
        return sum(report[name] for report in self.reports.values())
