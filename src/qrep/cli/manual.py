"""The man pages, made from the commands themselves: `python -m qrep.cli.manual docs/man`. A test holds them up to date.

qrep(1) has the everyday and system commands; each noun has a page of its own, and so has `qrep copy`.
"""

import os
import sys

import click

from qrep import __version__
from qrep.cli.main import COMMANDS, SECTIONS, root
from qrep.cli.manualconfig import page as config_page
from qrep.cli.manualtext import ADDRESSES, ENVIRONMENT, EXAMPLES, EXIT_CODES, FILES, NOTES, SERVICE, SIGNALS
from qrep.cli.roff import escape

DATE = "2026-11-22"
OWN_PAGE = ("volume", "job", "clone", "path", "connection", "shape", "snapshot", "attach", "peer", "copy", "events")


def _synopsis(name, command):
    pieces = [f"\\fB{escape(name)}\\fR"]
    context = click.Context(command, info_name=name)
    pieces += [f"\\fI{escape(piece)}\\fR" for piece in command.collect_usage_pieces(context)]
    return " ".join(pieces)


def _option(option):
    names = ", ".join(f"\\fB{escape(name)}\\fR" for name in (*option.opts, *option.secondary_opts))
    if not option.is_flag:
        kind = option.metavar or ("|".join(option.type.choices) if isinstance(option.type, click.Choice) else option.type.name.upper())
        names += f" \\fI{escape(kind)}\\fR"
    text = option.help or ""
    if option.show_default is True and option.default is not None:
        text = f"{text.rstrip('.')} (default {option.default})."
    return f".TP\n{names}\n{escape(text)}"


def _options(command):
    return [_option(option) for option in command.params if isinstance(option, click.Option) and not option.hidden]


def _paragraphs(text):
    return [f".PP\n{escape(' '.join(part.split()))}" for part in text.strip().split("\n\n") if part.strip()]


def _command(name, command):
    return [f".SS {escape(name)}", f".nf\n{_synopsis(name, command)}\n.fi", *_paragraphs(command.help or ""), *_options(command)]


def _list(title, rows):
    return [f".SH {title}", *(f".TP\n\\fB{escape(str(name))}\\fR\n{escape(text)}" for name, text in rows)]


def _examples(name):
    lines = [".SH EXAMPLES"]
    for text, commands in EXAMPLES[name]:
        lines.append(f".PP\n{escape(text)}\n.PP\n.RS 4\n.nf")
        lines += [escape(command) for command in commands]
        lines.append(".fi\n.RE")
    return lines


def _header(name, about):
    title = escape(name.upper())
    return [f'.TH {title} 1 "{DATE}" "qrep {__version__}" "qrep manual"', f".SH NAME\n{escape(name)} \\- {escape(about.rstrip('.'))}"]


def _see_also(*others):
    return [".SH SEE ALSO", ".BR " + " ,\n.BR ".join(f"{escape(other)} (1)" for other in others)]


def main_page():
    lines = _header("qrep", "replicate Linux block devices: full once, then only what changed")
    lines += [".SH SYNOPSIS", f".nf\n{_synopsis('qrep', root)}\n.fi", ".SH DESCRIPTION", *_paragraphs(root.help)]
    lines += _paragraphs(
        "A noun alone lists. Results go to standard output, progress and messages to standard error. Long work runs in the agent: "
        "with --wait it is followed, and Ctrl-C leaves it running. What changes data asks on a terminal, and is refused without one "
        "unless -y is given. Every message that something is not fine ends in a line that says what to do.\n\n"
        "Sizes are bytes: 50M and 50MiB are 50 * 2^20, 50MB is 50 * 10^6; 400Mbit is a rate in bits."
    )
    lines += [".SH OPTIONS", *_options(root), *_list("ADDRESSES", ADDRESSES), ".SH COMMANDS"]
    for _title, names in SECTIONS:
        for name in names:
            if name in OWN_PAGE:
                lines += [f".SS {escape(name)}", f"{escape(COMMANDS[name][2])} See\n.BR qrep\\-{name} (1)."]
            else:
                lines += _command(name, root.get_command(None, name))
    lines += [*_list("EXIT STATUS", EXIT_CODES), *_list("ENVIRONMENT", ENVIRONMENT), *_list("FILES", FILES)]
    lines += [*_list("SIGNALS", SIGNALS), ".SH SERVICE", *(f".PP\n{escape(text)}" for text in SERVICE), *_examples("qrep")]
    return [*lines, *_see_also(*(f"qrep-{name}" for name in OWN_PAGE), "b3sum"), ".PP\n.BR qrep.toml (5)"]


def page_of(name):
    command = root.get_command(None, name)
    full = f"qrep {name}"
    lines = _header(f"qrep-{name}", COMMANDS[name][2][0].lower() + COMMANDS[name][2][1:])
    if isinstance(command, click.Group):
        verbs = [(f"{full} {verb}", command.commands[verb]) for verb in command.commands if not command.commands[verb].hidden]
        lines += [".SH SYNOPSIS", ".nf", f"\\fB{escape(full)}\\fR", *(_synopsis(*verb) for verb in verbs), ".fi"]
        lines += [".SH DESCRIPTION", *_paragraphs(command.help), ".SH COMMANDS"]
        for verb in verbs:
            lines += _command(*verb)
    else:
        lines += [".SH SYNOPSIS", f".nf\n{_synopsis(full, command)}\n.fi", ".SH DESCRIPTION", *_paragraphs(command.help)]
        lines += [".SH OPTIONS", *_options(command)]
    if name in NOTES:
        lines += [".SH NOTES", *(f".PP\n{escape(text)}" for text in NOTES[name])]
    lines += [*_list("EXIT STATUS", EXIT_CODES), *_examples(name)]
    return lines + _see_also("qrep", *(f"qrep-{other}" for other in OWN_PAGE if other != name))


def pages():
    """{file name: text}"""
    found = {"qrep.1": main_page(), **{f"qrep-{name}.1": page_of(name) for name in OWN_PAGE}}
    return {name: "\n".join(lines) + "\n" for name, lines in found.items()} | {"qrep.toml.5": config_page(DATE, __version__)}


if __name__ == "__main__":
    os.makedirs(sys.argv[1], exist_ok=True)
    for file_name, text in pages().items():
        with open(os.path.join(sys.argv[1], file_name), "w") as file:
            file.write(text)
