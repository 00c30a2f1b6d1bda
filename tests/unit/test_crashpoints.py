"""The table of crash points is complete, and a crash point kills at the passage it was asked for."""

import os
import re
import subprocess
import sys
from pathlib import Path

from qrep.crashpoint import POINTS

SOURCES = Path(__file__).parents[2] / "src" / "qrep"  # what is installed has no C files
CALL = re.compile(r'crashpoint\("([^"]+)"\)')


def test_every_name_in_the_sources_is_in_the_table_and_the_other_way_round():
    files = [path for pattern in ("*.py", "*.c", "*.pyx") for path in SOURCES.rglob(pattern)]
    found = {name for path in files for name in CALL.findall(path.read_text())}
    assert found == set(POINTS)
    computed = [path for path in files if re.search(r"\bcrashpoint\(f", path.read_text())]
    assert not computed  # a name that is made up at run time is not in any table


def test_the_asked_for_passage_kills():
    program = "from qrep.crashpoint import crashpoint\nfor n in range(5): print(n, flush=True); crashpoint('target-end')"
    for passage in (1, 3):
        ended = subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "QREP_CRASH": f"target-end:{passage}"}, capture_output=True
        )
        assert ended.returncode == -9 and len(ended.stdout.split()) == passage


def test_who_is_to_stop_there_stands_at_the_asked_for_passage_until_it_is_killed():
    program = "from qrep.crashpoint import crashpoint\nfor n in range(5): print(n, flush=True); crashpoint('target-end')"
    with subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "QREP_CRASH": "target-end:2:stop"}, stdout=subprocess.PIPE) as started:
        _pid, status = os.waitpid(started.pid, os.WUNTRACED)
        started.kill()
        assert os.WIFSTOPPED(status) and started.wait() == -9 and started.stdout.read().split() == [b"0", b"1"]
