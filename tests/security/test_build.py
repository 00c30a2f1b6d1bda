"""The native modules as they were built: what their ELF files say of the hardening that setup.py asks for."""

import importlib
import pkgutil
import subprocess

import pytest
from machine import need_tool
from security import checksec

import qrep._native

MODULES = sorted(module.name for module in pkgutil.iter_modules(qrep._native.__path__) if importlib.util.find_spec(f"qrep._native.{module.name}").origin.endswith(".so"))


def path_of(name):
    return importlib.util.find_spec(f"qrep._native.{name}").origin


def test_the_native_modules_are_found():
    assert len(MODULES) >= 15 and "target_lane" in MODULES and "sandbox" in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_a_native_module_is_hardened(name):
    need_tool("readelf")
    assert checksec.lacks(path_of(name), ours=not name.startswith("_")) == []
    assert checksec.exports(path_of(name)) == {f"PyInit_{name}"}, "what it is made of serves nobody else"


def test_copies_of_a_length_that_only_running_tells_are_checked():
    """__memcpy_chk is in the codec from _FORTIFY_SOURCE=3 on, and not with 2."""
    need_tool("readelf")
    assert "__memcpy_chk" in checksec.fortified(path_of("wire"))
    assert {name for name in MODULES if not name.startswith("_") and not checksec.fortified(path_of(name))} <= {"bucket", "nice", "sockets", "compare"}


SOFT = {
    "relro": ["-Wl,-z,norelro"], "bindings that are made at once": ["-Wl,-z,lazy"], "a stack that is not executed": ["-Wl,-z,execstack"],
    "stack protector": ["-fno-stack-protector"], "marks for indirect branches": ["-fcf-protection=none"], "a search path of the system only": ["-Wl,-rpath,/tmp"],
}  # fmt: skip
HARD = ["-O2", "-shared", "-fPIC", "-fstack-protector-strong", "-fcf-protection=full", "-Wl,-z,relro,-z,now,-z,noexecstack"]
PROGRAM = "#include <string.h>\nvoid use(char *); int work(const char *text) { char room[64]; strcpy(room, text); use(room); return room[3]; }\n"


def built(directory, *flags):
    (directory / "part.c").write_text(PROGRAM)
    subprocess.run(["gcc", *HARD, *flags, "-o", directory / "part.so", directory / "part.c"], check=True)
    return directory / "part.so"


@pytest.mark.parametrize("missing", SOFT)
def test_a_library_without_one_of_them_is_told(tmp_path, missing):
    if missing == "marks for indirect branches" and checksec.platform.machine() != "x86_64":
        pytest.skip("marks of x86-64")
    for tool in ("readelf", "gcc"):
        need_tool(tool)
    assert checksec.lacks(built(tmp_path)) == []
    assert missing in checksec.lacks(built(tmp_path, *SOFT[missing]))
