"""Where in a TOML file a key stands: tomllib gives values without positions. For texts that tomllib has read; anything else gives some line."""

import re

_KEY = re.compile(r"""\s*(?:([A-Za-z0-9_-]+)|"((?:[^"\\]|\\.)*)"|'([^']*)')\s*(\.|=|\]|$)""")


def lines(text):
    """{path: line from 1}. path: keys, and indices of arrays of tables; () is line 1. A key in an inline table has the line it is on."""
    found, table, counts = {(): 1}, (), {}
    number, position = 1, 0
    while position < len(text):
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        line = text[position:end].strip()
        if line.startswith("["):
            table = _table(line, counts)
            for length in range(1, len(table) + 1):
                found.setdefault(table[:length], number)
        elif line and not line.startswith("#"):
            key, begin = _keys(text, position, end)
            if key:
                for length in range(1, len(key) + 1):
                    found.setdefault((*table, *key[:length]), number)
                after = _value_end(text, begin)
                _inline(text[begin:after], (*table, *key), number, found)
                number += text.count("\n", position, after)
                position = after
                end = text.find("\n", position)
                end = len(text) if end < 0 else end
        position, number = end + 1, number + 1
    return found


def line_of(found, path):
    """The line of a path, or of what it stands in."""
    while path not in found:
        path = path[:-1]
    return found[path]


def path_of(place):
    """The path of a place as people read it, such as hooks[0].events."""
    return tuple(int(index) if index else key for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", place))


def _keys(text, position, end):
    """(keys of a dotted key, where its value begins)."""
    keys = []
    while True:
        match = _KEY.match(text, position, end)
        if not match:
            return (), end
        keys.append(next(part for part in match.groups()[:3] if part is not None))
        position = match.end()
        if match[4] != ".":
            return tuple(keys), position


def _table(line, counts):
    """The path of a [table] or [[array of tables]], which is counted."""
    many = line.startswith("[[")
    keys = []
    position = 2 if many else 1
    while match := _KEY.match(line, position):
        keys.append(next(part for part in match.groups()[:3] if part is not None))
        position = match.end()
        if match[4] != ".":
            break
    path = ()
    for number, key in enumerate(keys):
        path = (*path, key)
        if many and number == len(keys) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:  # an element of an array: the last one that was begun
            path = (*path, counts[path])
    return path


def _string_end(text, position):
    """Behind the string that begins at `position`."""
    quote = text[position]
    if text.startswith(quote * 3, position):
        end = text.find(quote * 3, position + 3)
        while quote == '"' and end > 0 and _escaped(text, end):
            end = text.find(quote * 3, end + 1)
        if end < 0:
            return len(text)
        end += 3
        while text.startswith(quote, end):  # a string may end in quotes of its own
            end += 1
        return end
    end = position + 1
    while end < len(text) and text[end] != quote:
        end += 2 if quote == '"' and text[end] == "\\" else 1
    return end + 1


def _escaped(text, position):
    count = 0
    while text[position - count - 1] == "\\":
        count += 1
    return count % 2 == 1


def _value_end(text, position):
    """The end of the line on which a value ends."""
    depth = 0
    while position < len(text):
        char = text[position]
        if char in "\"'":
            position = _string_end(text, position)
            continue
        if char == "#":
            position = text.find("\n", position)
            if position < 0:
                return len(text)
            continue
        if char == "\n" and depth == 0:
            return position
        depth += (char in "[{") - (char in "]}")
        position += 1
    return len(text)


def _inline(value, path, number, found):
    """Keys of the inline tables in a value, and the elements of its arrays."""
    stack, position = [], 0  # [path, index or None for a table]
    while position < len(value):
        char = value[position]
        if char == "#":
            position = value.find("\n", position)
            if position < 0:
                return
        elif char in "[{":
            inner = path if not stack else _element(stack)
            stack.append([inner, 0 if char == "[" else None])
            found.setdefault(inner, number + value.count("\n", 0, position))
        elif char in "]}":
            if not stack:
                return
            stack.pop()
        elif char == "," and stack and stack[-1][1] is not None:
            stack[-1][1] += 1
        elif not char.isspace() and char != "," and stack:
            here = number + value.count("\n", 0, position)
            if stack[-1][1] is not None:
                found.setdefault(_element(stack), here)
                position = _scalar_end(value, position)
            else:
                key, begin = _keys(value, position, len(value))
                if not key:
                    return
                found.setdefault((*stack[-1][0], *key), here)
                stack[-1].append(key)
                begin += len(value[begin:]) - len(value[begin:].lstrip())
                position = begin if value[begin : begin + 1] in ("[", "{") else _scalar_end(value, begin)
                stack[-1][2:] = [key]
            continue
        elif char in "\"'":
            position = _string_end(value, position)
            continue
        position += 1


def _element(stack):
    """The path of what comes next in the innermost array or table."""
    path, index, *key = stack[-1]
    return (*path, index) if index is not None else (*path, *(key[0] if key else ()))


def _scalar_end(value, position):
    if value[position : position + 1] in ('"', "'"):
        return _string_end(value, position)
    match = re.compile(r"[^,\]}\n#]+").match(value, position)
    return match.end() if match else position + 1
