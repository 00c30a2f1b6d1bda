"""The man pages, made from the commands themselves: `python -m qrep.cli.manual docs/man`. A test holds them up to date.

qrep(1) has the everyday and system commands; each noun has a page of its own, and so has `qrep copy`.
"""

import os
import sys

import click

from qrep import __version__
from qrep.cli.main import COMMANDS, SECTIONS, root

DATE = "2026-11-22"
OWN_PAGE = ("volume", "job", "shape", "snapshot", "peer", "copy")

EXIT_CODES = (
    (0, "It is done."), (1, "It failed."), (2, "The command or the configuration makes no sense."),
    (3, "It ended or runs degraded."), (4, "The agent or the peer cannot be reached."),
    (5, "Refused for safety; nothing was written."), (6, "Verify found differences."), (7, "There is no such object."),
    (8, "It took longer than it may."), (130, "Ended by the person in front of it. A run goes on in the agent; qrep stop ends it."),
)  # fmt: skip
ENVIRONMENT = (
    ("QREP_SOCKET", "The agent's socket; default /run/qrep/qrep.sock."),
    ("QREP_CONFIG_DIR", "Where the configuration lies; default /etc/qrep."),
    ("QREP_STATE_DIR", "Where qrep keeps its state; default /var/lib/qrep."),
    ("QREP_RSH", "The command that qrep copy uses instead of ssh."),
    ("NO_COLOR", "If set, nothing is coloured."),
)
FILES = (
    ("/etc/qrep/qrep.toml", "This node: name, listen, port, limits."),
    ("/etc/qrep/{peers,volumes,shapes,jobs}/NAME.toml", "One object a file; the commands write the file you would write."),
    ("/var/lib/qrep", "Maps, undo, keys and the event log; never edited by hand."),
    ("/run/qrep/qrep.sock", "Where the agent listens to this command. Only root may talk to it."),
)
ADDRESSES = (
    ("NAME", "a volume or a job of this host"), ("PEER:VOLUME", "a volume of another host"),
    ("VOLUME@POINT", "a sync point of a target volume, by the number of its generation"),
)  # fmt: skip
EXAMPLES = {
    "qrep": (
        ("On site-a and site-b, each other's address:", ("qrep peer add site-b 10.0.1.2",)),
        ("On site-b, the target, which says who may write to it:", ("qrep volume add db /dev/vg1/db --accept site-a",)),
        ("On site-a, the source:", ("qrep volume add db /dev/vg0/db", "qrep job create db --source db --target site-b:db", "qrep start db --wait")),
    ),
    "volume": (("A target that one peer may write to, with its undo elsewhere:", ("qrep volume add db /dev/vg1/db --accept site-a --undo /srv/undo",)),),
    "job": (("Compare digests first, because both sides are nearly equal already:", ("qrep job create db --source db --target site-b:db --initial compare",)),),
    "shape": (
        ("50 MiB/s in office hours for two jobs together, and all there is at night:",
         ('qrep shape set office --peak 50M --hours "mon-fri 07:00-19:00"', "qrep job set db --shape office", "qrep job set web --shape office")),
        ("Never more than 400 Mbit/s of this host, whatever its groups allow:", ("qrep shape node 400Mbit",)),
    ),
    "snapshot": (
        ("What can be gone back to, and going there:", ("qrep snapshot db", "qrep snapshot rollback db@41")),
        ("An earlier content in a file, the volume left as it is:", ("qrep snapshot copy db@41 /srv/db-at-41.img",)),
    ),
    "peer": (("A host with two addresses, its fingerprint checked by eye:", ("qrep peer add site-b 10.0.1.2,10.0.2.2",)),),
    "copy": (
        ("To another host, at most 50 MiB/s, and again later, which sends what changed:", ("qrep copy /dev/vg0/db root@site-b:/dev/vg1/db --rate 50M",)),
        ("Through another port:", ('qrep copy -e "ssh -p 2222" disk.img site-b:/srv/disk.img',)),
    ),
}  # fmt: skip
NOTES = {
    "copy": (
        "The target is never torn: whatever dies, and whenever, the next copy to it begins with its last complete content.",
        "What it is known by is the device itself, not its name. If somebody wrote to the target since the last copy to it, that is "
        "found, its content is compared instead of believed, and it is overwritten only after an answer or with -y.",
        "Over ssh, qrep must be installed on the other host. Data goes over --connections further ssh connections; with --direct, "
        "over TLS 1.3 connections to a port that the other end opens for this copy, with keys made for it.",
        "The root that is printed is the BLAKE3 of the source as it was copied: b3sum of the target says the same.",
    ),
    "shape": (
        "Hours are those of the clock on the wall in the node's time zone (node.time_zone in qrep.toml, else the system's): when it goes forward, "
        "a border that is skipped comes with the jump; when it goes back, a border inside the doubled hour comes twice. A window that ends "
        "before it begins goes on after midnight.",
        "What is counted is what the data connections carry: blocks, frames and the records of TLS. The headers of TCP and IP, about 4 % with "
        "frames of 1500 bytes, come on top. The source keeps the rate; jobs whose target is on this host, too, are shaped like any other.",
        "A group below the limit of the node gets an equal share of it beside the other groups and the jobs without one.",
    ),
    "snapshot": ("A rollback makes a new generation of the old content; what the volume held before stays a sync point itself.",),
    "volume": ("Adding a volume writes nothing to its device. A peer may replicate onto it only if it is named with --accept.",),
}


def escape(text):
    """Text for roff: nothing in it is a request or a hyphen that a reader could not paste."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in text.split("\n"))


def _synopsis(name, command):
    pieces = [f"\\fB{escape(name)}\\fR"]
    context = click.Context(command, info_name=name)
    pieces += [f"\\fI{escape(piece)}\\fR" for piece in command.collect_usage_pieces(context)]
    return " ".join(pieces)


def _option(option):
    names = ", ".join(f"\\fB{escape(name)}\\fR" for name in option.opts)
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
    lines += [*_list("EXIT STATUS", EXIT_CODES), *_list("ENVIRONMENT", ENVIRONMENT), *_list("FILES", FILES), *_examples("qrep")]
    return lines + _see_also(*(f"qrep-{name}" for name in OWN_PAGE), "b3sum")


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
    return {name: "\n".join(lines) + "\n" for name, lines in found.items()}


if __name__ == "__main__":
    os.makedirs(sys.argv[1], exist_ok=True)
    for file_name, text in pages().items():
        with open(os.path.join(sys.argv[1], file_name), "w") as file:
            file.write(text)
