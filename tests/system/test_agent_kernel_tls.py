"""Data connections that the kernel encrypts. Where this kernel has no TLS, tests/guest runs these on one that has."""

import time
from pathlib import Path

import pytest
from agents import MIB, b3sum
from machine import image

from qrep import kerneltls

pytestmark = pytest.mark.root
SIZE = 16 * MIB


@pytest.fixture(autouse=True)
def kernel_tls():
    why = kerneltls.missing()
    if why is not None:
        pytest.skip(why)


def encrypted_connections():
    """How many TCP connections have been given keys for sending, since the machine was booted."""
    counters = dict(line.split() for line in Path("/proc/net/tls_stat").read_text().splitlines())
    return int(counters["TlsTxSw"])


def test_a_run_whose_data_the_kernel_encrypts_ends_with_equal_content(agents, memory_dir, fill):
    source, target = image(memory_dir, "source", SIZE), image(memory_dir, "target", SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target, source_volume=("--granule", "1M"))
    before, began = encrypted_connections(), time.monotonic()
    report = a.run()
    print(f"{SIZE // MIB} MiB over kernel TLS in {time.monotonic() - began:.2f} s, of which the run {report['seconds']:.2f} s")
    assert report["root"] == b3sum(target) == b3sum(source)
    assert report["ktls"] is True and report["interruptions"] == 0
    assert encrypted_connections() - before == 2, "the source's end of each data connection, and nothing else"
    job = a.job()
    assert (job["transport"], job["ktls"], job["zero_copy"]) == ("tls", True, None)
    assert "data    TLS, encrypted by the kernel" in a.text("status", "db")[0]
    fill(source, MIB, 3 * MIB)
    assert a.run()["root"] == b3sum(target) == b3sum(source)
    result = a.qrep("peer", "test", "site-b", "--seconds", 1, "--connections", 1)
    assert result["transport"] == "tls" and result["paths"][0]["ktls"] is True
