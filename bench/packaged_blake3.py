"""The packaged `blake3` on a CPU without AVX-512, in the same process: what H3 compares with on a CPU that has it.

The packaged one asks the CPU and takes its widest instructions; it has no switch. So a second copy of its module is loaded in which
every CPUID instruction is replaced by UD2, which is as long, and the signal that it raises is answered by masked_cpuid.c: as the CPU
would, but for AVX-512. Nothing of its hash is touched, and it asks only until its first hash is done.
"""

import ctypes
import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import blake3

CPUID, UD2 = b"\x0f\xa2", b"\x0f\x0b"
SHIM = Path(__file__).with_name("masked_cpuid.c")


class CannotMask(Exception):
    """There is no packaged blake3 for AVX2 here; the text says why."""


def objdump(*arguments):
    return subprocess.run(["objdump", *arguments], capture_output=True, text=True, check=True).stdout


def without_cpuid(module):
    """The bytes of the module's file, its CPUID instructions replaced. The disassembler finds them: the same two bytes may be data."""
    image = bytearray(module.read_bytes())
    headers, listing = objdump("--section-headers", module), objdump("--disassemble", "--section=.text", module)
    address, offset = (int(word, 16) for word in re.search(r"\.text\s+\S+\s+(\S+)\s+\S+\s+(\S+)", headers).groups())
    found = [int(at, 16) - address + offset for at in re.findall(r"^\s*([0-9a-f]+):\t0f a2\s+\tcpuid", listing, re.MULTILINE)]
    if not found or any(image[at:at + 2] != CPUID for at in found):
        raise CannotMask("the packaged blake3 asks the CPU in another way")
    for at in found:
        image[at:at + 2] = UD2
    return image


def load_for_avx2(directory):
    """The `blake3` class of a second packaged module that believes this CPU ends at AVX2. Raises CannotMask."""
    compiler = os.environ.get("CC", "gcc").split()
    if os.uname().machine != "x86_64" or not shutil.which(compiler[0]) or not shutil.which("objdump"):
        raise CannotMask("needs x86-64, a C compiler and objdump")
    module = Path(importlib.util.find_spec("blake3.blake3").origin)
    copy, library = directory / module.name, directory / "masked_cpuid.so"
    copy.write_bytes(without_cpuid(module))
    subprocess.run([*compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", str(SHIM), "-o", str(library)], check=True)
    shim = ctypes.CDLL(str(library))
    if shim.masked_cpuid_start():
        raise CannotMask("SIGILL cannot be handled")
    try:
        loader = importlib.machinery.ExtensionFileLoader("blake3.blake3", str(copy))
        masked = importlib.util.module_from_spec(importlib.util.spec_from_file_location("blake3.blake3", copy, loader=loader))
        loader.exec_module(masked)
        digest = masked.blake3(bytes(1 << 20)).digest()
    finally:
        answered = shim.masked_cpuid_stop()
    if not answered:
        raise CannotMask("the copy never asked the CPU")
    assert digest == blake3.blake3(bytes(1 << 20)).digest()
    return masked.blake3
