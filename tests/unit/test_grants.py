"""Who may write where: two copies, of which the newer one that is what was written holds; and nobody may if none is."""

import errno
import os
import subprocess
import sys

import pytest

from qrep import store
from qrep.daemon.grants import NAMES, Grants, GrantsError, problems

PAIR = {"peer": "a", "fingerprint": "SHA256:00", "job": "db", "source": "db", "volume": "db", "size": 4096, "sync_points": 7}


@pytest.fixture
def directory(tmp_path):
    tmp_path.chmod(0o700)
    with store.Directory(tmp_path) as directory:
        yield directory


@pytest.fixture
def state(directory, tmp_path):
    """Copies after each of three changes: {name: bytes} each; the last one dropped the pair "old"."""
    grants, states = Grants(directory), []
    for change in (lambda: grants.add_pair("old", **PAIR), lambda: grants.add_pair("new", **PAIR | {"volume": "web"}), lambda: grants.drop_pair("old")):
        change()
        states.append({name: (tmp_path / name).read_bytes() for name in NAMES})
    return states


def ids(grants):
    return [pair["job_id"] for pair in grants.pairs()]


def test_what_was_noted_is_there_after_a_restart(directory):
    grants = Grants(directory)
    grants.add_pair("j", **PAIR, keep="1d")
    grants.add_once("o", peer="", fingerprint="", volume_id="v")
    grants.add_pair("o", **PAIR | {"volume": "web"})
    grants.finish_once("o", "g", 5)
    grants.set_pair_retention("j", 3, "")
    again = Grants(directory)
    assert again.healed == "" and again.pairs() == grants.pairs() and again.all_once() == grants.all_once()
    assert again.pair("j")["sync_points"] == 3 and again.pair("o") is None and again.once("o")["counter"] == 5
    assert again.pairs("web") == [] and ids(again) == ["j"]


def test_a_row_that_was_asked_for_is_a_copy(directory):
    grants = Grants(directory)
    grants.add_pair("j", **PAIR)
    grants.pair("j")["peer"] = grants.pairs()[0]["peer"] = "somebody"
    assert grants.pair("j")["peer"] == "a"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["flip", "cut", "gone", "older", "oldest", "empty"])
def test_one_copy_that_is_wrong_costs_nothing_and_is_made_right(directory, state, tmp_path, name, how):
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes({"flip": data, "cut": data[:300], "gone": b"", "older": state[1][name], "oldest": state[0][name], "empty": b""}[how])
    if how == "gone":
        path.unlink()
    grants = Grants(directory)
    assert ids(grants) == ["new"]
    assert grants.healed or how == "older", "one change apart is what a crash leaves"
    assert Grants(directory).healed == "" and len({(tmp_path / each).read_bytes() for each in NAMES}) == 1


def test_two_copies_that_are_wrong_let_nobody_write_and_are_left_as_they_are(directory, state, tmp_path):
    for name in NAMES:
        (tmp_path / name).write_bytes(state[2][name][:-1])
    with pytest.raises(GrantsError, match="pairs.a.*pairs.b") as raised:
        Grants(directory)
    assert "put pairs.a or pairs.b back" in raised.value.hint and raised.value.exit_code == 1
    assert all((tmp_path / name).read_bytes() == state[2][name][:-1] for name in NAMES)


def test_another_format_is_refused_and_left_as_it_is(directory, tmp_path):
    from qrep import sealed

    (tmp_path / NAMES[0]).write_bytes(sealed.dump({"format": 2, "more": []}))
    with pytest.raises(GrantsError, match="has format 2; this qrep reads 1"):
        Grants(directory)


@pytest.mark.parametrize("content", [[], {"format": 1}, {"format": 1, "sequence": 1, "pairs": [{"job_id": "x"}], "once": []}, "text", None])
def test_a_file_with_a_digest_that_is_of_something_else_is_damaged(directory, tmp_path, content):
    from qrep import sealed

    (tmp_path / NAMES[0]).write_bytes(sealed.dump(content))
    with pytest.raises(GrantsError, match="cannot be told"):
        Grants(directory)


def test_a_pair_that_cannot_be_remembered_is_an_error_with_a_way_out_and_nothing_has_changed(directory, monkeypatch):
    grants = Grants(directory)

    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(directory, "write", full)
    with pytest.raises(GrantsError, match="No space left") as raised:
        grants.add_pair("j", **PAIR)
    assert "make room" in raised.value.hint and raised.value.exit_code == 1
    assert grants.pairs() == []


def test_a_start_on_a_full_disk_goes_on_with_the_one_copy_that_is_good(directory, state, tmp_path, monkeypatch, caplog):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / NAMES[0]).write_bytes(state[2][NAMES[0]][:-1])
    with monkeypatch.context() as patch:
        patch.setattr(directory, "write", full)
        assert ids(Grants(directory)) == ["new"] and "No space left" in caplog.text and "pairs.b holds alone" in caplog.text
    assert "pairs.a" in Grants(directory).healed and problems(tmp_path) == []
    for name in NAMES:
        (tmp_path / name).unlink()
    monkeypatch.setattr(directory, "write", full)
    with pytest.raises(GrantsError, match="No space left"):
        Grants(directory)


def test_a_change_that_only_the_first_copy_took_stands(directory, monkeypatch, caplog):
    grants, write = Grants(directory), directory.write

    def one(name, *parts):
        if name == NAMES[1]:
            raise OSError(errno.EIO, "Input/output error")
        write(name, *parts)

    monkeypatch.setattr(directory, "write", one)
    grants.add_pair("j", **PAIR)
    assert "stands in pairs.a alone" in caplog.text
    monkeypatch.undo()
    assert ids(grants) == ids(Grants(directory)) == ["j"]


@pytest.mark.parametrize("passage", [1, 2])
def test_a_change_stands_from_the_first_copy_on_whenever_the_agent_dies(directory, tmp_path, passage):
    grants = Grants(directory)
    grants.add_pair("old", **PAIR)
    program = "import sys; from qrep import store; from qrep.daemon.grants import Grants; Grants(store.Directory(sys.argv[1])).drop_pair('old')"
    environment = {**os.environ, "QREP_CRASH": f"pairs-copy-durable:{passage}", "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program, tmp_path], env=environment, check=False).returncode == -9
    assert ids(Grants(directory)) == []
    assert Grants(directory).healed == ""


def test_check_names_the_copy_that_is_wrong_and_changes_nothing(directory, state, tmp_path):
    assert problems(tmp_path) == [] == problems(tmp_path / "nowhere")
    (tmp_path / NAMES[1]).write_bytes(state[2][NAMES[1]][:-2])
    [problem] = problems(tmp_path)
    assert problem.file == str(tmp_path / NAMES[1]) and "not what was written" in problem.message and "the other one" in problem.hint
    (tmp_path / NAMES[0]).write_bytes(b"")
    assert [each.file for each in problems(tmp_path)] == [str(tmp_path / name) for name in NAMES]
    assert "does not start" in problems(tmp_path)[0].hint and (tmp_path / NAMES[0]).read_bytes() == b""


def test_whether_there_were_none_is_known(directory, tmp_path):
    assert Grants(directory).made_new and not Grants(directory).made_new
    (tmp_path / NAMES[1]).unlink()
    assert not Grants(directory).made_new
    for name in NAMES:
        (tmp_path / name).unlink()
    assert Grants(directory).made_new


def test_more_than_the_next_start_would_read_is_refused(directory, monkeypatch):
    grants = Grants(directory)
    grants.add_pair("j", **PAIR)
    monkeypatch.setattr("qrep.daemon.grants.SIZE_MAX", 1000)
    with pytest.raises(GrantsError, match="more pairs than"):
        for number in range(20):
            grants.add_pair(f"k{number}", **PAIR)
    assert "j" in ids(grants) and ids(grants) == ids(Grants(directory))
