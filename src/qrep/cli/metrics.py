"""qrep metrics: what the agent counts."""

import os

import click

from qrep.cli.app import Command


@click.command(cls=Command)
@click.option("--textfile", "path", metavar="FILE", type=click.Path(dir_okay=False), help="Replace FILE by them, for node_exporter's textfile collector.")
@click.pass_obj
def metrics(app, path):
    """What the agent counts, in the text format of Prometheus; docs/METRICS.md says what each means.

    The agent itself writes such a file every 15 seconds if [metrics] in qrep.toml names one. It opens no network port for them.
    """
    client = app.client()
    if path:
        from qrep.daemon.metricsfile import write

        write(os.path.abspath(path), client.text("/metrics"))
        app.data({"written": path})
    elif app.json:
        app.data(client.get("/metrics"))
    else:
        click.echo(client.text("/metrics"), nl=False)
