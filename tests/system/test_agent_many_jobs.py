"""Many jobs in one agent: all commit, none starves, and memory, threads and descriptors stay bounded. Limits of configured jobs."""

import os
import time
from collections import Counter

import pytest
from agents import MIB, b3sum, wait_until

pytestmark = pytest.mark.root
SIZE = MIB // 2
# What an agent may hold, both ends of every run within it and one connection each: 181 MiB were seen with 4 runs, 727 with 32.
RSS_IDLE_MIB, RSS_RUN_MIB = 96, 48


class Fleet:
    """`count` jobs of one agent over small image files on tmpfs: job03 reads source-job03 and writes target-job03.

    They share a rate, so that as many run at once as may, until faster() is called.
    """

    def __init__(self, agents, directory, count, jobs_running, random_source):
        self.agent = agents.agent("site-a", limits={"jobs_running": jobs_running})
        self.directory, self.names, self.random = directory, [f"job{number:02}" for number in range(count)], random_source
        self.agent.qrep("shape", "set", "all", "--peak", "4M")
        for name in self.names:
            for end in ("source", "target"):
                path = self.path(end, name)
                path.write_bytes(random_source.randbytes(SIZE) if end == "source" else bytes(SIZE))
                self.agent.qrep("volume", "add", f"{end}-{name}", path, "--snapshots", "none", "--granule", "64K")
            self.agent.qrep("job", "create", name, "--source", f"source-{name}", "--target", f"target-{name}", "--connections", 1, "--shape", "all")

    def faster(self):
        self.agent.qrep("shape", "set", "all", "--peak", "unlimited")

    def path(self, end, name):
        return self.directory / f"{name}.{end}"

    def change(self):
        for name in self.names:
            with open(self.path("source", name), "r+b") as file:
                file.seek(self.random.randrange(SIZE // 4096) * 4096)
                file.write(self.random.randbytes(4096))

    def run_all(self):
        """Start all at once and wait for all. Returns the largest number that ran at once and the deepest queue that was seen."""
        before = self.commits()
        self.agent.qrep("start", *self.names)
        most, deepest, left = 0, 0, True
        while left:
            jobs = self.agent.qrep("status")["jobs"]
            assert not [job["problem"] for job in jobs if job["state"] == "failed"]
            most = max(most, self.agent.client().get("/node")["runs"]["going"])
            queues = [job["queue"] for job in jobs if job["queue"]]
            assert all(1 <= queue["position"] <= queue["waiting"] for queue in queues)
            deepest = max(deepest, len(queues))
            left = [job for job in jobs if job["state"] != "idle"]
            time.sleep(0.1)
        assert self.commits() - before == Counter(self.names)
        return most, deepest

    def assert_equal(self):
        for name in self.names:
            assert self.path("target", name).read_bytes() == self.path("source", name).read_bytes(), name
        assert b3sum(self.path("target", self.names[-1])) == self.agent.job(self.names[-1])["root"]

    def commits(self):
        return Counter({job["name"]: job["counter"] or 0 for job in self.agent.qrep("status")["jobs"]})

    def held(self):
        """What the agent's process holds: KiB resident at most so far (pages of hugetlbfs included), threads, descriptors."""
        proc = f"/proc/{self.agent.process.pid}"
        with open(f"{proc}/status") as file:
            values = dict(line.split(":", 1) for line in file)
        kib = sum(int(values[key].split()[0]) for key in ("VmHWM", "HugetlbPages") if key in values)
        return kib, int(values["Threads"]), len(os.listdir(f"{proc}/fd"))


def check_many(fleet, jobs_running, at_least, rounds):
    began_kib, began_threads, began_descriptors = fleet.held()
    most, deepest = fleet.run_all()
    assert at_least <= most <= jobs_running and deepest >= 1
    fleet.assert_equal()
    fleet.faster()
    first_kib, threads, descriptors = fleet.held()
    # What stays for every target that has been written to: its device, its undo store, its superblock.
    assert descriptors - began_descriptors <= 8 * len(fleet.names)
    for _ in range(rounds):
        fleet.change()
        assert fleet.run_all()[0] <= jobs_running
    fleet.assert_equal()
    # Threads of runs and of finished requests end a moment after their jobs are idle.
    wait_until(lambda: fleet.held()[1] <= began_threads + 4 and fleet.held()[2] <= descriptors + 4)
    most_kib = fleet.held()[0]
    print(f"{len(fleet.names)} jobs, {most} at once: at most {most_kib >> 10} MiB resident ({began_kib >> 10} before the first run, "
          f"{first_kib >> 10} after it), {began_threads} threads before and {threads} after, {began_descriptors} and {descriptors} descriptors")  # fmt: skip
    assert most_kib >> 10 <= RSS_IDLE_MIB + jobs_running * RSS_RUN_MIB


def check_nobody_starves(fleet, rounds):
    """All are due every second, which is more than can run: each gets its turn, again and again."""
    before = fleet.commits()
    for name in fleet.names:
        fleet.agent.qrep("job", "set", name, "--schedule", "every 1s")
    wait_until(lambda: min((fleet.commits() - before).get(name, 0) for name in fleet.names) >= rounds, 120, every=0.2)
    counts = fleet.commits() - before
    assert max(counts.values()) <= 4 * min(counts.values()) + 4, counts
    for name in fleet.names:
        fleet.agent.qrep("job", "set", name, "--schedule", "none")
    wait_until(lambda: all(job["state"] == "idle" for job in fleet.agent.qrep("status")["jobs"]), 60)
    fleet.assert_equal()
    assert "run-failed" not in fleet.agent.codes()


def test_24_jobs_of_which_4_may_run_all_commit_and_none_starves(agents, memory_dir, random_source):
    fleet = Fleet(agents, memory_dir, 24, 4, random_source)
    check_many(fleet, 4, at_least=2, rounds=1)
    check_nobody_starves(fleet, 2)


@pytest.mark.slow
def test_64_jobs_of_which_32_may_run_all_commit_and_memory_stays_bounded(agents, memory_dir, random_source):
    fleet = Fleet(agents, memory_dir, 64, 32, random_source)
    check_many(fleet, 32, at_least=16, rounds=3)
    check_nobody_starves(fleet, 5)


def test_jobs_beyond_a_limit_are_refused_with_the_limit_and_the_way_out(agents, memory_dir):
    limits = {"pairs_local": 2, "pairs_remote": 2, "pairs_per_source": 3}
    a, b = agents.pair(limits=limits)
    for name in ("db", "web", "t1", "t2", "t3"):
        (memory_dir / name).write_bytes(bytes(SIZE))
        (memory_dir / f"far-{name}").write_bytes(bytes(SIZE))
        a.qrep("volume", "add", name, memory_dir / name)
        b.qrep("volume", "add", name, memory_dir / f"far-{name}", "--accept", "site-a")

    def create(agent, name, source, target):
        return ("job", "create", name, "--source", source, "--target", target)

    def refused(agent, key, *arguments):
        error = agent.refused(*create(agent, *arguments))
        assert (error["code"], error["exit"]) == ("too-many-jobs", 5) and f"limits.{key}" in error["hint"], error
        return error

    a.qrep(*create(a, "l1", "db", "t1"))
    a.qrep(*create(a, "l2", "db", "t2"))
    assert "2 jobs within this host, and no more than 2" in refused(a, "pairs_local", "l3", "web", "t3")["message"]
    a.qrep(*create(a, "r1", "db", "site-b:t1"))
    assert "3 jobs with source db, and no more than 3" in refused(a, "pairs_per_source", "r2", "db", "site-b:t2")["message"]
    a.qrep(*create(a, "r2", "web", "site-b:t2"))
    assert "2 jobs to other hosts, and no more than 2" in refused(a, "pairs_remote", "r3", "web", "site-b:t3")["message"]
    for name in ("l2", "r2"):
        a.qrep("job", "delete", name, "-y")
    # There is room again; and no cascade, in whichever direction, here and there.
    for arguments in (("x", "t1", "t3"), ("x", "web", "db"), ("x", "t1", "site-b:web")):
        assert a.refused(*create(a, *arguments))["code"] == "cascading"
    assert b.refused(*create(b, "x", "t1", "web"))["code"] == "cascading"
    b.qrep(*create(b, "there", "t3", "db"))
    assert a.refused(*create(a, "x", "web", "site-b:t3"))["code"] == "cascading"
    a.qrep(*create(a, "l3", "web", "t3"))
