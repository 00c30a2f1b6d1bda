"""The C decoders under a sanitizer: the corpus is replayed, a few seconds are fuzzed, and each harness proves that it can fail.

For a long run: QREP_FUZZ_SECONDS=600, and QREP_SEED=n for other paths. What is found goes to QREP_FUZZ_DIR if that is set.
"""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "src" / "qrep" / "_native"
SECONDS = int(os.environ.get("QREP_FUZZ_SECONDS", "3"))
SANITIZE = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
CFLAGS = ["-g", "-O1", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}"]
HARNESSES = ["wire", "disk"]
CANARIES = [1, 2, 3]


def compile_all(commands):
    """Run compilers, two at a time; a complaint is a failure."""

    def compile_one(command):
        return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, timeout=300)

    with ThreadPoolExecutor(2) as pool:
        failed = [result.stderr for result in pool.map(compile_one, commands) if result.returncode]
    assert not failed, "\n".join(failed)


@pytest.fixture(scope="session")
def harness(tmp_path_factory):
    """build(name, canary=None) -> path of the program; skips where clang or its sanitizers are missing."""
    clang = shutil.which("clang")
    if not clang:
        pytest.skip("no clang: apt-get install clang libclang-rt-14-dev")
    out = tmp_path_factory.mktemp("fuzz")
    probe = out / "probe.c"
    probe.write_text("int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { (void)d; return (int)(n & 0); }\n")
    if subprocess.run([clang, *SANITIZE, str(probe), "-o", str(out / "probe")], capture_output=True, check=False).returncode:
        pytest.skip("clang has no fuzzer runtime: apt-get install libclang-rt-14-dev")
    tested = [NATIVE / name for name in ("wire.c", "disk.c", "hashstream.c")]
    tools = sorted(NATIVE.glob("blake3*.c"))
    objects = {source: str(out / source.with_suffix(".o").name) for source in [*tools, *tested]}
    # The hash is the tool here, not what is tested: not instrumented, and its wide kernels, which short inputs never reach, not optimised.
    flags = {source: ["-O0" if "x86" in source.name else "-O2", "-D_GNU_SOURCE", f"-I{NATIVE}"] for source in tools}
    flags |= {source: [*CFLAGS, "-fsanitize=fuzzer-no-link,address,undefined", *SANITIZE[1:]] for source in tested}
    compile_all([clang, *flags[source], "-c", str(source), "-o", target] for source, target in objects.items())
    built = {(name, canary): out / f"fuzz_{name}_{canary}" for name in HARNESSES for canary in [None, *CANARIES]}
    compile_all(
        [clang, *CFLAGS, *SANITIZE, *([f"-DQREP_FUZZ_CANARY={canary}"] if canary else []), str(HERE / f"fuzz_{name}.c"),
         *objects.values(), "-o", str(target)]
        for (name, canary), target in built.items()
    )
    return built


def fuzz(program, tmp_path, seed, seconds, corpus):
    """Fuzz from a copy of the corpus; the process and what it said."""
    found = tmp_path / "found"
    found.mkdir()
    artifacts = os.environ.get("QREP_FUZZ_DIR", str(tmp_path)) + "/"
    # Seed 0 means "random" to libFuzzer.
    command = [str(program), f"-seed={seed % 2**32 or 1}", f"-max_total_time={seconds}", "-print_final_stats=1", "-max_len=4096",
               "-timeout=5", "-rss_limit_mb=1024", f"-artifact_prefix={artifacts}", str(found), str(corpus)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)


@pytest.mark.parametrize("name", HARNESSES)
def test_the_corpus_raises_nothing(harness, name):
    inputs = sorted((HERE / f"corpus_{name}").iterdir())
    assert len(inputs) > 10
    result = subprocess.run([str(harness[name, None]), *map(str, inputs)], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("Executed") == len(inputs)


@pytest.mark.parametrize("name", HARNESSES)
def test_a_few_seconds_of_fuzzing_raise_nothing(harness, name, tmp_path, seed):
    result = fuzz(harness[name, None], tmp_path, seed, SECONDS, HERE / f"corpus_{name}")
    stats = dict(line.removeprefix("stat::").split(":") for line in result.stderr.splitlines() if line.startswith("stat::"))
    print(f"fuzz {name}: {stats}")
    assert result.returncode == 0, result.stderr[-8000:]
    assert int(stats["number_of_executed_units"]) > 1000 * SECONDS


@pytest.mark.parametrize("canary", CANARIES)
@pytest.mark.parametrize("name", HARNESSES)
def test_a_harness_without_one_of_its_checks_fails_within_seconds(harness, name, canary, tmp_path, seed):
    result = fuzz(harness[name, canary], tmp_path, seed, 20, HERE / f"corpus_{name}")
    assert result.returncode != 0, f"canary {canary} of {name} outlived the fuzzer, seed {seed}"
    assert "SUMMARY: " in result.stderr
