"""A private copy of the sources and the tests, in which one file at a time is changed. Native parts are compiled and linked one by one."""

import contextlib
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("src", "tests", "docs", "packaging", "setup.py", "pyproject.toml", "README.md", "CHANGELOG.md", "prepare.sh", "test.sh", "demo.sh")
CC = os.environ.get("CC", "gcc").split()
CFLAGS = ["-O1", "-std=gnu11", "-w", "-fPIC", "-fvisibility=hidden", "-D_GNU_SOURCE"]
EPOCH = 1_000_000_000  # of files that were changed: no two states of a file have the same time, so no stale bytecode is taken for it


def built():
    """The directory of the native modules that tests use here: the sources', or where they are installed. qrep is not imported for it."""
    here = ROOT / "src" / "qrep" / "_native"
    if list(here.glob("*.so")):
        return here
    spec = importlib.util.find_spec("qrep")
    return Path(spec.submodule_search_locations[0]) / "_native"


class Tree:
    """directory: an empty one, which this fills."""

    def __init__(self, directory):
        self.root, self._times = Path(directory), 0
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, self.root / name, symlinks=True, ignore=shutil.ignore_patterns("*.egg-info", ".hypothesis"))
            else:
                shutil.copy2(source, self.root / name)
        self.package = self.root / "src" / "qrep"
        self.native = self.package / "_native"
        modules = built()
        if modules != ROOT / "src" / "qrep" / "_native":
            for path in modules.glob("*.so"):
                shutil.copy2(path, self.native / path.name)

    @property
    def paths(self):
        return [str(self.root / "src"), str(self.root / "tests")]

    @contextlib.contextmanager
    def mutated(self, mutant):
        """While in use, the tree has the defect."""
        path = self.package / mutant.file
        text = path.read_text()
        changed = mutant.applied(text)
        with contextlib.ExitStack() as undo:
            undo.callback(self._write, path, text)
            self._write(path, changed)
            if mutant.native:
                undo.enter_context(self._relinked(path))
            yield

    def _write(self, path, text):
        path.write_text(text)
        self._times += 1
        os.utime(path, (EPOCH + self._times, EPOCH + self._times))

    # ---- native parts ----

    @contextlib.contextmanager
    def _relinked(self, path):
        """Every module that holds code of this file, linked with what the file says now."""
        if path.suffix == ".h":
            raise ValueError(f"{path.name}: a header is part of many files; mutate one of those")
        objects, archive = self._objects()
        fresh = self.root / f"{path.stem}.mutant.o"
        _run(*CC, *CFLAGS, f"-I{self.native}", "-c", path, "-o", fresh)
        symbols = _functions(fresh, "T")
        holding = [module for module in sorted(self.native.glob("*.abi3.so")) if symbols & self._functions_of(module)]
        if not holding:
            raise ValueError(f"no module holds code of {path.name}")
        with contextlib.ExitStack() as undo:
            for module in holding:
                name = module.name.partition(".")[0]
                kept = module.with_suffix(".kept")
                os.rename(module, kept)
                undo.callback(os.rename, kept, module)
                # What this object defines is not looked for in the archive any more.
                _run(*CC, "-shared", objects[name], fresh, archive, *_libraries(), "-Wl,--exclude-libs,ALL", "-o", module)
            yield

    @functools.cache
    def _functions_of(self, module):
        return _functions(module, "tT")

    @functools.cache
    def _objects(self):
        """({module: its object}, the archive of everything else), as the build left them; built once if it did not."""
        if _find_objects(ROOT / "build"):
            shutil.copytree(ROOT / "build", self.root / "build", ignore=shutil.ignore_patterns("lib.*", "bdist.*", "*.c"))
        else:
            _build(self.root)
        return _find_objects(self.root / "build")


def _find_objects(build):
    archives = sorted(build.glob("temp*/libqrepcore.a"))
    objects = {path.stem: path for path in build.glob("temp*/build/pyx/src/qrep/_native/*.o")}
    return (objects, archives[-1]) if archives and objects else None


def _build(root):
    """Where nothing was built here, or somewhere else and thrown away."""
    if importlib.util.find_spec("Cython"):
        _run(sys.executable, "setup.py", "-q", "build_clib", "build_ext", cwd=root)
    else:
        _run(sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "-w", root / "wheel", ".", cwd=root)


@functools.cache
def _libraries():
    return [_run(*CC, f"-print-file-name={name}").strip() for name in ("liburing.a", "libzstd.a")]


def _functions(path, kinds):
    """Names of functions that an object or a module defines. kinds: of nm, T those for other files. In a module all of them are local."""
    return {name for *_, kind, name in map(str.split, _run("nm", "--defined-only", path).splitlines()) if kind in kinds}


def _run(*command, cwd=None):
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, cwd=cwd)
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {result.stdout}{result.stderr}")
    return result.stdout
