"""The memory of the snapshot that a source keeps: which one it is after each event, and that none is lost."""

import json
from itertools import permutations

import pytest

from qrep import sealed
from qrep.source.kept import NAME, Kept, kept

ONE, TWO, THREE = (bytes([number]) * 16 for number in (1, 2, 3))
MAP = bytes([7]) * 32


@pytest.fixture
def memory(tmp_path):
    """A Kept, and the tokens that it gave back."""

    class Memory(Kept):
        def __init__(self):
            self.released = []
            super().__init__(tmp_path / "run", self.released.append)

        def reopened(self):
            self.close()
            return Memory()

    return Memory()


def committed(memory, tag, token):
    memory.remember(tag, token, True, 0, MAP)
    memory.give_back(token, tag)


def test_a_committed_snapshot_is_kept_and_the_one_before_it_given_back(memory, tmp_path):
    committed(memory, ONE, "a")
    assert memory.released == [] and kept(tmp_path / "run") == (ONE, "a")
    committed(memory, TWO, "b")
    assert memory.released == ["a"] and kept(tmp_path / "run") == (TWO, "b")
    assert memory.of(TWO).token == "b" and memory.of(ONE) is None


def test_a_snapshot_whose_generation_was_not_committed_is_given_back(memory, tmp_path):
    committed(memory, ONE, "a")
    memory.remember(TWO, "b", True, 0, MAP)
    memory.give_back("b", ONE)
    assert memory.released == ["b"] and memory.tokens == ["a"] and kept(tmp_path / "run") == (ONE, "a")


def test_a_commit_that_was_not_heard_of_is_settled_by_the_map_at_the_next_start(memory):
    committed(memory, ONE, "a")
    memory.remember(TWO, "b", True, 7, MAP)
    memory = memory.reopened()
    memory.begin(True, ONE, TWO, "b")  # not folded yet: nothing is decided
    assert sorted(memory.tokens) == ["a", "b"] and memory.released == []
    memory.begin(True, TWO, None, "")
    assert memory.released == ["a"] and memory.of(TWO).cursor == 7


def test_what_the_run_record_still_needs_is_not_given_back_at_the_start(memory):
    memory.remember(TWO, "b", True, 0, MAP)
    memory.begin(True, ONE, None, "b")
    assert memory.released == []
    memory.begin(True, ONE, None, "")
    assert memory.released == ["b"] and memory.tokens == []


def test_no_snapshot_is_kept_when_none_is_wanted(memory, tmp_path):
    committed(memory, ONE, "a")
    memory.remember(TWO, "b", True, 0, MAP)
    memory.begin(False, ONE, TWO, "b")
    assert memory.released == ["a"] and memory.tokens == [] and not (tmp_path / "run" / NAME).exists()


def test_a_release_that_fails_is_tried_again(memory):
    committed(memory, ONE, "a")
    memory.remember(TWO, "b", True, 0, MAP)

    def refuse(token):
        raise OSError(5, token)

    memory._release = refuse
    with pytest.raises(OSError):
        memory.give_back("b", TWO)
    memory._release = memory.released.append
    memory.begin(True, TWO, None, "")
    assert memory.released == ["a"] and memory.tokens == ["b"]


def test_distrust_is_durable_and_ends_with_the_next_entry_that_is_trusted(memory):
    committed(memory, ONE, "a")
    memory.distrust()
    memory = memory.reopened()
    assert not memory.of(ONE).trusted
    committed(memory, TWO, "b")
    assert memory.of(TWO).trusted


@pytest.mark.parametrize("order", list(permutations("abc", 3)), ids="".join)
def test_of_all_snapshots_that_were_remembered_only_the_last_is_left(memory, order):
    for tag, token in zip((ONE, TWO, THREE), order, strict=True):
        committed(memory, tag, token)
    assert memory.tokens == [order[-1]] and memory.released == list(order[:-1])


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"kept": {}, "next": null}', '{"kept": {"tag": "00", "token": "a", "trusted": true, "cursor": 0, "map": "00"}, "next": null}',
     json.dumps({"kept": {"tag": "11" * 16, "token": "a", "trusted": True, "cursor": 0}, "next": None}),
     json.dumps({"kept": {"tag": "11" * 16, "token": "", "trusted": True, "cursor": 0, "map": "00" * 32}, "next": None}),
     json.dumps({"kept": {"tag": "11" * 16, "token": "a", "trusted": 1, "cursor": 0, "map": "00" * 32}, "next": None}),
     json.dumps({"kept": {"tag": "11" * 16, "token": "a", "trusted": True, "cursor": -1, "map": "00" * 32}, "next": None})],
)  # fmt: skip
def test_a_damaged_file_is_as_none(memory, tmp_path, text):
    fields = json.loads(text) if text else None
    (tmp_path / "run" / NAME).write_bytes(b"" if fields is None else sealed.dump(fields))
    assert memory.reopened().tokens == [] and kept(tmp_path / "run") is None
