"""qrep.toml(5): every key of every configuration file, from settings.py; what each means is written here. A test holds it complete."""

import typing

import msgspec

from qrep import settings
from qrep.cli.roff import escape
from qrep.daemon.reload import RESTART

INTRO = (
    "Each object is a TOML file of its own; the commands write the file that you would write. Keys that are missing have their default, and an "
    "unknown key is an error. qrep check looks at all files and tells every error with its line; qrep reload lets the agent read them again, "
    "where one error in any file changes nothing.",
    "Sizes are bytes: 50M and 50MiB are 50 * 2^20, 50MB is 50 * 10^6. Rates are per second: 50M, 400Mbit, unlimited. Durations are written "
    "like 500ms, 30s, 15m, 3h12m or 2d.",
)
FILES = (
    ("/etc/qrep/qrep.toml", "This node.", (("[node]", settings.NodeSection), ("[limits]", settings.LimitsSection), ("[events]", settings.EventsSection),
     ("[[hooks]]", settings.Hook), ("[metrics]", settings.MetricsSection))),
    ("/etc/qrep/peers/NAME.toml", "A host that is known by its key; written by qrep peer add.", (("", settings.Peer),)),
    ("/etc/qrep/volumes/NAME.toml", "A device or image file of this host; written by qrep volume add.", (("", settings.Volume),)),
    ("/etc/qrep/shapes/NAME.toml", "A shaping group: jobs that share a rate; written by qrep shape set.", (("", settings.Shape),)),
    ("/etc/qrep/jobs/NAME.toml", "A job whose source is here; written by qrep job create, which makes the pair at the target, too.",
     (("", settings.Job), ("[[paths]]", settings.Path), ("[[paths.pairs]]", settings.Pair))),
)  # fmt: skip
NEXT_START = " Counts from the next start of the agent on."
ID = "32 random hexadecimal digits, written by the command; never change it."
TEXTS = {
    "NodeSection": {
        "name": "What other hosts see this one as; empty: the host name.",
        "listen": "Addresses that peers may connect to.",
        "port": "TCP port for peers.",
        "user": "The user of the process that holds the network; empty: qrep if there is one, else nobody.",
        "path_hold": "How long a better path must have been well before it is returned to.",
        "time_zone": "Zone of schedules and shaping hours, such as Europe/Berlin; empty: the system's.",
    },
    "LimitsSection": {
        "connections_half_open": "Connections that have not proved who they are.",
        "connections": "Connections of peers that are served, half of them of one peer.",
        "jobs_running": "Runs that go on at once; more wait for their turn.",
        "pairs_local": "Jobs whose target is on this host.",
        "pairs_remote": "Jobs whose target is on another host.",
        "pairs_per_source": "Jobs of one source volume.",
        "rate": "Rate of all jobs of this node together, above the shaping groups.",
        "open_generation": "How long an open generation waits for its run to come back before the target gives it up and puts back its last sync point.",
    },
    "EventsSection": {"keep": "Events that are kept.", "keep_for": "How long they are kept; the newest 1000 always are."},
    "Hook": {
        "events": "Codes of events, or the levels info, warning and error: a level stands for itself and worse ones.",
        "command": "Absolute path of a program, and its arguments; no shell is involved. The event is JSON on its standard input and QREP_EVENT_* in its "
        "environment; it runs as the agent's user.",
        "timeout": "After this it is killed with its process group.",
    },
    "MetricsSection": {
        "file": "File that the metrics are written to, for node_exporter's textfile collector; empty: none.",
        "every": "How often.",
    },
    "Peer": {
        "addresses": "How it is reached: ADDR, ADDR:PORT or [ADDR]:PORT, tried in this order.",
        "fingerprint": "SHA-256 of its public key, which was seen and agreed to when it was added.",
        "certificate": "Its certificate, PEM.",
        "trusted": "Whether the paths to it are trusted, so that data may travel plain and be sent without copying; both ends must say so. Control is always TLS.",
        "may_switch": "Whether it may make this host give up its role in a job of both, so that a switch is one command there.",
    },
    "Volume": {
        "id": ID,
        "device": "Absolute path of the block device or image file; better one of /dev/disk/by-id than /dev/sda.",
        "snapshots": "How it is frozen while it is read: auto takes what there is, lvm a snapshot of a logical volume (thin or not), reflink a clone of an image file; none reads it live, and its sync points are fuzzy.",
        "snapshot_space": "What a snapshot may take that needs space of its own (classic LVM): a part of the volume, or a size.",
        "freeze_before": "Command, with its arguments, that brings to rest what writes to the volume, before it is frozen; no shell is involved.",
        "freeze_after": "Command that undoes freeze_before; it is run whenever that one was started, also if it failed.",
        "freeze_timeout": "How long each of the two commands may take, and how long a mounted filesystem is kept frozen at most.",
        "undo": "Directory for the undo of a target; empty: in the state directory.",
        "undo_space": "What the undo may take: a size, or a multiple of the volume such as 2x.",
        "keep_points": "As a target: so many of the newest earlier sync points stay, whatever a source asks for.",
        "keep_for": "And so do all that are younger than this; empty: no age. Time for which the host is off does not count, and the wall clock has no say. Where there would be more than 256, those go that lie closest together.",
        "open_generation": "As in [limits], for this volume; empty: as it says there.",
        "leaf": "Unit of comparing and sending, a power of two from 4K to 1M.",
        "granule": "Unit of scheduling and of the map, a power of two up to 64M.",
        "accept": "Peers whose jobs may write to it; nobody else may.",
        "identity": "What the device was when it was added; another one under its path is refused.",
    },
    "Shape": {
        "peak": "Rate in the hours of the peak.",
        "hours": 'Windows of the week that are peak, such as "mon-fri 07:00-19:00"; none: always.',
        "off_peak": "Rate at all other times.",
    },
    "Job": {
        "id": ID,
        "source": "Volume of this host.",
        "target": "VOLUME, or PEER:VOLUME.",
        "target_volume": "Id of the target volume, as the target told it.",
        "size": "Size of the source when the job was created.",
        "leaf": "As of the source volume when the job was created.",
        "granule": "As of the source volume when the job was created.",
        "role": "Written by qrep: target where the source has moved to the other side; the volume's superblock decides, not this.",
        "whole": "Written by qrep: false where the volume is larger than what is replicated of it, which a target may be.",
        "mode": "async: runs that each reach a new sync point. copy: one run, then the target is given back. clone: a local copy, see qrep-clone(1).",
        "finished": "Of mode copy, written by qrep: the generation that was made. It does not run any more.",
        "moved": "After qrep clone convert, written by qrep: the disk that is on its way; target is empty until qrep job rebuild.",
        "initial": "The first run: full, compare digests first, or what is better.",
        "sync_points": "Earlier sync points that the target keeps.",
        "keep": "Sync points that it keeps besides: the newest of each of so many of the newest hours, days or weeks, such as \"24x1h 7x1d 4x1w\".",
        "connections": "TCP connections of a run; 1 to 16.",
        "timeout": "How long an interrupted run tries again without getting on.",
        "shape": "Shaping group that it shares a rate with; empty: none.",
        "group": "Consistency group: all of its jobs start together, freeze their sources at one moment, and are committed all or none. Their targets must be on one host. Empty: none.",
        "schedule": 'When it runs by itself: cron lines separated by ";", or every 15m; empty: only when it is started.',
        "missed": "A scheduled time that passed while the agent was down: run once at its start, or skip it.",
        "verify_schedule": "When the two sides are compared by themselves, written as schedule; empty: only when it is asked for.",
        "verify_rate": "How much a verify may read a second at each end; empty: as fast as it goes.",
        "rpo": "How old the last sync point may become before it is told; empty: no matter.",
        "compress": "auto: data travels packed (zstd) to another host where that is faster, as measured granule by granule: where the connection or a limit holds a run back, the CPU has time and the data gets smaller. on: whatever gets smaller, for lines that are paid by the byte. off: never. Limits count what travels.",
        "nice": "true: what runs, estimates and verifies read of the source gives way to others who use it, and their threads leave the CPU to others. While nobody else is there they go as fast as ever.",
        "hints": "auto: where the source's filesystem or driver can tell what has changed since the last run, that is read and a share of the rest; its snapshot is kept for that. off: everything is read.",
        "hint_sample": "Share of what a hint leaves out that is read in every run, such as 5%; auto: 1 %, and no more than 15 % of what was named or 4 MiB.",
        "paths": "Ways to the target, of which one is active; see below. None: any address of the peer.",
        "preferred_path": "Number of the path that is taken when it is well.",
    },
    "Path": {
        "from": "Address of this host, or auto: the system picks.",
        "to": "Address of the peer, or auto: those of its file.",
        "pairs": "One for each connection, where they are not all alike, or not as many as the job says; none with to auto.",
    },
    "Pair": {
        "from": "Address of this host for one connection, or auto; empty: that of the path.",
        "to": "Address of the peer for one connection; empty: that of the path.",
    },
}  # fmt: skip
EXAMPLE = """[node]
name = "site-a"
listen = ["10.0.1.1", "10.0.2.1"]

[limits]
jobs_running = 16

[metrics]
file = "/var/lib/prometheus/node-exporter/qrep.prom"

[[hooks]]
events = ["error", "rpo-passed"]
command = ["/usr/local/sbin/tell", "storage team"]"""


def kind_text(field):
    """Type, range and default of a field, as a person reads them."""
    kind = field.type
    meta = None
    if typing.get_origin(kind) is typing.Annotated:
        kind, meta = typing.get_args(kind)[:2]
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        text = " | ".join(f'"{word}"' for word in typing.get_args(kind))
    elif origin is list:
        text = "list of tables" if isinstance(typing.get_args(kind)[0], type) and issubclass(typing.get_args(kind)[0], msgspec.Struct) else "list of text"
    else:
        text = {int: "number", str: "text", bool: "true | false"}.get(kind, "table")
    if meta is not None and meta.ge is not None:
        text += f" from {meta.ge}" + (f" to {meta.le}" if meta.le is not None else "")
    return text + (", needed" if field.required else f", default {_toml(_default(field))}")


def _default(field):
    return field.default_factory() if field.default is msgspec.NODEFAULT else field.default


def _toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value) if value != {} else "empty"


def page(date, version):
    """The text of qrep.toml.5."""
    lines = [f'.TH QREP.TOML 5 "{date}" "qrep {version}" "qrep manual"', ".SH NAME\nqrep.toml \\- configuration of qrep"]
    lines += [".SH DESCRIPTION", *(f".PP\n{escape(text)}" for text in INTRO)]
    for name, about, sections in FILES:
        lines += [f'.SH "{escape(name)}"', escape(about)]
        for title, cls in sections:
            lines += [f'.SS "{escape(title)}"'] if title else []
            for field in msgspec.structs.fields(cls):
                key = field.encode_name
                assert key in TEXTS[cls.__name__], f"say in {__file__} what {key} of {name} means"
                text = TEXTS[cls.__name__][key] + (NEXT_START if key in RESTART.get(title.strip("[]"), ()) else "")
                lines.append(f".TP\n\\fB{escape(key)}\\fR ({escape(kind_text(field))})\n{escape(text)}")
    lines += [".SH EXAMPLE", f".nf\n{escape(EXAMPLE)}\n.fi", ".SH SEE ALSO\n.BR qrep (1)"]
    return "\n".join(lines) + "\n"
