"""Build of the native layer: one static C library, one extension module per `.pyx`, one cffi module for the probe.

Every C file of `src/qrep/_native` that is not made by Cython goes into the static library `qrepcore`; every `.pyx`
becomes a module that links it. The modules use the Limited API, so one wheel serves Python 3.11 and later.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_clib import build_clib

NATIVE = Path("src/qrep/_native")
LIMITED_API = "0x030B0000"
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED") and platform.python_implementation() == "CPython"

# -O3: gcc -O2 costs the hash kernel about a tenth (bench/RESULTS.md, hash). The rest is hardening (tests/security/test_build.py reads it back).
# Under sanitizers it is built quickly instead (tests/sanitize).
CFLAGS = [
    "-O0" if os.environ.get("QREP_SANITIZE") else "-O3", "-std=gnu11", "-g", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden", "-fPIC",
    "-fstack-protector-strong", "-fstack-clash-protection", "-D_GNU_SOURCE", f"-I{NATIVE}",
]
if platform.machine() in ("x86_64", "AMD64"):
    CFLAGS += ["-fcf-protection=full"]
elif platform.machine() == "aarch64":
    CFLAGS += ["-mbranch-protection=standard"]
if not os.environ.get("QREP_SANITIZE"):
    CFLAGS += ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"]
LDFLAGS = ["-Wl,-z,relro,-z,now,-z,noexecstack"]
if os.environ.get("QREP_SANITIZE"):
    flag = "-fsanitize=" + os.environ["QREP_SANITIZE"]
    CFLAGS += [flag, "-fno-omit-frame-pointer"]
    LDFLAGS += [flag]


def need(header, package):
    """Stop with one line that names the Debian package when a header is missing."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "probe.c")
        source.write_text(f"#include <{header}>\nint main(void) {{ return 0; }}\n")
        compiler = os.environ.get("CC", "gcc").split()
        include = sysconfig.get_path("include")
        result = subprocess.run(
            [*compiler, f"-I{include}", "-fsyntax-only", str(source)], capture_output=True, check=False
        )
    if result.returncode:
        sys.exit(f"qrep: cannot build: <{header}> is missing; install it with: apt-get install {package}")


def archive(name, package):
    """Path of a static library, so that the wheel carries it and asks the system for nothing."""
    compiler = os.environ.get("CC", "gcc").split()
    found = subprocess.run(
        [*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=False
    ).stdout.strip()
    if not os.path.isabs(found):
        sys.exit(f"qrep: cannot build: {name} is missing; install it with: apt-get install {package}")
    return found


def check_requirements():
    compiler = os.environ.get("CC", "gcc").split()[0]
    if not shutil.which(compiler):
        sys.exit(f"qrep: cannot build: no C compiler ({compiler}); install it with: apt-get install gcc libc6-dev")
    need("stdio.h", "libc6-dev")
    need("linux/fs.h", "linux-libc-dev")
    need("Python.h", "python3-dev")
    need("liburing.h", "liburing-dev")
    need("zstd.h", "libzstd-dev")


class BuildCoreLibrary(build_clib):
    """Rebuilds the static library when any header or template changed, not only when a C file did."""

    def build_libraries(self, libraries):
        newest = max(path.stat().st_mtime for path in NATIVE.iterdir() if path.suffix in (".h", ".inc"))
        for path in Path(self.build_temp).rglob("*.o"):
            if path.stat().st_mtime < newest:
                path.unlink()
        super().build_libraries(libraries)


class LimitedWheel(bdist_wheel):
    def finalize_options(self):
        if LIMITED:
            self.py_limited_api = "cp311"
        super().finalize_options()


def core_sources():
    """The C files people wrote: all of them, since Cython writes its own below build/, but not the cffi module."""
    return sorted(str(path) for path in NATIVE.glob("*.c") if not path.name.startswith("_"))


def extensions():
    from Cython.Build import cythonize

    macros = [("Py_LIMITED_API", LIMITED_API)] if LIMITED else []
    modules = [
        Extension(
            f"qrep._native.{path.stem}",
            [str(path)],
            include_dirs=[str(NATIVE)],
            define_macros=macros,
            extra_compile_args=[*CFLAGS, "-Wno-unused-function", "-fvisibility=default"],
            # After -lqrepcore, which uses them: an archive only serves what stands before it on the command line.
            extra_link_args=[*LDFLAGS, archive("liburing.a", "liburing-dev"), archive("libzstd.a", "libzstd-dev"), "-Wl,--exclude-libs,libzstd.a:liburing.a"],
            py_limited_api=LIMITED,
        )
        for path in sorted(NATIVE.glob("*.pyx"))
    ]
    modules = cythonize(
        modules,
        build_dir="build/pyx",
        compiler_directives={"language_level": "3str", "embedsignature": True, "binding": True},
    )
    # A module holds a copy of the static library: it is linked again when anything of that changed. Not said before
    # cythonize, which would copy these files into its directory, a compare.c where compare.pyx's own is to be.
    for module in modules:
        module.depends += sorted(str(path) for path in NATIVE.iterdir() if path.suffix in (".c", ".h", ".inc"))
    return modules


check_requirements()
setup(
    libraries=[("qrepcore", {"sources": core_sources(), "cflags": CFLAGS, "include_dirs": [str(NATIVE)]})],
    ext_modules=extensions(),
    cffi_modules=[f"{NATIVE}/uring_cffi.py:builder"] if (NATIVE / "uring_cffi.py").exists() else [],
    cmdclass={"build_clib": BuildCoreLibrary, "bdist_wheel": LimitedWheel},
)
