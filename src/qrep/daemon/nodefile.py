"""Changing one value of qrep.toml: a person wrote that file, so every other line of it stays as it is, comments included."""

import os
import re
import tomllib

from qrep import config, store
from qrep.errors import ConfigError


def set_value(settings, section, key, value, *, dry_run=False):
    """Let `key` of `section` be the string `value`. settings: config.Config. Raises ConfigError when the file is written in a way that this cannot change."""
    path = os.path.join(settings.directory, config.NODE_FILE)
    with store.Directory(settings.directory) as directory:
        try:
            before = (directory.read(config.NODE_FILE, config.FILE_MAX) or b"").decode()
            wanted = tomllib.loads(before)
        except ValueError as error:  # not TOML, or not even text
            raise ConfigError(f"{path}: {error}", hint="qrep check shows every error") from error
        wanted.setdefault(section, {})[key] = value
        after = _changed(before, section, key, value)
        if _parsed(after) != wanted:
            raise ConfigError(f"{path}: [{section}] is written in a way that cannot be changed here", hint=f'write {key} = "{value}" there yourself')
        if not dry_run:
            directory.write(config.NODE_FILE, after.encode())


def _parsed(text):
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


def _changed(text, section, key, value):
    lines = text.splitlines()
    line = f'{key} = "{value}"'
    heads = [number for number, each in enumerate(lines) if re.match(rf"\s*\[\s*{section}\s*\]", each)]
    if not heads:
        return "\n".join([*lines, *([""] if lines else []), f"[{section}]", line]) + "\n"
    end = next((number for number in range(heads[0] + 1, len(lines)) if lines[number].lstrip().startswith("[")), len(lines))
    for number in range(heads[0] + 1, end):
        if re.match(rf"\s*{key}\s*=", lines[number]):
            comment = re.search(r"\s*#.*$", lines[number])
            lines[number] = line + (comment[0] if comment else "")
            break
    else:
        lines.insert(heads[0] + 1, line)
    return "\n".join(lines) + "\n"
