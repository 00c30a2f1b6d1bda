"""ring_driver.c, compiled with sanitizers: each of its checks is a test."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qrep._native.ring import Ring, explain

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "src/qrep/_native"
PARTS = ("ring.c", "ring_step.c", "ring_threads.c", "buffers.c", "salvage.c")
CHECKS = re.findall(r"CHECK\((\w+)\),", (HERE / "ring_driver.c").read_text())


def build(tmp_path_factory, sanitizers):
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    program = tmp_path_factory.mktemp("ring") / "ring_driver"
    sources = [HERE / "ring_driver.c", *(NATIVE / part for part in PARTS)]
    command = [
        "gcc", "-g", "-O1", "-std=gnu11", "-D_GNU_SOURCE", f"-I{NATIVE}", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all",
        *sources, "-o", program, "-l:liburing.a", "-lpthread",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode and "cannot find" in result.stderr:
        pytest.skip(f"cannot link: {result.stderr.strip().splitlines()[0]}")
    assert result.returncode == 0, result.stderr
    return program


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    return build(tmp_path_factory, "address,undefined")


def run(*command):
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", CHECKS)
def test_under_address_and_undefined_behaviour_sanitizers(driver, name):
    if name.startswith(("restricted", "data_moves_on_both")):
        try:
            Ring("uring", 4, unrestricted=not name.startswith("restricted")).close()
        except OSError as err:
            pytest.skip(explain(err.errno))
    run(driver, name)


def test_workers_under_the_thread_sanitizer(tmp_path_factory):
    # without address space randomisation: gcc 12's runtime does not know where newer kernels put things
    if shutil.which("setarch") is None:
        pytest.skip("needs setarch (util-linux)")
    run("setarch", "--addr-no-randomize", build(tmp_path_factory, "thread"), "data_moves_on_threads")
