"""A copy of qrep whose native layer is built with AddressSanitizer and UndefinedBehaviorSanitizer, and the environment in which Python loads it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from sanitize.programs import FOUND, HERE, TESTS, Unavailable, compiled

ROOT = TESTS.parent
LEFT_OUT = shutil.ignore_patterns("*.so", "__pycache__")
BUILD_S = 600


class Sanitized:
    """environment: for a Python that is to run it. Raises Unavailable, AssertionError."""

    def __init__(self, directory):
        self.directory = Path(directory)
        shutil.copytree(ROOT / "src", self.directory / "src", ignore=LEFT_OUT)
        for name in ("setup.py", "pyproject.toml", "README.md"):
            shutil.copy2(ROOT / name, self.directory)
        if (ROOT / "build" / "pyx").is_dir():  # what Cython made: it is the same, with its times
            shutil.copytree(ROOT / "build" / "pyx", self.directory / "build" / "pyx")
        site = self.directory / "site"
        command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--target", str(site), "."]
        result = subprocess.run(
            command, cwd=self.directory, env={**os.environ, "QREP_SANITIZE": "address,undefined"}, capture_output=True, text=True, check=False, timeout=BUILD_S
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-4000:]
        self._log = self.directory / "report"
        options = f"log_path={self._log}"
        self.environment = {
            "LD_PRELOAD": " ".join(runtime(name) for name in ("libasan.so", "libubsan.so")), "PYTHONMALLOC": "malloc",
            "ASAN_OPTIONS": f"{options}:detect_leaks=0", "UBSAN_OPTIONS": f"{options}:halt_on_error=1:print_stacktrace=1",
            "PYTHONPATH": os.pathsep.join([str(site), str(TESTS)]),
        }  # fmt: skip
        self._check()

    def _check(self):
        """It is this copy that is loaded, and it is instrumented."""
        code = "import qrep._native.wire as it; print(it.__file__)"
        loaded = self._python("-c", code)
        assert loaded.returncode == 0, loaded.stderr
        path = Path(loaded.stdout.strip())
        assert self.directory in path.parents and b"__asan_report" in path.read_bytes(), path

    def _python(self, *arguments):
        return subprocess.run([sys.executable, *arguments], env={**os.environ, **self.environment}, capture_output=True, text=True, check=False, timeout=120)

    def notices(self, scratch):
        """Whether a heap overflow in a library that Python has loaded leads to a report; the report is taken away."""
        library = compiled(scratch / "canaries.so", [HERE / "canaries.c"], "address,undefined", ["-shared", "-fPIC"])
        code = f"import ctypes; ctypes.CDLL({str(library)!r}).main(2, (ctypes.c_char_p * 3)(b'canaries', b'heap_overflow', None))"
        ended = self._python("-c", code)
        seen = self.reports()
        for path in self._files():
            path.unlink()
        return ended.returncode != 0 and any("heap-buffer-overflow" in text for text in seen)

    def _files(self):
        return sorted(self.directory.glob(f"{self._log.name}.*"))

    def reports(self):
        """What the sanitizers of any process wrote."""
        return [text[:1500] for text in (path.read_text(errors="replace") for path in self._files()) if FOUND.search(text)]


def runtime(name):
    """Path of a shared sanitizer runtime of gcc's."""
    found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=False).stdout.strip()
    if not os.path.isabs(found):
        raise Unavailable(f"gcc has no {name}")
    return os.path.realpath(found)
