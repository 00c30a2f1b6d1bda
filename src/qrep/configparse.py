"""One configuration file: its object, or every problem in it, each with its line, its key and what was probably meant."""

import difflib
import re
import tomllib
import typing

import msgspec

from qrep import tomlplaces
from qrep.settings import bad_values

BARE_WORD = re.compile(r"=\s*[A-Za-z/_][^\"'#\[\]{}]*$")


class Problem(msgspec.Struct):
    """One error in one file. line: from 1, None where it is not of one line. place: the key, as in hooks[0].command; "" for the file."""

    file: str
    place: str
    message: str
    hint: str = ""
    line: int | None = None
    missing: str = ""  # the key that is not there

    def as_dict(self):
        return {name: getattr(self, name) for name in ("file", "line", "place", "message", "hint")}

    def one_line(self):
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.place + ': ' if self.place else ''}{self.message}"

    def __str__(self):
        return self.one_line() + (f"\n  action: {self.hint}" if self.hint else "")


def parse(data, cls, path):
    """(object, []) or (None, problems) of the bytes of one file."""
    value, problems = look(data, cls, path)
    return (None, problems) if problems else (value, [])


def look(data, cls, path):
    """(object, problems): whatever is wrong is stood in for, so that the rest can be looked at further; None where nothing could be read."""
    try:
        text = data.decode()
    except UnicodeDecodeError as err:
        return None, [Problem(path, "", f"not UTF-8: byte {data[err.start]:#04x}", "save it as UTF-8", data.count(b"\n", 0, err.start) + 1)]
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        return None, [_not_toml(text, err, path)]
    except (RecursionError, ValueError) as err:  # tables in tables in tables; an integer of 5000 digits
        return None, [Problem(path, "", f"not TOML that anyone means: {str(err) or 'nested too deeply'}")]
    found = tomlplaces.lines(text)
    reader = _Reader(path, lambda place: tomlplaces.line_of(found, tomlplaces.path_of(place)) if place else None)
    return reader.read(values, cls)


def _not_toml(text, err, path):
    match = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)", str(err))
    number = int(match[1]) if match and match[1] else text.rstrip("\n").count("\n") + 1
    message = str(err).replace(match[0], "") if match else str(err)
    lines = text.split("\n")
    return Problem(path, "", f"not TOML: {message}", _syntax_hint(message, lines[number - 1] if number <= len(lines) else ""), number)


def _syntax_hint(message, line):
    """What was probably meant by a line that is not TOML."""
    if "Cannot overwrite" in message:
        return "this key is there twice; remove one"
    if "Cannot declare" in message:
        return "this section is there twice; put their keys together"
    if "=" not in line and ":" in line:
        return "write KEY = VALUE, with =, not :"
    if "Expected '='" in message:
        return "write KEY = VALUE"
    if BARE_WORD.search(line):
        return "text goes in quotes: " + re.sub(r"=\s*(.*?)\s*$", lambda match: f'= "{match[1]}"', line.strip())[:80]
    if "escape" in message.lower() or "\\" in line:
        return "write text with backslashes in 'single quotes'"
    if line.count('"') % 2 or "Illegal character" in message:
        return "a quote is missing, or a text goes over the end of its line"
    return ""


def is_told(place, problems):
    """Whether something was told of a place, or of what it stands in: its value is a stand-in then, and none of the person's business."""
    return any(place == told or place.startswith((f"{told}.", f"{told}[")) for problem in problems for told in (problem.place, problem.missing) if told)


class _Reader:
    def __init__(self, path, line_of):
        self.path, self._line_of = path, line_of
        self.problems = []

    def _problem(self, place, message, hint=""):
        self.problems.append(Problem(self.path, place, message, hint, self._line_of(place)))

    def read(self, values, cls):
        good = self._struct(values, cls, "")
        for key, error in bad_values(good):
            if not is_told(key, self.problems):
                self._problem(key, error.message, error.hint)
        self.problems.sort(key=lambda problem: problem.line or 0)
        return good, self.problems

    def _struct(self, values, cls, place):
        """An object of `cls`; what is wrong in `values` is told and stood in for, so that everything else can be looked at."""
        given, below = {}, f"{place}." if place else ""
        fields = {field.encode_name: field for field in msgspec.structs.fields(cls)}
        for key in values:
            if key not in fields:
                near = difflib.get_close_matches(key, fields, 1)
                self._problem(f"{below}{key}", "unknown key", f"did you mean {near[0]}?" if near else f"known: {', '.join(fields)}")
        for name, field in fields.items():
            if name in values:
                ok, value = self._value(values[name], field.type, f"{below}{name}")
                if ok or field.required:
                    given[field.name] = value
            elif field.required:
                self._problem(place, f"missing required field `{name}`")
                self.problems[-1].missing = f"{below}{name}"
                given[field.name] = _stand_in(field.type)
        return cls(**given)

    def _value(self, value, kind, place):
        """(whether it is one of `kind`, it or something that is)."""
        struct = _struct_of(kind)
        if struct and isinstance(value, dict):
            return True, self._struct(value, struct, place)
        items = _items_of(kind)
        if items and isinstance(value, list):
            found = [self._value(item, items, f"{place}[{number}]") for number, item in enumerate(value)]
            if not all(ok for ok, _item in found):
                return False, [item for _ok, item in found]
            if _struct_of(items):
                return True, [item for _ok, item in found]
        try:
            return True, msgspec.convert(value, kind)
        except msgspec.ValidationError as err:
            message, _, inner = str(err).partition(" - at `$")
            self._problem(place + inner.rstrip("`"), *_meaning(message, value, kind))
            return False, _stand_in(kind)


def _plain(kind):
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def _struct_of(kind):
    kind = _plain(kind)
    return kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else None


def _items_of(kind):
    kind = _plain(kind)
    return typing.get_args(kind)[0] if typing.get_origin(kind) is list else None


def _meaning(message, value, kind):
    """(message, hint) of a value that is not of its type."""
    plain = _plain(kind)
    if typing.get_origin(plain) is typing.Literal:
        words = typing.get_args(plain)
        near = difflib.get_close_matches(str(value), words, 1)
        return f"{_shown(value)} is none of {', '.join(words)}", f"did you mean {near[0]}?" if near else ""
    if "matching regex" in message:
        hint = "32 hexadecimal digits, as the command wrote them" if "0-9a-f]{32}" in message else "copy it as qrep shows it"
        return f"{_shown(value)} has not the form that is needed here", hint
    if plain is int and isinstance(value, str) and value.lstrip("-").isdigit():
        return message, f"a number goes without quotes: {value}"
    if plain is str and isinstance(value, int | float) and not isinstance(value, bool):
        return message, f'text goes in quotes: "{value}"'
    if typing.get_origin(plain) is list and isinstance(value, str):
        return message, f'a list goes in brackets: ["{value[:60]}"]'
    if _struct_of(plain):
        return message, "this is a section: write it as [NAME] with its keys below"
    return message, ""


def _shown(value):
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _stand_in(kind):
    """Some value of a type, which nobody sees."""
    words = typing.get_args(_plain(kind)) if typing.get_origin(_plain(kind)) is typing.Literal else ()
    for value in (*words, "0" * 32, "SHA256:" + ":".join(["00"] * 32), 4096, 8192, 1, False, 0.5, ["x"], [], {}):
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError:
            continue
    raise AssertionError(f"no stand-in for {kind}")
