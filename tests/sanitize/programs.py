"""Building and running what sanitizers and valgrind look at, and whether they found something.

AddressSanitizer, UndefinedBehaviorSanitizer and LeakSanitizer: gcc's. Leaks are looked for in C programs only: CPython leaves much behind when it ends.
ThreadSanitizer: gcc's; without address space randomisation, because gcc 12's runtime does not know where newer kernels put things.
"""

import re
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
TESTS = HERE.parent
NATIVE = TESTS.parent / "src" / "qrep" / "_native"
FOUND = re.compile(r"(Address|Leak|Thread|UndefinedBehavior)Sanitizer|runtime error:|ERROR SUMMARY: [1-9]|definitely lost: [1-9]|Invalid (read|write)")
FOUND_CODE = 99  # of a program under valgrind that found something
# what is to be reported -> by what
CANARIES = {"heap_overflow": "address,undefined", "signed_overflow": "address,undefined", "leak": "address,undefined", "data_race": "thread", "uninitialised": "valgrind"}
THREADS = ("buckets_of_one_tree", "the_read_limiter")
RING_PARTS = ("ring.c", "ring_step.c", "ring_threads.c", "buffers.c", "salvage.c")
PARSERS = {"wire": "corpus_wire", "disk": "corpus_disk"}


class Unavailable(Exception):
    """What it needs is not installed."""


def compiled(out, sources, how="", libraries=()):
    """Build a program. how: -fsanitize=, or "valgrind". Raises Unavailable, AssertionError."""
    if shutil.which("gcc") is None:
        raise Unavailable("needs gcc: apt-get install gcc")
    flags = ["-O0"] if how == "valgrind" else ["-O1", f"-fsanitize={how}", "-fno-sanitize-recover=all"]
    command = ["gcc", "-g", "-std=gnu11", "-D_GNU_SOURCE", f"-I{NATIVE}", *flags, *map(str, sources), "-o", str(out), *libraries, "-lpthread"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if result.returncode and "cannot find" in result.stderr:
        raise Unavailable(f"cannot link: {result.stderr.strip().splitlines()[0]}")
    assert result.returncode == 0, result.stderr
    return out


def run(program, how, *arguments, seconds=300):
    """(whether something was found or it failed, what it said)."""
    command = [str(program), *map(str, arguments)]
    if how == "valgrind":
        if shutil.which("valgrind") is None:
            raise Unavailable("needs valgrind: apt-get install valgrind")
        command = ["valgrind", "-q", f"--error-exitcode={FOUND_CODE}", "--leak-check=full", "--errors-for-leak-kinds=definite", *command]
    elif how == "thread":
        if shutil.which("setarch") is None:
            raise Unavailable("needs setarch: apt-get install util-linux")
        command = ["setarch", "--addr-no-randomize", *command]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    said = result.stdout + result.stderr
    return result.returncode != 0 or FOUND.search(said) is not None, said


def canary_programs(out):
    """{how: program}."""
    return {how: compiled(out / f"canaries-{how}", [HERE / "canaries.c"], how) for how in sorted(set(CANARIES.values()))}


def caught(programs, name):
    """Whether a seeded defect is reported, by its name."""
    how = CANARIES[name]
    found, said = run(programs[how], how, name)
    names = {"address,undefined": r"AddressSanitizer|LeakSanitizer|runtime error:", "thread": "ThreadSanitizer: data race", "valgrind": "uninitialised"}
    return found and re.search(names[how], said) is not None


def threads_program(out):
    return compiled(out / "threads", [HERE / "threads.c", *(NATIVE / name for name in ("bucket.c", "bucket_turns.c", "nice.c"))], "thread")


def ring_program(out, how):
    return compiled(out / f"ring-{how}", [TESTS / "native" / "ring_driver.c", *(NATIVE / name for name in RING_PARTS)], how, ["-l:liburing.a"])


def ring_checks():
    return re.findall(r"CHECK\((\w+)\),", (TESTS / "native" / "ring_driver.c").read_text())


def parser_program(out, name):
    """The fuzz program of a parser, for valgrind."""
    sources = [NATIVE / each for each in ("wire.c", "disk.c", "hashstream.c", "pack.c", "twins_spread.c")] + sorted(NATIVE.glob("blake3*.c"))
    return compiled(out / f"parser-{name}", [HERE / "inputs.c", TESTS / "fuzz" / f"fuzz_{name}.c", *sources], "valgrind", ["-l:libzstd.a"])


def corpus(name):
    return sorted((TESTS / "fuzz" / PARSERS[name]).iterdir())
