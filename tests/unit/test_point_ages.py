"""How long sync points have been kept, when the clock on the wall is wrong, points.json is lost, or the host is switched off."""

import time

import pytest

from qrep import sealed
from qrep.retention import Point, Policy, parse_grid, plan
from qrep.store import Directory
from qrep.target import ages
from qrep.target.points import NAME, Points

HOUR, DAY = 3600, 86400
START = 1_800_000_000 // DAY * DAY
GRID = "24x1h 7x1d"


class Host:
    """A target of one volume: its wall clock is `wrong` seconds off, and true time goes by only when it is told to."""

    def __init__(self, path, monkeypatch):
        self.path, self.now, self.up, self.boot, self.wrong = path, float(START), 1000.0, "b1", 0.0
        self.made = []  # (id, true time), newest first, of what is still kept
        monkeypatch.setattr(time, "time_ns", lambda: int((self.now + self.wrong) * 1e9))
        monkeypatch.setattr(time, "clock_gettime_ns", lambda clock: int(self.up * 1e9))
        monkeypatch.setattr(ages, "boot_id", lambda: self.boot)
        self.start()

    def start(self):
        self.points = Points(Directory(self.path))
        self.notes()

    def passes(self, seconds):
        self.now += seconds
        self.up += seconds
        self.notes()

    def notes(self):
        """As the agent does every two seconds."""
        if self.points.time_to_note():
            self.points.note_time()

    def is_off(self, seconds):
        self.now += seconds
        self.boot, self.up = self.boot + "'", 30.0
        self.start()

    def commits(self, policy, every=0):
        self.passes(every)
        new = len(self.made).to_bytes(4, "big") + int(self.now).to_bytes(12, "big")
        self.made.insert(0, (new, self.now))
        self.points.record(new, 1, False, 0)
        return self.thins(policy)

    def thins(self, policy):
        """True ages in seconds, when it was newest, of what goes now."""
        keep = set(plan(self.points.aged([new for new, _ in self.made]), policy).keep)
        gone = [self.made[0][1] - when for new, when in self.made if new not in keep]
        self.made = [(new, when) for new, when in self.made if new in keep]
        self.points.keep([new for new, _ in self.made])
        return gone

    def ages(self):
        return [round((self.made[0][1] - when) / HOUR) for _, when in self.made]


@pytest.fixture
def host(memory_dir, monkeypatch):
    return Host(memory_dir, monkeypatch)


@pytest.fixture
def full(host):
    """A sync point every hour for ten days, by the grid."""
    policy = Policy(count=2, grid=parse_grid(GRID))
    for _ in range(240):
        host.commits(policy, HOUR)
    assert host.ages()[:24] == list(range(24)) and len(host.made) == 24 + 5
    return host, policy


@pytest.mark.parametrize("wrong", [-20 * 365 * DAY, -DAY, -5 * HOUR, 5 * HOUR, 400 * DAY])
def test_a_clock_that_is_wrong_at_one_commit_takes_no_point_of_the_grid_away(full, wrong):
    host, policy = full
    ideal = host.made
    for number in range(9 * 24):
        host.wrong = wrong if number == 0 else 0
        host.commits(policy, HOUR)
        ideal = [host.made[0], *ideal]
        keep = set(plan([Point(new, int(when * 1e9), int(when * 1e9)) for new, when in ideal], policy).keep)
        ideal = [(new, when) for new, when in ideal if new in keep]
        assert set(ideal) <= set(host.made), f"{number} hours later"
    assert len(host.made) <= 24 + 7, "and what was kept for it goes when the grid does not reach back to it"


@pytest.mark.parametrize("wrong", [-20 * 365 * DAY, -HOUR, HOUR, 8 * DAY, 20 * 365 * DAY])
@pytest.mark.parametrize("stays", [False, True])
def test_a_floor_is_kept_by_true_time_whatever_the_clock_says(host, wrong, stays):
    policy = Policy(count=0, floor_seconds=7 * DAY)
    gone = []
    for number in range(20 * 4):
        if number == 40:
            host.wrong = wrong
        elif number == 41 and not stays:
            host.wrong = 0
        gone += host.commits(policy, 6 * HOUR)
    assert gone and min(gone) >= 7 * DAY
    assert len(host.made) == 28, "and nothing stays for longer"


def test_a_lost_file_of_points_takes_nothing_away_and_nothing_stays_for_ever(full):
    host, policy = full
    before = {new for new, _ in host.made}
    (host.path / NAME).write_bytes(b"rot")
    host.start()
    host.thins(policy)
    host.commits(policy, HOUR)
    host.start()
    host.commits(policy, HOUR)
    assert before <= {new for new, _ in host.made}
    gone = []
    for _ in range(7 * 24 + 2):
        gone += host.commits(policy, HOUR)
    assert not before & {new for new, _ in host.made} and len(host.made) <= 24 + 7


def test_a_lost_file_of_points_starts_the_floor_anew(host):
    policy = Policy(count=0, floor_seconds=7 * DAY)
    for _ in range(10):
        host.commits(policy, 12 * HOUR)
    before = {new for new, _ in host.made}
    (host.path / NAME).unlink()
    host.start()
    for _ in range(13):
        assert host.commits(policy, 12 * HOUR) == []
    assert before <= {new for new, _ in host.made}
    host.commits(policy, DAY)
    assert not before & {new for new, _ in host.made}


def test_time_for_which_the_host_is_off_does_not_count_and_a_time_that_runs_does_without_commits(host):
    policy = Policy(count=0, floor_seconds=2 * DAY)
    host.commits(policy)
    host.is_off(30 * DAY)
    host.commits(policy, HOUR)
    assert host.ages()[1] == 721
    for _ in range(45):
        host.passes(HOUR)
    host.is_off(DAY)
    host.passes(HOUR)
    host.commits(policy, HOUR)
    assert len(host.made) == 2, "1 + 45 + 2 hours were seen since the first commit, 47 since the second"


def test_a_clock_that_is_wrong_after_the_start_of_the_host_leaves_the_floor_alone(host):
    policy = Policy(count=0, floor_seconds=7 * DAY)
    for _ in range(10):
        host.commits(policy, 12 * HOUR)
    for wrong in (-30 * 365 * DAY, 30 * 365 * DAY):
        host.is_off(60)
        host.wrong = wrong
        assert host.commits(policy, HOUR) == []
    assert len(host.made) == 12


def test_a_volume_that_was_kept_by_an_earlier_version_has_points_of_no_known_age(host):
    policy = Policy(count=0, floor_seconds=DAY)
    for _ in range(3):
        host.commits(policy, HOUR)
    known = sealed.read(Directory(host.path), NAME, 1 << 20)
    sealed.write(Directory(host.path), NAME, {name: facts for name, facts in known.items() if name != "ages"})
    host.start()
    assert host.thins(policy) == [] and host.commits(policy, 23 * HOUR) == []
    assert len(host.commits(policy, HOUR)) == 3


def test_many_runs_do_not_push_out_points_whose_times_were_lost():
    """200 whose ages nobody knows, and a source that commits as often as it can: what is made anew is thinned."""
    lost = [Point(bytes([0, number]) * 8, START * 10**9, 10**9, False) for number in range(120)]
    burst = [Point(bytes([1 + number // 256, number % 256]) * 8, (START + number) * 10**9, (2 + number) * 10**9, True) for number in range(1000)][::-1]
    for policy in (Policy(count=0, floor_seconds=7 * DAY), Policy(count=0, grid=parse_grid("256x1h"))):
        found = plan(burst + lost, policy)
        assert {point.id for point in lost} <= set(found.keep)
