"""The text that Prometheus reads: by its own parser, and as the table says."""

import math
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from qrep.daemon import metrictable, metricsfile
from qrep.daemon.events import EventLog
from qrep.daemon.figures import Figures
from qrep.daemon.metrics import Metrics, Samples, render
from qrep.daemon.metrictable import BUCKETS_S, FAMILIES
from qrep.daemon.statedb import StateDb

ROOT = Path(__file__).resolve().parents[2]


def parsed(text):
    """{name of a sample: {labels: value}}"""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_names_follow_the_conventions():
    for name, (kind, labels, text) in FAMILIES.items():
        assert name.startswith(("qrep_", "process_")) and kind in ("gauge", "counter", "histogram"), name
        assert (kind == "counter") == name.endswith("_total"), name
        assert "job" not in labels and "instance" not in labels and "le" not in labels, f"{name}: a label of the scrape configuration"
        assert text[0].isupper() or text[0].isdigit() and text.endswith("."), name


def test_the_document_is_what_the_table_says():
    assert (ROOT / "docs" / "METRICS.md").read_text() == metrictable.document(), "run: python -m qrep.daemon.metrictable > docs/METRICS.md"


def test_any_text_in_a_label_comes_back_as_it_was():
    samples, text = Samples(), 'a"b\\c\nd\\n{}é, x="1"'
    samples.put("qrep_volume_in_service", True, text)
    samples.put("qrep_build_info", 1, text, text)
    found = parsed(render(samples.families))
    assert found["qrep_volume_in_service"] == {(("volume", text),): 1.0}
    assert found["qrep_build_info"] == {(("isa", text), ("version", text)): 1.0}


@pytest.mark.parametrize(("value", "text"), [(1 << 62, "4611686018427387904"), (0.25, "0.25"), (1e300, "1e+300"), (True, "1"), (math.inf, "+Inf")])
def test_numbers_lose_nothing(value, text):
    samples = Samples()
    samples.put("qrep_start_time_seconds", value)
    assert render(samples.families).splitlines()[-1] == f"qrep_start_time_seconds {text}"


def test_what_is_not_known_is_missing_and_a_family_without_values_is_not_announced():
    samples = Samples()
    samples.put("qrep_job_lag_seconds", None, "db", "source")
    assert render(samples.families) == "\n"


def test_a_counter_never_falls_while_figures_move_from_what_goes_on_to_what_has_ended():
    metrics = Metrics(None)

    def held(value):
        families = {"qrep_job_read_bytes_total": [("", (("qrep_job", "db"),), value)], "qrep_runs_running": [("", (), value)]}
        metrics._hold_counters(families)
        return families["qrep_job_read_bytes_total"][0][2], families["qrep_runs_running"][0][2]

    assert [held(value) for value in (5, 3, 9)] == [(5, 5), (5, 3), (9, 9)]
    metrics._hold_counters({})
    assert held(1) == (1, 1), "a job that was deleted and made anew begins at nothing"


@pytest.fixture
def log(tmp_path):
    db = StateDb(tmp_path / "state.db")
    yield EventLog(db, echo=False)
    db.close()


def test_runs_and_verifies_are_counted_by_their_result_also_those_that_were_too_many_to_tell(log):
    figures = Figures(log)
    for _ in range(100):
        log.add("run-failed", "x", job="db", reason="x")
    log.add("run-committed", "x", job="db", seconds=3.5)
    log.add("run-committed", "x", job="web", seconds=100000.0)
    log.add("verify-differs", "x", job="db")
    log.add("run-interrupted", "x", job="db")
    assert figures.runs == {("db", "failed"): 100, ("db", "committed"): 1, ("web", "committed"): 1}
    assert figures.verifies == {("db", "differs"): 1} and figures.interruptions == {"db": 1}
    assert figures.durations["db"].counts == [0] + [1] * len(BUCKETS_S) and figures.durations["db"].last == 3.5
    assert figures.durations["web"].counts == [0] * len(BUCKETS_S) + [1]
    log.add("job-deleted", "x", job="db")
    assert figures.runs == {("web", "committed"): 1} and set(figures.durations) == {"web"}


def test_whoever_owns_the_directory_cannot_have_another_file_made_readable(tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("key")
    secret.chmod(0o600)
    (tmp_path / "textfile").mkdir()

    def swapped(descriptor, *arguments, **options):
        """The file is there now: its directory's owner puts a link in its place at once."""
        (name,) = (tmp_path / "textfile").iterdir()
        name.unlink()
        name.symlink_to(secret)
        return real(descriptor, *arguments, **options)

    real = open
    monkeypatch.setattr(metricsfile, "open", swapped, raising=False)
    metricsfile.write(str(tmp_path / "textfile" / "qrep.prom"), "qrep_up 1\n")
    assert secret.stat().st_mode & 0o777 == 0o600


def test_a_file_of_metrics_is_whole_and_for_everyone_to_read(tmp_path):
    path = tmp_path / "qrep.prom"
    for text in ("one\n", "two\n"):
        metricsfile.write(str(path), text)
        assert path.read_text() == text and path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in tmp_path.iterdir()] == ["qrep.prom"]
    with pytest.raises(OSError, match="No such file"):
        metricsfile.write(str(tmp_path / "nowhere" / "x.prom"), "")
