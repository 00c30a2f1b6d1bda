"""The man pages: as the commands are, and clean."""

import subprocess
from pathlib import Path

import click
import msgspec
import pytest
from machine import need_tool

from qrep import settings
from qrep.cli import manual
from qrep.cli.main import COMMANDS, HIDDEN, root

MAN = Path(__file__).resolve().parents[2] / "docs" / "man"
PAGES = manual.pages()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_commands_say(name):
    assert (MAN / name).read_text() == PAGES[name], "run: python -m qrep.cli.manual docs/man"


def test_there_is_no_page_of_something_that_is_gone():
    assert {path.name for path in MAN.iterdir()} == set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_formats_without_a_warning(name):
    need_tool("groff")
    done = subprocess.run(["groff", "-man", "-ww", "-z", "-Tutf8", "-K", "utf8", MAN / name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def every_command():
    """(what a person types, the command) of all of them."""
    for name in COMMANDS:
        if name not in HIDDEN:
            command = root.get_command(None, name)
            yield f"qrep {name}", command
            if isinstance(command, click.Group):
                yield from ((f"qrep {name} {verb}", one) for verb, one in command.commands.items() if not one.hidden)


@pytest.mark.parametrize(("typed", "command"), list(every_command()), ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_says_what_it_does_and_so_does_every_option(typed, command):
    assert command.help and command.help.rstrip().endswith("."), typed
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{typed} {option.opts}"
    page = PAGES[f"qrep-{typed.split()[1]}.1" if typed.split()[1] in manual.OWN_PAGE else "qrep.1"]
    assert f"\\fB{manual.escape(typed)}\\fR" in page or f".SS {manual.escape(typed.split()[1])}" in page


def test_every_exit_code_of_the_contract_is_in_the_page():
    from qrep.errors import BY_EXIT_CODE

    assert {code for code, _text in manual.EXIT_CODES} == {0, *BY_EXIT_CODE}


def test_every_key_of_every_file_is_in_its_page_and_none_that_is_gone():
    from qrep.cli.manualconfig import FILES, TEXTS

    for cls in (cls for _name, _about, sections in FILES for _title, cls in sections):
        assert set(TEXTS[cls.__name__]) == {field.encode_name for field in msgspec.structs.fields(cls)}, cls.__name__
    shown = {cls.__name__ for _name, _about, sections in FILES for _title, cls in sections}
    assert shown == set(TEXTS) == {name for name, cls in vars(settings).items() if isinstance(cls, type) and issubclass(cls, settings._Object)} - {"_Object", "Node"}
