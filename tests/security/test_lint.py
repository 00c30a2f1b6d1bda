"""The sources hold nothing that a reviewer of storage or security rejects on sight (the lint is its own test, too)."""

import ast
import re
from pathlib import Path

import pytest
from security import lint

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "src").rglob("*.py"))
# Made of column and table names of the module's own tables.
OWN_SQL = {"src/qrep/daemon/statedb.py", "src/qrep/daemon/statedbfile.py"}
# A context that only looks who is there (a person decides), and trusts nobody with anything.
LOOKS = {"src/qrep/daemon/tls.py": "a TLS context that asks for no certificate"}
# A flush of what a commit rests on, whose failure ends the process.
DECIDE = {"src/qrep/store.py", "src/qrep/target/superblock.py"}
# Of somebody else's filesystem before it is frozen, of a clone that is given up on failure, of a new image file, of an attachment's own overlay,
# of the demonstration's own files: a failure is told, and nothing was committed.
NOT_OURS = {
    "src/qrep/volumes/quiet.py", "src/qrep/volumes/reflink.py", "src/qrep/daemon/volumecreate.py", "src/qrep/nbd/overlay.py",
    "src/qrep/demo/life.py", "src/qrep/demo/unattended.py",
}  # fmt: skip


def name(path):
    return str(path.relative_to(ROOT))


def test_no_source_runs_data_calls_a_shell_or_switches_a_check_off():
    found = {
        (name(path), what) for path in FILES for _line, what in lint.faults(path.read_text())
        if not (what.startswith("SQL made of") and name(path) in OWN_SQL) and LOOKS.get(name(path)) != what
    }  # fmt: skip
    assert found == set()


def test_nothing_secret_comes_from_a_generator_that_can_be_guessed():
    """Keys, tokens and ids are of `secrets` or the kernel; `random` is for content of demonstrations and the spreading of times."""
    users = {name(path) for path in FILES if lint.imports_random(path.read_text())}
    # link: how long to wait before the next try; rebuild: SystemRandom, which is the kernel's.
    assert users == {"src/qrep/demo/content.py", "src/qrep/demo/life.py", "src/qrep/source/link.py", "src/qrep/source/rebuild.py"}, users


def test_lengths_of_the_native_code_have_a_width():
    """No `long` or `short` holds a size or an offset, and nothing unbounded of the C library is called."""
    found = []
    for path in sorted((ROOT / "src/qrep/_native").glob("*.[ch]")):
        if path.name.startswith("_"):
            continue
        text = re.sub(r"/\*.*?\*/|\"(\\.|[^\"])*\"|//[^\n]*", "", path.read_text(), flags=re.DOTALL)
        found += [f"{path.name}: {match[0]}" for match in re.finditer(r"\b(strcpy|strcat|sprintf|vsprintf|gets|scanf|alloca|strtok|system|popen|mktemp)\s*\(", text)]
        found += [f"{path.name}: {match[0]}" for match in re.finditer(r"\b(?:long|short|unsigned)\s+(?:\w*_)?(?:size|offset|length|bytes)\b\s*[;=,)]", text)]
    assert found == []


def test_cython_checks_its_bounds_in_all_code():
    assert not [path.name for path in (ROOT / "src/qrep/_native").glob("*.p[yx][xd]") if re.search(r"boundscheck\s*\(\s*False|boundscheck\s*=\s*False|wraparound", path.read_text())]
    assert "boundscheck" not in (ROOT / "setup.py").read_text()


def test_a_failed_flush_is_in_no_loop():
    """R2: whoever calls fsync where a commit rests on it ends the process when it fails."""
    callers = {name(path) for path in FILES if re.search(r"\bos\.f(data)?sync\(", path.read_text())}
    assert callers <= DECIDE | NOT_OURS, callers - DECIDE - NOT_OURS
    for path in FILES:
        if name(path) not in callers:
            continue
        tree = ast.parse(path.read_text())
        loops = [node for node in ast.walk(tree) if isinstance(node, ast.While)]
        assert not [node for loop in loops for node in ast.walk(loop) if isinstance(node, ast.Call) and lint.dotted(node.func) in ("os.fsync", "os.fdatasync")], path


BAD = {
    "eval(text)": "eval", "import pickle": "pickle", "subprocess.run(text, shell=True)": "shell", "os.system(text)": "shell",
    "context.verify_mode = ssl.CERT_NONE": "certificate", "yaml.load(text)": "runs", "db.execute(f'SELECT {name}')": "SQL", "hashlib.md5(data)": "broken",
    "subprocess.run(text, shell=flag)": "shell", "assert (x, 'always')": "tuple",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_the_lint_tells_of_what_is_bad(text):
    assert any(BAD[text] in what for _line, what in lint.faults(text)), lint.faults(text)


@pytest.mark.parametrize("text", ["subprocess.run(['a'], shell=False)", "msgspec.json.decode(x)", "context.verify_mode = ssl.CERT_REQUIRED", "db.execute('SELECT ?', x)"])
def test_the_lint_passes_what_is_good(text):
    assert lint.faults(text) == []
