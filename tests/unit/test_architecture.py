"""Imports go one way: cli -> demo | oneshot -> daemon -> jobs -> source | target -> protocol, volumes, digestmap, device -> leaves."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "qrep"
RANKS = {
    "cli": 6, "demo": 5, "oneshot": 5, "daemon": 4, "jobs": 3, "nbd": 3, "copy": 3, "source": 2, "target": 2,
    "protocol": 1, "volumes": 1, "digestmap": 1, "device": 1, "devicesafety": 1,
}  # fmt: skip
LEAF = 0  # errors, units, extents, states, config, report, store, crashpoint, ...
FREE = {"_native", "__main__"}  # everything may use _native; __main__ uses what it likes


def part_of(path):
    """The first word below qrep: a package or a top-level module."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py").removesuffix(".pyx")


def imports_of(path):
    """Parts of qrep that a file imports, anywhere in it."""
    if path.suffix == ".pyx":  # not Python; its imports are lines
        lines = [line.strip() for line in path.read_text().splitlines()]
        found = [line.split()[1] for line in lines if line.startswith(("import qrep", "from qrep"))]
    else:
        found = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                package = path.relative_to(SOURCE.parent).with_suffix("").parts[: -node.level] if node.level else ()
                base = ".".join([*package, *([node.module] if node.module else [])])
                found += [f"qrep.{alias.name}" for alias in node.names] if base == "qrep" else [base]
    return {name.split(".")[1] for name in found if name.startswith("qrep.")}


FILES = sorted(path for suffix in ("py", "pyx") for path in SOURCE.rglob(f"*.{suffix}"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    part, imported = part_of(path), imports_of(path)
    if part == "_native":
        assert imported <= {"_native"}, f"{path} imports {imported}: the native layer imports nothing of qrep"
        return
    if part in FREE or path == SOURCE / "__init__.py":
        return
    rank = RANKS.get(part, LEAF)
    for other in imported - FREE - {part, "__version__"}:
        assert RANKS.get(other, LEAF) < rank or (rank <= 1 and RANKS.get(other, LEAF) <= rank), f"{path} imports {other}"
    assert not {"source", "target"} <= imported | {part} or rank > 2, "source and target never import each other"


def test_protocol_has_no_sockets_clock_disk_or_randomness_in_its_machines():
    forbidden = {"os", "socket", "time", "random", "secrets", "threading", "asyncio", "datetime", "uuid", "io", "ssl"}
    for name in ("messages", "records", "actions", "target_machine", "target_requests", "target_checks", "source_machine", "source_replies", "source_compare", "source_connections", "rebuild"):
        tree = ast.parse((SOURCE / "protocol" / f"{name}.py").read_text())
        found = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        found |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
        assert not found & forbidden, f"protocol/{name}.py imports {found & forbidden}"
