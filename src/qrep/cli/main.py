"""The root command. Its subcommands are imported when they are called, so that every command answers at once."""

import importlib
import sys

import click

from qrep import __version__
from qrep.cli.app import App, Command, run

# name: (module below qrep.cli, attribute, one line for --help)
COMMANDS = {
    "status": ("status", "status", "Jobs, paths, lag; what to do next."),
    "start": ("everyday", "start", "Run jobs now."),
    "stop": ("everyday", "stop", "Stop runs, keep what has been applied."),
    "verify": ("verify", "verify", "Compare the two sides at the last sync point."),
    "events": ("events", "events", "What happened."),
    "copy": ("copy", "copy", "Copy a device once, here or over ssh; a repeat sends what changed."),
    "volume": ("volume", "volume", "Devices that qrep knows by name."),
    "job": ("job", "job", "Which volume is replicated where."),
    "clone": ("clone", "clone", "Copies within this host, whose disks may be carried to another one."),
    "path": ("path", "path", "The ways to a job's peer, of which one is taken."),
    "connection": ("connection", "connection", "The data connections of a path, which carry a run together."),
    "snapshot": ("snapshot", "snapshot", "Sync points of a target volume."),
    "attach": ("attach", "attach", "A sync point as a block device or over NBD."),
    "detach": ("attach", "detach", "End an attachment."),
    "peer": ("peer", "peer", "Other hosts."),
    "shape": ("shape", "shape", "Rates that jobs share, by the hours of the week."),
    "daemon": ("system", "daemon", "Run the agent."),
    "reload": ("reload", "reload", "Let the agent read its configuration again."),
    "probe": ("system", "probe", "What this machine can do."),
    "metrics": ("metrics", "metrics", "What the agent counts, as Prometheus reads it."),
    "check": ("system", "check", "Check the configuration files."),
    "completion": ("system", "completion", "Shell completion."),
    "demo": ("demo", "demo", "Replicate a real volume between two agents on this machine, and prove it."),
    "serve": ("serve", "serve", "The far end of `qrep copy` over ssh."),
}
HIDDEN = {"serve"}
SECTIONS = (
    ("Every day", ("status", "start", "stop", "verify", "events", "copy")),
    ("Objects (a noun alone lists)", ("volume", "job", "clone", "path", "connection", "shape", "snapshot", "peer")),
    ("Host side", ("attach", "detach")),
    ("System", ("daemon", "reload", "probe", "check", "metrics", "demo", "completion")),
)


class Root(click.Group):
    def list_commands(self, ctx):
        return [name for name in COMMANDS if name not in HIDDEN]

    def get_command(self, ctx, name):
        if name not in COMMANDS:
            return None
        module, attribute, _help = COMMANDS[name]
        return getattr(importlib.import_module(f"qrep.cli.{module}"), attribute)

    def resolve_command(self, ctx, args):
        if args and args[0] not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            ctx.fail(f"no such command: {args[0]}" + (f"; did you mean {near[0]}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx, formatter):
        for title, names in SECTIONS:
            with formatter.section(title):
                formatter.write_dl([(name, COMMANDS[name][2]) for name in names])


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="Print results as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No messages, only results and errors.")
@click.option("-v", "--verbose", is_flag=True, help="Say more.")
@click.option("--socket", metavar="PATH", help="The agent's socket (QREP_SOCKET).")
@click.option("--config-dir", metavar="DIR", help="Where the configuration lies (QREP_CONFIG_DIR).")
@click.option("--state-dir", metavar="DIR", help="Where qrep keeps its state (QREP_STATE_DIR).")
@click.version_option(__version__, prog_name="qrep")
@click.pass_context
def root(ctx, as_json, quiet, verbose, socket, config_dir, state_dir):
    """Replicate Linux block devices: full once, then only what changed, to a target that is never torn."""
    app = ctx.ensure_object(App)
    app.json = app.json or as_json
    app.quiet, app.verbose = quiet, verbose
    for name, value in (("socket", socket), ("config_dir", config_dir), ("state_dir", state_dir)):
        if value:
            setattr(app, name, value)


root.command_class = Command


def main():
    sys.exit(run(root))
