"""What a built library lacks of the hardening it was to have, read back from its ELF file by readelf."""

import platform
import subprocess
import sysconfig

ENDBR64 = b"\xf3\x0f\x1e\xfa"


def _readelf(path, *options):
    return subprocess.run(["readelf", "-W", *options, path], capture_output=True, text=True, check=True).stdout


def lacks(path, *, ours=True):
    """[what it lacks], empty if nothing. ours: it holds C of this project, which is compiled with every flag."""
    segments, dynamic, symbols = _readelf(path, "-l"), _readelf(path, "-d"), _readelf(path, "-s")
    found = []
    if "GNU_RELRO" not in segments:
        found.append("relro")
    if "BIND_NOW" not in dynamic and "Flags: NOW" not in dynamic:
        found.append("bindings that are made at once")
    stack = [line.split() for line in segments.splitlines() if "GNU_STACK" in line]
    if not stack or "E" in stack[0][-2]:
        found.append("a stack that is not executed")
    if any("E" in line.split()[6] + line.split()[7] and "W" in line for line in segments.splitlines() if line.split()[:1] == ["LOAD"]):
        found.append("pages either written or executed")
    if "TEXTREL" in dynamic:
        found.append("code that is not written to")
    paths = [line.partition("[")[2].rstrip("]") for line in dynamic.splitlines() if "RPATH" in line or "RUNPATH" in line]
    if set(paths) - {sysconfig.get_config_var("LIBDIR")}:  # of a Python that is not the system's
        found.append("a search path of the system only")
    if not _readelf(path, "-h").split("Type:")[1].split()[0] == "DYN":
        found.append("an address of the kernel's choice")
    if ours and "__stack_chk_fail" not in symbols:
        found.append("stack protector")
    if ours and platform.machine() == "x86_64" and not _is_marked(path, segments):
        found.append("marks for indirect branches")
    return found


def _is_marked(path, segments):
    """Whether every function that others may call begins where an indirect branch may end. The note that says so of a whole file is lost where one
    part of it, such as Debian's own start-up code, has none."""
    with open(path, "rb") as file:
        content = file.read()
    loads = [[int(word, 16) for word in line.split()[1:6] if word.startswith("0x")] for line in segments.splitlines() if line.split()[:1] == ["LOAD"]]
    functions = [line.split() for line in _readelf(path, "--dyn-syms").splitlines() if " FUNC " in line and " UND " not in line]
    for _number, address, *_more in functions:
        address = int(address, 16)
        offset = next(address - at + offset for offset, at, _physical, size, *_none in loads if at <= address < at + size)
        if content[offset : offset + len(ENDBR64)] != ENDBR64:
            return False
    return bool(functions)


def fortified(path):
    """Functions of the C library that are called in their checked form."""
    symbols = _readelf(path, "-s")
    names = {word.partition("@")[0] for line in symbols.splitlines() for word in line.split()}
    return {name for name in names if name.startswith("__") and name.endswith("_chk") and name != "__stack_chk"}


def exports(path):
    """Functions that others may take from it by name."""
    lines = [line.split() for line in _readelf(path, "--dyn-syms").splitlines() if " UND " not in line]
    return {line[7] for line in lines if len(line) > 7 and line[3] == "FUNC" and line[4] in ("GLOBAL", "WEAK")}
