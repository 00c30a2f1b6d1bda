"""The line of every key of a TOML file, however it is written."""

import tomllib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some

from qrep.tomlplaces import line_of, lines, path_of

CASES = [
    ('a = 1\n# b = 2\n\nb = "x"  # a = 3\n', {("a",): 1, ("b",): 4}),
    ("[node]\nport = 1\n[limits]\n\njobs = 2\n", {("node",): 1, ("node", "port"): 2, ("limits",): 3, ("limits", "jobs"): 5}),
    ("[[hooks]]\nx = 1\n[[hooks]]\n\nx = 2\n", {("hooks", 0, "x"): 2, ("hooks", 1): 3, ("hooks", 1, "x"): 5}),
    ("[[a]]\n[[a.b]]\nc = 1\n[[a.b]]\nc = 2\n[[a]]\n[[a.b]]\nc = 3\n", {("a", 0, "b", 1, "c"): 5, ("a", 1): 6, ("a", 1, "b", 0): 7}),
    ('a = """\nb = 1\n\\"""\n"""\nc = 2\n', {("a",): 1, ("c",): 5}),
    ("a = '''\nb = 1 '''''\nc = 2\n", {("a",): 1, ("c",): 3}),
    ('a = [\n  "x",  # ]\n  "]",\n\n  "y"]\nb = 1\n', {("a",): 1, ("a", 0): 2, ("a", 1): 3, ("a", 2): 5, ("b",): 6}),
    ('a.b = 1\n"c d".e = 2\n\'f\' = 3\n', {("a",): 1, ("a", "b"): 1, ("c d", "e"): 2, ("f",): 3}),
    ("h = [ {x = 1, y = [1, 2]},\n  {x = 2,  y = '#'} ]\nz = 1\n", {("h", 0, "x"): 1, ("h", 0, "y"): 1, ("h", 1, "x"): 2, ("h", 1, "y"): 2, ("z",): 3}),
    ('a = "\\"]" \nb = \'\\\'\nc = 1979-05-27T07:32:00Z\nd = 1', {("b",): 2, ("c",): 3, ("d",): 4}),
    ("a = {b = {c = 1}}\n[ x . y ]\nz=1\n", {("a", "b", "c"): 1, ("x", "y"): 2, ("x", "y", "z"): 3}),
    ("a = 1\r\n\r\nb = 2\r\n", {("a",): 1, ("b",): 3}),
    ("", {}),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_the_line_of_a_key(text, expected):
    tomllib.loads(text)
    found = lines(text)
    assert {path: found[path] for path in expected} == expected


def test_what_has_no_line_has_that_of_what_it_stands_in():
    found = lines("\n[node]\nport = 1\n")
    assert line_of(found, ("node", "port", "deeper")) == 3 and line_of(found, ("node", "missing")) == 2 and line_of(found, ("gone",)) == 1


def test_a_place_is_read_as_a_path():
    assert path_of("hooks[12].events[0]") == ("hooks", 12, "events", 0) and path_of("") == ()


KEYS = some.from_regex(r"\A[a-z]{1,4}\Z")
SCALARS = some.one_of(some.integers(), some.booleans(), some.text(alphabet='ab"\\\'\n#[]{},=é', max_size=8))
VALUES = some.recursive(SCALARS, lambda inner: some.one_of(some.lists(inner, max_size=3), some.dictionaries(KEYS, inner, max_size=3)), max_leaves=8)


@settings(max_examples=60)
@given(some.dictionaries(KEYS, VALUES, max_size=4))
def test_every_key_of_any_file_is_found_on_the_line_where_it_is_written(value):
    import tomli_w

    text = tomli_w.dumps(value)
    found, written = lines(text), text.split("\n")

    def look(value, path):
        if path:
            name = next(part for part in reversed(path) if isinstance(part, str))
            assert path in found or isinstance(path[-1], int), (path, text)
            if path in found and isinstance(path[-1], str):
                assert name in written[found[path] - 1], (path, text)
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
            look(inner, (*path, key))

    look(value, ())


@settings(max_examples=60)
@example("1={1")
@given(some.text(alphabet="ab=[]{}\"'#.,\n \\1", max_size=60))
def test_any_text_at_all_ends(text):
    assert lines(text)[()] == 1
