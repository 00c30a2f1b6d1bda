"""Building the fuzz programs, once as they are and once for each of their canaries, and running them."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "src" / "qrep" / "_native"
SANITIZE = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
CFLAGS = ["-g", "-O1", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}"]
HARNESSES = ["wire", "disk"]
CANARIES = [1, 2, 3]
# What was freed waits in 1 MiB, which is much for parsers of some KiB; with the usual 256 MiB it leaves every cache, and a third of the executions is gone.
ASAN_OPTIONS = "quarantine_size_mb=1:thread_local_quarantine_size_kb=16:malloc_context_size=0"
REPORT = re.compile(r"SUMMARY: (AddressSanitizer|UndefinedBehaviorSanitizer|libFuzzer: deadly signal)")


class Unavailable(Exception):
    """What it needs is not installed."""


def compile_all(commands):
    """Run compilers, two at a time; a complaint is a failure."""

    def compile_one(command):
        return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, timeout=300)

    with ThreadPoolExecutor(2) as pool:
        failed = [result.stderr for result in pool.map(compile_one, commands) if result.returncode]
    assert not failed, "\n".join(failed)


def build(out, canaries=CANARIES):
    """{(name, canary or None): program} in the directory `out`. Raises Unavailable where clang or its sanitizers are missing."""
    clang = shutil.which("clang")
    if not clang:
        raise Unavailable("no clang: apt-get install clang libclang-rt-14-dev")
    probe = out / "probe.c"
    probe.write_text("int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { (void)d; return (int)(n & 0); }\n")
    if subprocess.run([clang, *SANITIZE, str(probe), "-o", str(out / "probe")], capture_output=True, check=False).returncode:
        raise Unavailable("clang has no fuzzer runtime: apt-get install libclang-rt-14-dev")
    tested = [NATIVE / name for name in ("wire.c", "disk.c", "hashstream.c", "pack.c", "twins_spread.c")]
    tools = sorted(NATIVE.glob("blake3*.c"))
    objects = {source: str(out / source.with_suffix(".o").name) for source in [*tools, *tested]}
    # The hash is the tool here, not what is tested: not instrumented, and its wide kernels, which short inputs never reach, not optimised.
    flags = {source: ["-O0" if "x86" in source.name else "-O2", "-D_GNU_SOURCE", f"-I{NATIVE}"] for source in tools}
    flags |= {source: [*CFLAGS, "-fsanitize=fuzzer-no-link,address,undefined", *SANITIZE[1:]] for source in tested}
    compile_all([clang, *flags[source], "-c", str(source), "-o", target] for source, target in objects.items())
    built = {(name, canary): out / f"fuzz_{name}_{canary}" for name in HARNESSES for canary in [None, *canaries]}
    compile_all(
        [clang, *CFLAGS, *SANITIZE, *([f"-DQREP_FUZZ_CANARY={canary}"] if canary else []), str(HERE / f"fuzz_{name}.c"),
         *objects.values(), "-o", str(target), "-l:libzstd.a"]
        for (name, canary), target in built.items()
    )
    return built


def fuzz(program, directory, seed, seconds, corpus, runs=-1):
    """Fuzz from a copy of the corpus, so long or so often; the process and what it said."""
    found = directory / "found"
    found.mkdir()
    artifacts = os.environ.get("QREP_FUZZ_DIR", str(directory)) + "/"
    # Seed 0 means "random" to libFuzzer. Without the scale the rare inputs that take long are chosen ever more often: after ten minutes a third of the
    # executions per second is left. With it what is tried depends on how long things take: an input that stops it is to be kept, its seed does not find it again.
    command = [str(program), f"-seed={seed % 2**32 or 1}", f"-max_total_time={seconds}", f"-runs={runs}", "-print_final_stats=1", "-max_len=4096",
               "-entropic_scale_per_exec_time=1", "-timeout=5", "-rss_limit_mb=1024", f"-artifact_prefix={artifacts}", str(found), str(corpus)]
    environment = {**os.environ, "ASAN_OPTIONS": ASAN_OPTIONS}
    # A process that is begun by exec keeps the peak memory of who was there before, and libFuzzer takes it for its own: a shell's child has a shell's.
    command = ["sh", "-c", '"$@"; exit $?', "sh", *command]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=seconds + 60)


def reported(result):
    """Whether a check of the harness or a sanitizer has stopped it: not that it could not begin, ran out of memory, or was slow."""
    return result.returncode != 0 and bool(REPORT.search(result.stderr))


def statistics(result):
    """libFuzzer's own account of a run, {name: text}."""
    return dict(line.removeprefix("stat::").split(":") for line in result.stderr.splitlines() if line.startswith("stat::"))
