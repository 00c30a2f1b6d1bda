"""qrep serve: the far end of `qrep copy` over ssh. Started by ssh, not by people."""

import os

import click

from qrep.cli.app import Command
from qrep.errors import UsageError


def take_standard_streams():
    """Descriptors of what ssh connected us to, out of everybody else's reach: a stray print must not be taken for protocol."""
    receive, send = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return receive, send


@click.command(cls=Command, hidden=True)
@click.option("--stdio", is_flag=True, help="Serve one copy over standard input and output.")
@click.option("--join", "path", metavar="SOCKET", help="Bring standard input and output to a serving process as one data connection.")
@click.pass_obj
def serve(app, stdio, path):
    """The far end of `qrep copy` over ssh."""
    from qrep.oneshot import far

    if stdio == bool(path):
        raise UsageError("serve needs --stdio or --join", hint="`qrep copy SOURCE HOST:TARGET` calls it over ssh")
    if os.isatty(0):
        raise UsageError("this is no command for a terminal", hint="`qrep copy SOURCE HOST:TARGET` calls it over ssh")
    streams = take_standard_streams()
    if path:
        return far.join(path, *streams)
    return far.serve(*streams, state_dir=app.state_dir, config_dir=app.config_dir)
