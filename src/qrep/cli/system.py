"""qrep daemon, probe, check, completion."""

import os
import sys

import click

from qrep import units
from qrep.cli.app import Command, printable
from qrep.cli.render import colour, table
from qrep.errors import ConfigError, Refused


@click.command(cls=Command)
@click.pass_obj
def daemon(app):
    """Run the agent in the foreground until SIGTERM. Source and target are the same program."""
    if os.geteuid() != 0:
        raise Refused("the agent opens block devices and runs as root", hint="sudo qrep daemon", code="not-root")
    from qrep.daemon.service import run

    code = run(config_dir=app.config_dir, state_dir=app.state_dir, socket_path=app.socket, verbose=app.verbose)
    # Everything has ended in order, or has been given up. The interpreter would wait for threads that wait for a peer or a device.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@click.command(cls=Command)
@click.pass_obj
def probe(app):
    """What this machine can do: io_uring and its features, the hash kernel, zero-copy sending; what is used and why."""
    from qrep.probe import probe as look

    found = look()
    app.data(found, lambda: probe_text(found))


def probe_text(found):
    """First what is used and why, then the feature table."""
    uring, ring = found["io_uring"], found["ring"]
    limit = found["memlock_limit"]
    lines = [
        ("kernel", f"{found['kernel']} {found['machine']}, {found['cpus']} CPUs"),
        ("requests", f"{'io_uring' if ring['backend'] == 'uring' else ring['backend']}: {ring['why']}"),
        ("hash kernel", found["hash_kernel"]),
        ("huge pages", found["huge_pages"]),
        ("locked memory", "unlimited" if limit in (None, -1) else units.format_size(limit)),
        ("zero-copy send", f"on loopback: {found['zero_copy']['loopback']}"),
        ("kernel TLS", found["kernel_tls"]["why"] or "yes: it encrypts what data connections send"),
        ("sandbox", sandbox_text(found["sandbox"])),
    ]
    text = "\n".join(f"{name:<15} {value}" for name, value in lines)
    features = [
        (name, colour("yes", 32) if present else colour("no", 33))
        for group in ("setup_flags", "features", "opcodes")
        for name, present in uring.get(group, {}).items()
    ]
    features += [
        (name.replace("_", " "), colour("yes", 32) if uring.get(name) else colour("no", 33))
        for name in ("registered_files", "registered_buffers")
    ]
    return f"{text}\n\n{table(('IO_URING', 'HERE'), features)}"


def sandbox_text(found):
    """Of the process that faces the network."""
    if not found["seccomp"]:
        return colour("no seccomp: the agent will not start", 31)
    return "seccomp, " + (f"Landlock {found['landlock']}" if found["landlock"] else "no Landlock here; an empty root directory does")


@click.command(cls=Command)
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False))
@click.pass_obj
def check(app, file):
    """Check all configuration files, or FILE: where an error is and what was probably meant; and that nobody changed the audit log. Needs no agent."""
    from qrep.configcheck import check as check_files
    from qrep.daemon import grants
    from qrep.daemon.events import CODES

    problems = check_files(app.config_dir, file, state_dir=app.state_dir, event_codes=CODES)
    problems += [] if file else grants.problems(app.state_dir)
    if not problems:
        app.data({"problems": []}, f"{file or app.config_dir}: no errors")
        return 0
    if app.json:
        app.data({"problems": [problem.as_dict() for problem in problems]})
        return ConfigError.exit_code
    for problem in problems:
        click.echo(printable(str(problem)))
    return ConfigError.exit_code


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_obj
def completion(app, shell):
    """Print the completion script of SHELL, for `qrep completion bash > /etc/bash_completion.d/qrep`, for instance."""
    from click.shell_completion import get_completion_class

    from qrep.cli.main import root

    script = get_completion_class(shell)(root, {}, "qrep", "_QREP_COMPLETE").source()
    app.data({"shell": shell, "script": script}, script)
