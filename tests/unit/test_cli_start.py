"""What a command imports before it answers: `qrep status` is typed often, and starting is most of what it takes (bench/RESULTS.md, P3)."""

import subprocess
import sys

from cli_process import COMMAND, environment
from fake_agent import JOB, serving

# Beside what `import click` alone brings. Whoever adds one of them has measured what it costs: python -X importtime.
OURS = {"app", "hints", "main", "names", "packed", "render", "status"}
STATUS_IMPORTS = {"qrep", "qrep.cli", "qrep.client", "qrep.errors", "qrep.units", "qrep.unixhttp"} | {f"qrep.cli.{name}" for name in OURS}
SLOW = {"asyncio", "concurrent", "decimal", "difflib", "email", "fractions", "http", "ipaddress", "logging", "sqlite3", "ssl", "subprocess", "tomllib", "urllib"}


def loaded(code, env):
    done = subprocess.run([COMMAND[0], "-c", f"{code}\nimport sys; print(*sys.modules, file=sys.stderr)"], env=env, capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_status_as_json_imports_these_modules_and_no_others(tmp_path):
    with serving(tmp_path / "s") as agent:
        agent.on("GET", "/status", {"node": {"name": "a", "version": "1"}, "jobs": [JOB]})
        env = environment(agent.path)
        before = loaded("import click", env)
        after = loaded("from qrep.cli.main import root; from qrep.cli.app import run; assert run(root, ['status', '--json']) == 0", env)
    came = after - before
    assert {name for name in came if name.partition(".")[0] == "qrep"} == STATUS_IMPORTS
    rest = {name.partition(".")[0] for name in came} - {"qrep"}
    assert not rest & SLOW
    assert not rest - sys.stdlib_module_names, "a package beside click"
