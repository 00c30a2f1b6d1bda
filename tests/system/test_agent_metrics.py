"""The metrics of two real agents, before, during and after a run."""

import socket
import time

import pytest
from agents import MIB, wait_until
from prometheus_client.parser import text_string_to_metric_families

from qrep.daemon.metrictable import FAMILIES

pytestmark = pytest.mark.root
SIZE = 16 * MIB


class Scrape:
    """What Prometheus would know of an agent."""

    def __init__(self, text):
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def value(self, name, **labels):
        found = [sample.value for sample in self.samples if sample.name == name and labels.items() <= sample.labels.items()]
        assert len(found) <= 1, (name, labels, found)
        return found[0] if found else None


def scrape(agent):
    text, code = agent.text("metrics")
    assert code == 0
    return Scrape(text)


def test_metrics_tell_of_a_run_on_both_sides_and_totals_survive_its_end(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target, source_volume=("--granule", "1M"), link_rate=8 * MIB)
    a.qrep("shape", "set", "office", "--peak", "100M")
    a.qrep("job", "set", "db", "--rpo", "4h", "--schedule", "0 0 1 1 *", "--shape", "office")
    db = {"qrep_job": "db", "role": "source"}
    first = scrape(a)
    assert first.value("qrep_job_state", state="idle", **db) == 1 and first.value("qrep_job_lag_seconds", **db) is None
    assert first.value("qrep_job_sent_bytes_total", **db) == 0 and first.value("qrep_job_size_bytes", **db) == SIZE
    assert first.value("qrep_job_rpo_seconds", **db) == 4 * 3600 and first.value("qrep_job_rpo_passed", **db) == 0
    assert first.value("qrep_job_next_run_timestamp_seconds", **db) > time.time()
    assert first.value("qrep_job_limit_bytes_per_second", **db) == first.value("qrep_shape_limit_bytes_per_second", shape="office") == 100 * MIB
    a.qrep("start", "db")
    during = wait_until(lambda: (found := scrape(a)).value("qrep_job_sent_bytes_total", **db) > 0 and found)
    assert during.value("qrep_job_state", state="syncing", **db) == 1 and during.value("qrep_job_state", state="idle", **db) == 0
    assert during.value("qrep_runs_running") == 1 and during.value("qrep_path_active", qrep_job="db", path="1") == 1
    assert during.value("qrep_path_up", qrep_job="db", path="1") == 1
    wait_until(lambda: a.job()["state"] == "idle")
    a.run()
    after, there = scrape(a), scrape(b)
    assert SIZE == after.value("qrep_job_changed_bytes_total", **db) < after.value("qrep_job_sent_bytes_total", **db) < SIZE * 1.01
    assert after.value("qrep_job_read_bytes_total", **db) >= 2 * SIZE, "both runs"
    assert after.value("qrep_job_runs_total", qrep_job="db", result="committed") == 2
    assert after.value("qrep_job_run_duration_seconds_count", qrep_job="db") == after.value("qrep_job_run_duration_seconds_bucket", qrep_job="db", le="+Inf") == 2
    assert 0 <= after.value("qrep_job_lag_seconds", **db) < 600 and after.value("qrep_runs_running") == 0
    assert SIZE <= there.value("qrep_volume_received_bytes_total", volume="db") < SIZE * 1.01
    assert there.value("qrep_volume_written_bytes_total", volume="db") == SIZE and there.value("qrep_volume_in_service", volume="db") == 1
    assert there.value("qrep_job_state", qrep_job="db", role="target", state="idle") == 1
    assert there.value("qrep_volume_undo_limit_bytes", volume="db") > 0
    for found in (after, there):
        assert found.value("process_resident_memory_bytes") > 0 and found.value("process_open_fds") > 3
        for name, family in found.families.items():
            kind, _labels, text = FAMILIES[name if name in FAMILIES else f"{name}_total"]
            assert (family.type, family.documentation) == (kind, text)
    a.qrep("job", "delete", "db", "-y")
    assert scrape(a).value("qrep_job_runs_total", qrep_job="db", result="committed") is None


def test_metrics_are_served_on_the_socket_as_text_and_as_json(agents):
    agent = agents.agent("site-a")
    with socket.socket(socket.AF_UNIX) as scraper:
        scraper.connect(str(agent.socket))
        scraper.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        head, _, text = scraper.makefile("rb").read().decode().partition("\r\n\r\n")
    assert "text/plain; version=0.0.4" in head and Scrape(text).value("qrep_events_total", level="info") >= 1
    names = {family["name"] for family in agent.qrep("metrics")}
    assert "qrep_build_info" in names and names <= set(FAMILIES)


def test_a_file_for_a_collector_is_kept_up_to_date_and_gone_with_the_agent(agents):
    agent = agents.agent("site-a", start=False)
    path = agent.directory / "qrep.prom"
    with open(agent.config / "qrep.toml", "a") as file:
        file.write(f'[metrics]\nfile = "{path}"\nevery = "1s"\n')
    agent.start()
    wait_until(lambda: path.exists())
    before = Scrape(path.read_text()).value("process_cpu_seconds_total")
    wait_until(lambda: Scrape(path.read_text()).value("process_cpu_seconds_total") > before)
    agent.terminate()
    assert not path.exists()


def test_a_file_that_cannot_be_written_is_told_once(agents):
    agent = agents.agent("site-a", start=False)
    with open(agent.config / "qrep.toml", "a") as file:
        file.write('[metrics]\nfile = "/nonexistent/qrep.prom"\nevery = "1s"\n')
    agent.start()
    wait_until(lambda: agent.events("metrics-not-written"))
    assert agent.events("metrics-not-written")[0]["text"] == "/nonexistent/qrep.prom: No such file or directory"
    agent.terminate()
    agent.start()
    assert len(agent.events("metrics-not-written")) <= 2
