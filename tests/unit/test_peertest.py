"""What is made of the figures of a bandwidth test, and how a person is told."""

import pytest

from qrep.cli.peertest import test_text as text_of
from qrep.daemon.peertest import best_of, copy_time

GIB = 1 << 30


def measured(*rates):
    return [{"connections": 1 << i, "rate_bytes_per_s": rate, "bytes": 5 * rate, "seconds": 5.0, "zero_copy": None, "ktls": False} for i, rate in enumerate(rates)]


@pytest.mark.parametrize("rates, best", [((100,), 1), ((100, 200, 210, 205), 2), ((100, 150, 200, 400), 8), ((96, 100, 90, 80), 1), ((100, 99, 110), 4)])
def test_the_best_is_the_smallest_number_that_gets_nearly_all(rates, best):
    assert best_of(measured(*rates))["connections"] == best


def test_a_copy_takes_as_long_as_the_slower_of_path_and_limit():
    limit = {"rate_bytes_per_s": 100, "why": "shape office: peak"}
    assert copy_time("db", 1001, 200, None) == {"volume": "db", "size": 1001, "seconds": 6, "limit": None, "seconds_limited": None}
    assert copy_time("db", 1000, 200, limit)["seconds_limited"] == 10
    assert copy_time("db", 1000, 50, limit)["seconds_limited"] is None, "the path is slower than the limit"
    assert copy_time("db", 1000, 50, {"rate_bytes_per_s": None, "why": "off-peak"})["seconds_limited"] is None
    assert copy_time("db", 1000, 0, None)["seconds"] is None


def path(address, *rates, error=None, rtt=0.21, zero_copy=None, ktls=False):
    path = {"from": None, "address": address, "error": error, "rtt_ms": rtt, "zero_copy": zero_copy, "ktls": ktls}
    return path | {"measurements": measured(*rates), "best": None}


def result(*paths, **changed):
    return {
        "peer": "site-b", "seconds": 5, "transport": "plain", "paths": list(paths), "copies": [], "jobs_running": [], "jobs_running_there": 0,
        "best": {"from": None, "address": paths[0]["address"], "connections": 2, "rate_bytes_per_s": 2.69 * GIB},
    } | changed  # fmt: skip


def test_a_line_for_each_measurement_and_one_for_a_path_that_does_not_answer():
    shown = text_of(
        result(
            path("10.0.1.2", 1.08 * GIB, 2.69 * GIB, zero_copy=True), path("10.0.12.2", 1.09 * GIB, rtt=12.4),
            path("10.0.3.2", error={"code": "unreachable", "message": "no route to host"}),
        )
    )  # fmt: skip
    assert shown.splitlines() == [
        "10.0.1.2    1 connection    1.08 GiB/s   rtt 0.21 ms   plain   zero-copy send: yes",
        "10.0.1.2    2 connections   2.69 GiB/s",
        "10.0.12.2   1 connection    1.09 GiB/s   rtt 12.40 ms   plain   zero-copy send: no",
        "10.0.3.2    no route to host",
        "",
        "best: 2 connections over 10.0.1.2, 2.69 GiB/s",
    ]


def test_copies_limits_and_jobs_that_ran_meanwhile_are_said():
    copies = [
        copy_time("db", 500 * GIB, 2.69 * GIB, {"rate_bytes_per_s": GIB, "why": "shape office: peak 1 GiB/s mon-fri 07:00-19:00"}),
        copy_time("web", 10 * GIB, 2.69 * GIB, None),
    ]
    lines = text_of(result(path("10.0.1.2", GIB), transport="tls", copies=copies, jobs_running=["db", "web"], jobs_running_there=1)).splitlines()
    assert "TLS   zero-copy send: no" in lines[0]
    assert lines[3:] == [
        "  full copy of db, 500 GiB: 3 min 06 s; 8 min 20 s at the present limit (shape office: peak 1 GiB/s mon-fri 07:00-19:00)",
        "  full copy of web, 10 GiB: 4 s",
        "meanwhile db, web ran here and 1 run went on on site-b: the rates are what that left",
    ]
    assert text_of(result(path("10.0.1.2", GIB), jobs_running_there=2)).endswith("meanwhile 2 runs went on on site-b: the rates are what that left")


def test_a_peer_cannot_move_the_cursor_by_its_error():
    shown = text_of(result(path("10.0.1.2", GIB), path("10.0.2.2", error={"code": "x", "message": "a\x1b[2Jb"})))
    assert "\x1b" not in shown


def test_a_path_whose_kernel_encrypts_is_said_to_use_kernel_tls():
    shown = [text_of(result(path("10.0.1.2", GIB, ktls=ktls), transport="tls")).splitlines()[0] for ktls in (True, False)]
    assert "   kernel TLS   " in shown[0] and "   TLS   " in shown[1]
