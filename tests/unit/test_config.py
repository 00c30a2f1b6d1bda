"""Configuration files as people, scripts and accidents write them: every error has its place, and its likely meaning."""

import os

import pytest
from cli_process import call

from qrep import config
from qrep.config import Config
from qrep.configcheck import check
from qrep.errors import ConfigError, NotFound, UsageError

ID = "0" * 32
FINGERPRINT = "SHA256:" + ":".join(["7b"] * 32)
GOOD = {
    "qrep.toml": '[node]\nname = "a"\nlisten = ["0.0.0.0", "::"]\nport = 7414\n[limits]\njobs_running = 4\n',
    "peers/b.toml": f'addresses = ["10.0.1.2:7414", "[fe80::1]:7414"]\nfingerprint = "{FINGERPRINT}"\ncertificate = "PEM"\n',
    "volumes/db.toml": f'id = "{ID}"\ndevice = "/dev/vg0/db"\nundo_space = "0.5x"\naccept = ["b"]\n[identity]\nsize = 4096\n',
    "jobs/db.toml": f'id = "{ID}"\nsource = "db"\ntarget = "b:db"\ntarget_volume = "{ID}"\nsize = 1048576\nleaf = 4096\ngranule = 8388608\n',
}
NAMES = ["", ".", "..", "../../x", "a/b", "a\nb", "a\0b", "a b", "-a", ".hidden", "é", "x" * 64, "x" * 4096, "a:b", "a@b", None, 7]


@pytest.fixture
def put(tmp_path):
    """Writes files below a configuration directory that is good otherwise; returns the directory."""

    def write(**files):
        for name, text in {**GOOD, **files.get("files", {})}.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            if text is not None:
                path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path

    return write


def with_line(name, line, instead_of=""):
    """A good file with a line changed or added at its beginning."""
    lines = GOOD[name].splitlines(True)
    if instead_of:
        assert any(old.startswith(instead_of) for old in lines)
        lines = [f"{line}\n" if old.startswith(instead_of) else old for old in lines]
    else:
        lines.insert(0, f"{line}\n")
    return "".join(lines)


def test_good_files_have_no_problems_and_load(put):
    directory = put()
    assert check(directory) == []
    assert Config(directory).load("jobs", "db").target == "b:db"
    assert Config(directory).node().node.port == 7414


def test_what_is_saved_is_private_and_loads_as_the_same(put):
    settings = Config(put())
    for kind in config.KINDS:
        for name in settings.names(kind):
            value = settings.load(kind, name)
            settings.save(kind, name + "2", value)
            assert settings.load(kind, name + "2") == value
            assert os.stat(settings.path(kind, name + "2")).st_mode & 0o777 == 0o600


BAD = {
    "unknown key": ("qrep.toml", with_line("qrep.toml", "prot = 7414", "port"), "node.prot", "unknown key", "did you mean port?"),
    "unknown section": ("qrep.toml", GOOD["qrep.toml"] + "[limit]\n", "limit", "unknown key", "did you mean limits?"),
    "unknown volume key": ("volumes/db.toml", with_line("volumes/db.toml", 'undo_spce = "2x"'), "undo_spce", "unknown key", "undo_space"),
    "key like nothing": ("jobs/db.toml", with_line("jobs/db.toml", "zzz = 1"), "zzz", "unknown key", "known: "),
    "wrong type": ("qrep.toml", with_line("qrep.toml", 'port = "7414"', "port"), "node.port", "Expected `int`, got `str`", ""),
    "bool for a number": ("jobs/db.toml", with_line("jobs/db.toml", "size = true", "size"), "size", "Expected `int`", ""),
    "port 0": ("qrep.toml", with_line("qrep.toml", "port = 0", "port"), "node.port", ">= 1", ""),
    "port 65536": ("qrep.toml", with_line("qrep.toml", "port = 65536", "port"), "node.port", "<= 65535", ""),
    "listen": ("qrep.toml", with_line("qrep.toml", 'listen = ["every where"]', "listen"), "node.listen", "is no address", "write it like"),
    "node name": ("qrep.toml", with_line("qrep.toml", 'name = "../a"', "name"), "node.name", "cannot name", "letters"),
    "2^64 bytes": ("jobs/db.toml", with_line("jobs/db.toml", f"size = {1 << 64}", "size"), "size", "", ""),
    "2^63 bytes": ("jobs/db.toml", with_line("jobs/db.toml", f"size = {1 << 63}", "size"), "size", "", ""),
    "negative size": ("jobs/db.toml", with_line("jobs/db.toml", "size = -1", "size"), "size", ">= 512", ""),
    "size of 5000 digits": ("jobs/db.toml", with_line("jobs/db.toml", "size = " + "9" * 5000, "size"), "", "not TOML that anyone means", ""),
    "leaf of three": ("jobs/db.toml", with_line("jobs/db.toml", "leaf = 12288", "leaf"), "leaf", "not a power of two", ""),
    "granule below leaf": ("jobs/db.toml", with_line("jobs/db.toml", "leaf = 1048576", "leaf").replace("8388608", "8192"), "granule", "power of two from 2MiB", ""),
    "undo space": ("volumes/db.toml", with_line("volumes/db.toml", 'undo_space = "twice"', "undo_space"), "undo_space", "twice", "write it like"),
    "undo space without room for a run": ("volumes/db.toml", with_line("volumes/db.toml", 'undo_space = "31M"', "undo_space"), "undo_space", "no run could begin", "write it like"),
    "undo space of 2^64": ("volumes/db.toml", with_line("volumes/db.toml", f'undo_space = "{1 << 64}"', "undo_space"), "undo_space", "", ""),
    "timeout": ("jobs/db.toml", with_line("jobs/db.toml", 'timeout = "30"'), "timeout", "the unit is missing", "30s"),
    "source name": ("jobs/db.toml", with_line("jobs/db.toml", 'source = "../../x"', "source"), "source", "cannot name a volume", "letters"),
    "target name": ("jobs/db.toml", with_line("jobs/db.toml", 'target = "b:../x"', "target ="), "target", "cannot name a volume", "letters"),
    "empty peer": ("jobs/db.toml", with_line("jobs/db.toml", 'target = ":db"', "target ="), "target", "cannot name a peer", "letters"),
    "accept name": ("volumes/db.toml", with_line("volumes/db.toml", 'accept = ["a\\nb"]', "accept"), "accept", "cannot name a peer", ""),
    "NUL in a path": ("volumes/db.toml", with_line("volumes/db.toml", 'device = "/dev/\\u0000x"', "device"), "device", "cannot be the device", ""),
    "newline in a path": ("volumes/db.toml", with_line("volumes/db.toml", 'device = "/dev/x\\n"', "device"), "device", "cannot be the device", ""),
    "relative path": ("volumes/db.toml", with_line("volumes/db.toml", 'device = "sda"', "device"), "device", "cannot be the device", "absolute"),
    "path of 4 KiB": ("volumes/db.toml", with_line("volumes/db.toml", f'device = "/{"x" * 4096}"', "device"), "device", "...", ""),
    "missing key": ("volumes/db.toml", f'id = "{ID}"\n', "", "missing required field `device`", ""),
    "bad id": ("volumes/db.toml", with_line("volumes/db.toml", 'id = "12"', "id"), "id", "", ""),
    "fingerprint": ("peers/b.toml", with_line("peers/b.toml", 'fingerprint = "SHA256:7b"', "fingerprint"), "fingerprint", "", ""),
    "no address": ("peers/b.toml", with_line("peers/b.toml", "addresses = []", "addresses"), "addresses", "length >= 1", ""),
    "address with a newline": ("peers/b.toml", with_line("peers/b.toml", 'addresses = ["a\\nb"]', "addresses"), "addresses", "is no address", ""),
    "duplicate key": ("qrep.toml", "[node]\nport = 1\nport = 2\n", "", "not TOML: Cannot overwrite", "twice"),
    "duplicate table": ("qrep.toml", "[node]\n[node]\n", "", "not TOML: Cannot declare", "twice"),
    "no TOML": ("qrep.toml", "[node]\nname = a b\n", "", "not TOML", "in quotes"),
    "raw NUL": ("qrep.toml", b"[node]\nname = \"\0\"\n", "", "not TOML", ""),
    "not UTF-8": ("qrep.toml", b"[node]\nname = \"\xff\"\n", "", "not UTF-8: byte 0xff", "save it"),
    "deep nesting": ("qrep.toml", "x = " + "[" * 100_000, "", "not TOML", ""),
    "10 MB": ("qrep.toml", "#" * 10_000_000, "", "larger than 1 MiB", "a page of text"),
    "no such volume": ("jobs/db.toml", with_line("jobs/db.toml", 'source = "dbb"', "source"), "source", "no volume called dbb", "did you mean db?"),
    "no such peer": ("volumes/db.toml", with_line("volumes/db.toml", 'accept = ["c"]', "accept"), "accept[0]", "no peer called c", "qrep peer add c"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_an_error_is_named_with_its_file_its_place_and_what_was_meant(put, case):
    name, text, place, message, hint = BAD[case]
    directory = put(files={name: text})
    problems = check(directory)
    assert len(problems) >= 1
    problem = next(found for found in problems if found.file == str(directory / name))
    assert problem.place == place and message in problem.message and hint in problem.hint
    assert len(str(problem)) < 1000
    if not case.startswith("no such"):  # what others say of it is checked by `check`, and by the agent when it is used
        kind, _, file = name.rpartition("/")
        with pytest.raises(ConfigError) as caught:
            Config(directory).load(kind, file[:-5]) if kind else Config(directory).node()
        assert str(directory / name) in caught.value.message and caught.value.exit_code == 2


def test_all_problems_of_all_files_are_found_at_once(put):
    files = {case[0]: case[1] for case in (BAD["10 MB"], BAD["fingerprint"], BAD["timeout"], BAD["undo space"])}
    assert {os.path.basename(problem.file) for problem in check(put(files=files))} == {"qrep.toml", "b.toml", "db.toml"}


@pytest.mark.parametrize("kind", ["symlink", "dangling", "pipe", "directory"])
def test_a_file_that_is_no_file_is_refused_and_never_hangs(put, kind):
    directory = put()
    path = directory / "volumes" / "db.toml"
    other = directory / "other.toml"
    path.rename(other)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(other if kind == "symlink" else "/nowhere")
    assert any(problem.file == str(path) for problem in check(directory))
    with pytest.raises(ConfigError):
        Config(directory).load("volumes", "db")


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:20])
@pytest.mark.parametrize("kind", config.KINDS)
def test_a_bad_name_reaches_no_file(tmp_path, kind, name):
    settings = Config(tmp_path)
    for use in (settings.load, settings.path, settings.remove):
        with pytest.raises(UsageError) as caught:
            use(kind, name)
        assert len(caught.value.message) < 200
    assert os.listdir(tmp_path) == []


def test_a_name_that_is_nearly_one_is_suggested(put):
    with pytest.raises(NotFound, match="no job called bd") as caught:
        Config(put()).load("jobs", "bd")
    assert "db" in caught.value.hint or "lists them" in caught.value.hint


def test_check_needs_no_agent_prints_every_error_and_ends_in_2(put, capsys, monkeypatch):
    directory = put(files={"qrep.toml": BAD["unknown key"][1]})
    monkeypatch.setenv("QREP_CONFIG_DIR", str(directory))
    answer = call(capsys, "check")
    assert (answer.code, answer.out) == (2, f"{directory}/qrep.toml:4: node.prot: unknown key\n  action: did you mean port?\n")
    assert call(capsys, "check", str(directory / "peers" / "b.toml")).code == 0
    assert '"place": "node.prot"' in call(capsys, "check", "--json").out


def test_who_may_change_a_file_or_read_the_key_is_looked_at_too(put, tmp_path):
    directory = put()
    os.chmod(directory / "qrep.toml", 0o646)
    keys = tmp_path / "state" / "keys"
    keys.mkdir(parents=True)
    (keys / "node.key").write_text("secret")
    os.chmod(keys / "node.key", 0o640)
    told = {os.path.basename(problem.file): (problem.message, problem.hint) for problem in check(directory, state_dir=tmp_path / "state")}
    assert told == {
        "qrep.toml": ("may be changed by others (mode 0646)", f"chmod go-w {directory}/qrep.toml"),
        "node.key": ("mode 0640: others may read the key of this node", f"chmod 600 {keys}/node.key"),
    }


@pytest.mark.root
def test_what_belongs_to_another_user_is_told_of_whatever_its_mode_is(put, tmp_path):
    script = tmp_path / "tell"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    directory = put(files={"qrep.toml": f'[[hooks]]\nevents = ["error"]\ncommand = ["{script}"]\n'})
    file = directory / "qrep.toml"
    assert check(directory) == []
    os.chown(script, 65534, 65534)
    (problem,) = check(directory)
    assert problem.message.endswith("belongs to user 65534, and runs as root") and problem.hint == f"chown root {script}"
    os.chown(script, 0, 0)
    os.chown(file, 65534, 65534)
    (problem,) = check(directory)
    assert problem.message == "belongs to user 65534, who may change it" and problem.hint == f"chown root {file}"


def test_a_hook_that_others_may_change_is_told_of_because_it_runs_as_root(put, tmp_path):
    command = tmp_path / "tell.sh"
    command.write_text("#!/bin/sh\n")
    os.chmod(command, 0o777)
    directory = put(files={"qrep.toml": f'[[hooks]]\nevents = ["error"]\ncommand = ["{command}"]\n'})
    (problem,) = check(directory)
    assert (problem.line, problem.place) == (3, "hooks[0].command") and "may be changed by others (mode 0777), and runs as root" in problem.message
