"""What `qrep check` says of broken files, word for word: tests/golden/check.txt.

Each case there is files that replace or join good ones, and what is said of them. `python tests/unit/test_config_golden.py` writes anew what is
said; read the difference before you keep it.
"""

import re
import tempfile
from pathlib import Path

import pytest

from qrep.configcheck import check
from qrep.daemon.events import CODES

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "check.txt"
ID = "0" * 32
GOOD = {
    "qrep.toml": '[node]\nname = "a"\n',
    "peers/b.toml": f'addresses = ["10.0.1.2"]\nfingerprint = "SHA256:{":".join(["7b"] * 32)}"\ncertificate = "PEM"\n',
    "volumes/db.toml": f'id = "{ID}"\ndevice = "/dev/vg0/db"\naccept = ["b"]\n',
    "jobs/db.toml": f'id = "{ID}"\nsource = "db"\ntarget = "b:db"\ntarget_volume = "{ID}"\nsize = 1048576\nleaf = 4096\ngranule = 8388608\n',
}


def cases():
    """{title: ({file: text}, what is said)}. The file is Latin-1, so that it can hold bytes that are no UTF-8."""
    found = {}
    for part in GOLDEN.read_text(encoding="latin-1").split("######## ")[1:]:
        title, _, body = part.partition("\n")
        pieces = re.split(r"^#### (.*)\n", body, flags=re.MULTILINE)
        files = dict(zip(pieces[1::2], pieces[2::2], strict=True))
        found[title] = (files, files.pop("says"))
    return found


def said(files, directory):
    """What is said of GOOD files with these among them."""
    for name, text in {**GOOD, **files}.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode("latin-1"))
        path.chmod(0o600)
    problems = check(directory, event_codes=CODES)
    return "".join(f"{problem}\n" for problem in problems).replace(f"{directory}/", "")


CASES = cases()


def test_there_are_many_and_good_files_have_nothing_said_of_them(tmp_path):
    assert len(CASES) >= 30 and said({}, tmp_path) == ""


@pytest.mark.parametrize("title", CASES)
def test_what_is_said_of_broken_files(tmp_path, title):
    files, expected = CASES[title]
    assert expected and said(files, tmp_path) == expected


@pytest.mark.parametrize("title", CASES)
def test_every_problem_of_a_file_has_its_line(tmp_path, title):
    said(CASES[title][0], tmp_path)
    for problem in check(tmp_path, event_codes=CODES):
        assert problem.line or not problem.place, problem


def write():
    parts = []
    for title, (files, _said) in CASES.items():
        with tempfile.TemporaryDirectory() as directory:
            answer = said(files, Path(directory).resolve())
        parts += [f"######## {title}\n", *(f"#### {name}\n{text}" for name, text in files.items()), f"#### says\n{answer}"]
    GOLDEN.write_text("".join(parts), encoding="latin-1")


if __name__ == "__main__":
    write()
