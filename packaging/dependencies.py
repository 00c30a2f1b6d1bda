#!/usr/bin/env python3
"""The dependencies of qrep as installed here: are they the ones it is tested with, whole, of known licences, without known holes?

    python packaging/dependencies.py check [--advisories] [--json]
    python packaging/dependencies.py sbom > packaging/sbom.cdx.json

`check` works without a network: names and versions are compared with requirements.txt beside this file, the files of each distribution with the
digests that came with it, its licence with a list. --advisories asks pip-audit, which asks its service; where there is no pip-audit, no network or
no answer for a distribution, that is said, and nothing is called clean. Exit code: 0 all well, 1 something is wrong, 3 advisories were wanted and
could not be had for all.
"""

import argparse
import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS, SBOM, PROJECT = HERE / "requirements.txt", HERE / "sbom.cdx.json", HERE.parent / "pyproject.toml"
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.!+_-]*) *\\?$")
DIGEST = re.compile(r"--hash=(\S+?):(\S+)")
LICENCES = re.compile(r"MIT|BSD|Apache|PSF|Python Software|ISC|MPL|Mozilla|0BSD|Zlib|CC0|Unlicense|public domain", re.IGNORECASE)
BOOTSTRAP = {"pip"}  # what installs, in every venv


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(path=REQUIREMENTS):
    """{canonical name: (version, {"sha256:..."})}. Raises ValueError on a line that is not pinned, or has no digest or another kind of it."""
    pins, name = {}, None
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = PIN.match(text)
        if match:
            name = canonical(match[1])
            if name in pins:
                raise ValueError(f"{path}:{number}: {name} is there twice")
            pins[name] = (match[2], set())
            continue
        digest = DIGEST.search(text)
        if name is None or digest is None or digest[1] != "sha256" or not re.fullmatch("[0-9a-f]{64}", digest[2]):
            raise ValueError(f"{path}:{number}: neither NAME==VERSION nor a sha256 digest: {text}")
        pins[name][1].add(f"sha256:{digest[2]}")
    bare = sorted(name for name, (_version, digests) in pins.items() if not digests)
    if bare:
        raise ValueError(f"{path}: without a digest: {', '.join(bare)}")
    return pins


def declared():
    """Canonical names that pyproject.toml asks for: {"run": ..., "test": ..., "build": ...}."""
    project = tomllib.loads(PROJECT.read_text())
    groups = {"run": project["project"]["dependencies"], "test": project["project"]["optional-dependencies"]["test"], "build": project["build-system"]["requires"]}
    return {group: {canonical(re.match(r"[A-Za-z0-9._-]+", each)[0]) for each in wanted} for group, wanted in groups.items()}


def needed(names, find):
    """`names` and all that they need in turn, as far as it is installed. find(name) -> Distribution or None."""
    waiting, found = list(names), set()
    while waiting:
        name = waiting.pop()
        if name in found or find(name) is None:
            continue
        found.add(name)
        for each in find(name).requires or ():
            if "extra ==" not in each and "extra==" not in each:
                waiting.append(canonical(re.match(r"[A-Za-z0-9._-]+", each)[0]))
    return found


def installed(name):
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def licence_of(distribution):
    told = distribution.metadata
    classifiers = [text.rpartition("::")[2].strip() for text in told.get_all("Classifier") or () if text.startswith("License ::")]
    first = (told.get("License") or "").strip().splitlines()[:1]
    return told.get("License-Expression") or ", ".join(classifiers) or " ".join(first)


def broken_files(distribution):
    """Files that are not what their RECORD says."""
    found = []
    for file in distribution.files or ():
        if file.hash is None or str(file).endswith(".pyc"):
            continue
        path = Path(distribution.locate_file(file))
        if not path.is_file():
            found.append(f"{file} is missing")
            continue
        digest = base64.urlsafe_b64encode(hashlib.new(file.hash.mode, path.read_bytes()).digest()).rstrip(b"=").decode()
        if digest != file.hash.value:
            found.append(f"{file} was changed")
    return found


def check(pins, find=installed, groups=("run",)):
    """{"unknown", "different", "changed", "licence"}: lists of sentences; different: another version than is tested, which is no fault by itself."""
    names = needed(set().union(*(declared()[group] for group in groups)), find) - BOOTSTRAP
    found = {"checked": sorted(names), "unknown": [], "different": [], "changed": [], "licence": []}
    for name in sorted(names):
        distribution = find(name)
        version, licence = distribution.version, licence_of(distribution)
        if name not in pins:
            found["unknown"].append(f"{name} {version} is not among those that qrep is tested with")
        elif version != pins[name][0]:
            found["different"].append(f"{name} {version} is installed, {pins[name][0]} is tested")
        if not LICENCES.search(licence):
            found["licence"].append(f"{name}: licence {licence or 'not told'}")
        found["changed"] += [f"{name}: {text}" for text in broken_files(distribution)]
    missing = sorted(declared()["run"] - names)
    found["unknown"] += [f"{name} is not installed" for name in missing]
    return found


def advisories(path=REQUIREMENTS, program="pip-audit", seconds=120):
    """(sentences of known holes, why some could not be looked up or "")."""
    if shutil.which(program) is None:
        return [], f"no advisories were looked up: {program} is not installed"
    try:
        done = subprocess.run(
            [program, "--requirement", str(path), "--disable-pip", "--require-hashes", "--format", "json", "--progress-spinner", "off"],
            capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
        told = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return [], f"no advisories were looked up: {program} had no answer in {seconds} s"
    except (ValueError, KeyError):
        return [], f"no advisories were looked up: {program} says: {(done.stderr.strip().splitlines() or ['nothing'])[-1][:200]}"
    holes = [f"{each['name']} {each['version']}: {hole['id']}" for each in told for hole in each.get("vulns", ())]
    skipped = sorted(each["name"] for each in told if "skip_reason" in each)
    return holes, f"no advisories were to be had for {len(skipped)} of {len(told)}: {', '.join(skipped[:5])}..." if skipped else ""


def sbom(pins):
    """A CycloneDX document of what is pinned."""
    groups = declared()
    components = [
        {
            "type": "library", "bom-ref": f"pkg:pypi/{name}@{version}", "name": name, "version": version, "purl": f"pkg:pypi/{name}@{version}",
            "scope": "required" if name in groups["run"] else "optional",
            "properties": [{"name": "qrep:sha256", "value": digest.partition(":")[2]} for digest in sorted(digests)],
        }
        for name, (version, digests) in sorted(pins.items())
    ]  # fmt: skip
    native = [
        {"type": "library", "bom-ref": f"pkg:deb/debian/{name}", "name": name, "purl": f"pkg:deb/debian/{name}", "scope": "required", "description": "linked statically"}
        for name in ("liburing-dev", "libzstd-dev")
    ]  # fmt: skip
    subject = {"type": "application", "bom-ref": "qrep", "name": "qrep"}
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": {"component": subject}, "components": components + native}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["check", "sbom"])
    parser.add_argument("--advisories", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    pins = read_pins()
    if given.what == "sbom":
        print(json.dumps(sbom(pins), indent=1))
        return 0
    found = check(pins)
    found["holes"], found["not_looked_up"] = advisories() if given.advisories else ([], "no advisories were looked up: --advisories was not given")
    if given.json:
        print(json.dumps(found, indent=1))
    else:
        for key in ("unknown", "changed", "licence", "holes", "different"):
            for text in found[key]:
                print(f"{key}: {text}")
        print(f"{len(found['checked'])} distributions were compared with {len(pins)} that qrep is tested with")
        print(found["not_looked_up"] or "no advisory is known for any of them")
    if found["unknown"] or found["changed"] or found["licence"] or found["holes"]:
        return 1
    return 3 if given.advisories and found["not_looked_up"] else 0


if __name__ == "__main__":
    sys.exit(main())
