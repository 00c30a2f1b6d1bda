"""What qrep is made of is pinned, known and whole, and what is said of it is true; where advisories cannot be had, that is said."""

import base64
import hashlib
import importlib.util
import json
import re
import sys
import tomllib
from email.message import Message
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("qrep_dependencies", ROOT / "packaging" / "dependencies.py")
dependencies = importlib.util.module_from_spec(spec)
spec.loader.exec_module(dependencies)


@pytest.fixture(scope="module")
def pins():
    return dependencies.read_pins()


def test_everything_that_is_asked_for_is_pinned_with_digests(pins):
    asked = set().union(*dependencies.declared().values())
    assert asked <= set(pins) and all(len(digests) >= 1 for _version, digests in pins.values())


def test_a_pin_is_one_that_pyproject_allows(pins):
    packaging = pytest.importorskip("packaging.requirements")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for text in [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["test"], *project["build-system"]["requires"]]:
        wanted = packaging.Requirement(text)
        assert wanted.specifier.contains(pins[dependencies.canonical(wanted.name)][0]), text


def test_what_is_installed_here_is_known_whole_and_of_a_licence_that_is_named(pins):
    """Another version than the one that is tested is no fault of this checkout: the command tells of it."""
    found = dependencies.check(pins)
    assert len(found["checked"]) >= 15
    assert (found["unknown"], found["changed"], found["licence"]) == ([], [], [])


def test_the_bill_of_materials_says_what_is_pinned(pins):
    kept = json.loads((ROOT / "packaging" / "sbom.cdx.json").read_text())
    assert kept == dependencies.sbom(pins), "python packaging/dependencies.py sbom > packaging/sbom.cdx.json"
    assert kept["bomFormat"] == "CycloneDX" and {"numpy", "cryptography", "liburing-dev"} <= {each["name"] for each in kept["components"]}


def test_no_file_names_where_distributions_come_from():
    for name in ("requirements.txt", "sbom.cdx.json", "dependencies.py"):
        assert not re.search(r"https?://|--index-url|--find-links|--extra-index", (ROOT / "packaging" / name).read_text()), name


class Fake:
    """A distribution with one file."""

    def __init__(self, directory, name, version="1.0", licence="MIT", requires=(), content=b"code"):
        self.name, self.version, self.requires = name, version, list(requires)
        self.metadata = Message()
        self.metadata["License-Expression"] = licence
        self.path = directory / f"{name}.py"
        self.path.write_bytes(b"code")
        file = metadata.PackagePath(f"{name}.py")
        file.hash = metadata.FileHash("sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode())
        file.size = file.dist = None
        self.files = [file]

    def locate_file(self, file):
        return self.path


WRONG = {
    "unknown": {"name": "surprise"}, "different": {"name": "msgspec", "version": "0.0.1"}, "changed": {"name": "msgspec", "content": b"other"},
    "licence": {"name": "msgspec", "licence": "All rights reserved"},
}  # fmt: skip


@pytest.mark.parametrize("key", WRONG)
def test_what_is_wrong_with_an_installation_is_told(tmp_path, pins, key):
    good = {name: Fake(tmp_path, name, pins[name][0]) for name in dependencies.declared()["run"]}
    clean = dependencies.check(pins, good.get)
    assert not any(clean[each] for each in WRONG)
    bad = Fake(tmp_path, **{"version": pins["msgspec"][0]} | WRONG[key])
    if key == "unknown":
        good["msgspec"].requires = ["surprise>=1"]
    found = dependencies.check(pins, (good | {bad.name: bad}).get)
    assert [each for each in WRONG if found[each]] == [key], found


@pytest.mark.parametrize("text", ["requests\n", "requests>=2\n", "requests==2.0\n", "requests==2.0 \\\n    --hash=md5:00\n", "-e .\n", "requests==2.0 @ file\n"])
def test_a_line_that_pins_nothing_is_refused(tmp_path, text):
    path = tmp_path / "requirements.txt"
    path.write_text(text)
    with pytest.raises(ValueError):
        dependencies.read_pins(path)


def program(directory, body):
    path = directory / "auditor"
    path.write_text(f"#!{sys.executable}\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_where_advisories_cannot_be_had_that_is_said_and_nothing_is_called_clean(tmp_path):
    assert dependencies.advisories(program="no-such-program") == ([], "no advisories were looked up: no-such-program is not installed")
    failing = program(tmp_path, "import sys; sys.exit('no network')")
    assert dependencies.advisories(program=failing) == ([], f"no advisories were looked up: {failing} says: no network")
    partly = program(tmp_path, """print('{"dependencies": [{"name": "a", "skip_reason": "not found"}, {"name": "b", "version": "1", "vulns": [{"id": "HOLE-1"}]}]}')""")
    holes, why = dependencies.advisories(program=partly)
    assert holes == ["b 1: HOLE-1"] and why.startswith("no advisories were to be had for 1 of 2: a")
    whole = program(tmp_path, """print('{"dependencies": [{"name": "b", "version": "1", "vulns": []}]}')""")
    assert dependencies.advisories(program=whole) == ([], "")
