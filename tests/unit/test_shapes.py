"""The groups of a node with a clock of our own: which rate is in force, which events are told, what is refused. And qrep.toml as a person wrote it."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from qrep import config
from qrep.daemon import nodefile
from qrep.daemon.shapes import Shapes
from qrep.errors import ConfigError, NotFound, Refused, UsageError
from qrep.settings import Shape

MIB = 1 << 20
MONDAY_0659 = datetime(2026, 11, 23, 6, 59, tzinfo=UTC)


class Jobs(dict):
    """{job: shape}, as the list of jobs of a node answers."""

    def get(self, name):
        return SimpleNamespace(settings=SimpleNamespace(shape=self[name]))

    def all(self):
        return [(name, self.get(name)) for name in sorted(self)]

    def unchanged(self):
        from contextlib import nullcontext

        return nullcontext()


class Told(list):
    def add(self, code, text, **data):
        self.append((code, text, data))


@pytest.fixture
def node(tmp_path):
    (tmp_path / "qrep.toml").write_text('[node]\ntime_zone = "UTC"\n')
    files = config.Config(tmp_path)
    return SimpleNamespace(config=files, settings=files.node(), jobs=Jobs(), events=Told())


@pytest.fixture
def clock():
    return SimpleNamespace(now=MONDAY_0659)


@pytest.fixture
def shapes(node, clock):
    return Shapes(node, now=lambda: clock.now)


OFFICE = {"peak": "8M", "hours": ["mon-fri 07:00-19:00"], "off_peak": "100M"}


def test_hours_switch_the_rate_once_at_each_border(node, clock, shapes):
    node.jobs["db"] = "office"
    assert shapes.set("office", OFFICE)["rate_bytes_per_s"] == 100 * MIB
    group = shapes.bucket("db").parent
    seen = []
    for _minute in range(24 * 60):
        clock.now += timedelta(minutes=1)
        shapes.look()
        if not seen or seen[-1][1] != group.rate:
            seen.append((f"{clock.now:%H:%M}", group.rate))
    assert seen == [("07:00", 8 * MIB), ("19:00", 100 * MIB)]
    assert [(code, text) for code, text, _data in node.events[1:]] == [
        ("shape-switched", "office: peak 8 MiB/s mon-fri 07:00-19:00, until 19:00"), ("shape-switched", "office: off-peak 100 MiB/s, until tue 07:00"),
    ]  # fmt: skip


def test_a_clock_that_is_set_counts_in_both_directions(clock, shapes):
    shapes.set("office", OFFICE)
    for hour, rate in ((12, 8), (3, 100), (18, 8)):
        clock.now = clock.now.replace(hour=hour)
        shapes.look()
        assert shapes.get("office")["rate_bytes_per_s"] == rate * MIB


def test_what_is_not_given_stays_and_it_is_written_down(node, shapes):
    shapes.set("office", OFFICE)
    assert shapes.set("office", {"peak": "16M"})["hours"] == ["mon-fri 07:00-19:00"]
    assert node.config.load("shapes", "office") == Shape(peak="16M", hours=["mon-fri 07:00-19:00"], off_peak="100M")
    assert shapes.set("office", {"hours": []})["rate_bytes_per_s"] == 16 * MIB
    assert Shapes(node).get("office")["peak"] == "16M"


def test_a_dry_run_changes_nothing(node, shapes):
    assert shapes.set("office", OFFICE, dry_run=True)["peak_bytes_per_s"] == 8 * MIB
    assert shapes.set_node_limit("50M", dry_run=True) == {"rate_bytes_per_s": 50 * MIB}
    assert shapes.all() == [] == node.config.names("shapes") == node.events and shapes.node_limit() == {"rate_bytes_per_s": None}


@pytest.mark.parametrize(("name", "fields", "says"), [
    ("office", {}, "needs a peak rate"), ("office", {"off_peak": "5M"}, "needs a peak rate"), ("office", {"peak": "63K"}, "too low"),
    ("office", {"peak": "5M", "off_peak": "1"}, "too low"), ("office", {"peak": "fast"}, "not a rate"), ("office", {"peak": "5M", "hours": ["noon"]}, "no window"),
    ("none", {"peak": "5M"}, "cannot be called none"), ("a/b", {"peak": "5M"}, "cannot name a shape"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused_and_nothing_is_kept(node, shapes, name, fields, says):
    with pytest.raises(UsageError, match=says):
        shapes.set(name, fields)
    assert node.config.names("shapes") == [] == shapes.all()


def test_hours_that_are_no_text_are_refused(shapes):
    with pytest.raises(ConfigError):
        shapes.set("office", {"peak": "5M", "hours": [7]})


def test_a_group_is_deleted_when_no_job_is_in_it(node, shapes):
    shapes.set("office", OFFICE)
    node.jobs.update(db="office", web="office", mail="")
    with pytest.raises(Refused, match="used by jobs db, web"):
        shapes.delete("office")
    node.jobs.update(db="", web="")
    shapes.delete("office")
    assert node.config.names("shapes") == [] and node.events[-1][0] == "shape-deleted"
    with pytest.raises(NotFound):
        shapes.delete("office")


def test_sixty_four_groups_keep_their_own_rates_and_jobs_move_between_them(node, shapes):
    for number in range(64):
        shapes.set(f"group-{number}", {"peak": f"{number + 1}M"})
        node.jobs[f"job-{number}"] = f"group-{number}"
    buckets = [shapes.bucket(f"job-{number}") for number in range(64)]
    assert [bucket.parent.rate for bucket in buckets] == [(number + 1) * MIB for number in range(64)]
    assert len({id(bucket.parent.parent) for bucket in buckets}) == 1
    node.jobs["job-0"] = "group-63"
    shapes.follow("job-0", "group-63")
    assert shapes.bucket("job-0") is buckets[0] and buckets[0].parent is buckets[63].parent
    node.jobs["job-0"] = ""
    shapes.follow("job-0", "")
    assert buckets[0].parent is buckets[1].parent.parent
    with pytest.raises(NotFound):
        shapes.follow("job-0", "group-64")


@pytest.mark.parametrize(("node_rate", "peak", "limit"), [
    ("unlimited", "8M", (8, "shape office: peak 8 MiB/s")), ("4M", "8M", (4, "node: 4 MiB/s for all jobs; shape office: peak 8 MiB/s")),
    ("16M", "8M", (8, "shape office: peak 8 MiB/s")), ("16M", "unlimited", (16, "node: 16 MiB/s for all jobs; shape office: peak unlimited")),
])  # fmt: skip
def test_the_limit_that_is_shown_is_the_lower_one_and_says_why(node, shapes, node_rate, peak, limit):
    node.jobs.update(db="office", web="office", mail="")
    shapes.set("office", {"peak": peak})
    shapes.set_node_limit(node_rate)
    assert shapes.limit("db", "office") == {"rate_bytes_per_s": limit[0] * MIB, "why": limit[1], "shape": "office", "shared_with": ["web"]}
    alone = shapes.limit("mail", "")
    assert alone is None if node_rate == "unlimited" else alone["why"] == f"node: {node_rate[:-1]} MiB/s for all jobs"


BY_HAND = '# mine\n[node]\nname = "a"   # short\n\n[limits] # not too much\nconnections = 64\n  rate = "5M"  # for now\n\n[hooks]\nrate = "no"\n'


@pytest.mark.parametrize(("before", "after"), [
    (BY_HAND, BY_HAND.replace('  rate = "5M"  # for now', 'rate = "7M"  # for now')),
    (BY_HAND.replace('  rate = "5M"  # for now\n', ""), BY_HAND.replace('  rate = "5M"  # for now\n', "").replace("much\n", 'much\nrate = "7M"\n')),
    ('[node]\nname = "a"', '[node]\nname = "a"\n\n[limits]\nrate = "7M"\n'), ("", '[limits]\nrate = "7M"\n'), (None, '[limits]\nrate = "7M"\n'),
])  # fmt: skip
def test_one_value_of_the_node_file_is_changed_and_every_other_line_stays(tmp_path, before, after):
    file = tmp_path / "qrep.toml"
    if before is not None:
        file.write_text(before)
    nodefile.set_value(config.Config(tmp_path), "limits", "rate", "7M", dry_run=True)
    assert file.exists() == (before is not None) and (before is None or file.read_text() == before)
    nodefile.set_value(config.Config(tmp_path), "limits", "rate", "7M")
    assert file.read_text() == after


@pytest.mark.parametrize("text", ['limits = { rate = "5M" }\n', '[node]\nname = """\n[limits]\n"""\n[limits]\nrate = "5M"\n', 'limits.rate = "5M"\n'])
def test_a_node_file_that_is_written_otherwise_is_left_alone_and_the_line_is_told(tmp_path, text):
    (tmp_path / "qrep.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        nodefile.set_value(config.Config(tmp_path), "limits", "rate", "7M")
    assert 'rate = "7M"' in caught.value.hint and (tmp_path / "qrep.toml").read_text() == text
