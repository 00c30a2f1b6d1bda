"""qrep copy: one source to one target, here or over ssh, without an agent; again, it sends what changed."""

import os
import re
import threading
from contextlib import closing, contextmanager

import click

from qrep import units
from qrep.cli.app import Command
from qrep.cli.everyday import estimate_text, run_text
from qrep.cli.follow import follower
from qrep.errors import Interrupted, QrepError, Refused, UsageError

LOOK_S = 0.2  # between two looks at the progress
REMOTE = re.compile(r"(?P<host>(?:[^/:@\s]+@)?(?:\[[0-9A-Fa-f:.%\w]+\]|[^/:@\s\[\]]+)):(?P<path>.+)\Z")


def split_target(text):
    """(host or None, path) of [[USER@]HOST:]TARGET; a path that has a colon begins with / or ./"""
    match = None if text.startswith(("/", "./", "../")) else REMOTE.match(text)
    if match and match["host"].startswith("-"):
        raise UsageError(f"{text!r} does not name a host")
    return (match["host"], match["path"]) if match else (None, text)


class LocalEnd:
    """A target on this host. Like the ssh end below: check, then open() gives what a Run needs."""

    def __init__(self, app, path, source, bucket):
        self._app, self._path, self._source, self._bucket = app, path, source, bucket
        self.overwrite = False

    def _target(self):
        from qrep.oneshot.target import CopyTarget

        source = self._source
        return CopyTarget(
            self._path, size=source.info.size, source=source.name, state_dir=self._app.state_dir, config_dir=self._app.config_dir,
            leaf_size=source.leaf_size, granule_size=source.granule_size, overwrite=self.overwrite, source_info=source.info, mark=source.mark,
        )  # fmt: skip

    def check(self):
        """(volume id or None, facts)"""
        target = self._target()
        facts = target.check()
        return getattr(target, "volume_id", None), facts

    @contextmanager
    def open(self):
        """(dial, connect, volume id, whether to compare: a function)"""
        from qrep.copy import LocalTarget

        target = self._target()
        try:
            reach = LocalTarget(target.open(), bucket=self._bucket)
            yield reach.dial, reach.connect, target.volume_id, lambda: target.compare
        finally:
            target.close()


class SshEnd:
    """A target on another host."""

    def __init__(self, host, path, source, bucket, **options):
        self._host, self._path, self._source, self._bucket, self._options = host, path, source, bucket, options
        self.overwrite = False

    def _reach(self):
        from qrep.oneshot.opening import Offer
        from qrep.oneshot.ssh import SshTarget

        source = self._source
        offer = Offer(
            target=self._path, source=source.name, size=source.info.size, leaf_size=source.leaf_size,
            granule_size=source.granule_size, overwrite=self.overwrite, mark=source.mark,
        )  # fmt: skip
        return SshTarget(self._host, offer, bucket=self._bucket, **self._options)

    def check(self):
        with closing(self._reach()) as reach:
            answer = reach.ask(dry_run=True)
        return answer.volume_id or None, {"exists": answer.exists, "known": answer.known, "compare": answer.compare, "notes": answer.notes}

    @contextmanager
    def open(self):
        reach = self._reach()
        first = [reach.dial()]  # the answer names the volume; later ones find a target that this copy has opened before
        try:
            answer = reach.answer
            yield (lambda: first.pop() if first else reach.dial()), reach.connect, answer.volume_id, lambda: reach.answer.compare
        finally:
            for channel in first:
                channel.close()
            reach.close()


class Told:
    """What the run wants a person to hear while it goes on."""

    def __init__(self, app):
        self._app = app

    def event(self, code, text, **_data):
        self._app.say(f"{code}: {text}")


def run_to_the_end(app, run, title):
    """Run in a thread of its own, show its progress, and stop it in order at Ctrl-C. Returns the report or raises."""
    outcome = []
    ended = threading.Event()

    def body():
        try:
            outcome.append(run.run())
        except BaseException as error:
            outcome.append(error)
        ended.set()

    threading.Thread(target=body, name="copy", daemon=True).start()
    interrupted = False
    with follower(app, title) as show:
        while not ended.is_set():
            try:
                ended.wait(LOOK_S)
                show.show(run.progress())
            except KeyboardInterrupt:
                if not interrupted:
                    app.say("stopping in order; what a first copy has done is kept, a repeat is taken back by the next one")
                interrupted = True
                run.stop()
    result = outcome[0]
    if interrupted and isinstance(result, QrepError):
        raise Interrupted("stopped", hint="the same command goes on with a first copy, and begins a repeat anew") from result
    if isinstance(result, BaseException):
        raise result
    return result


def check_or_ask(app, end, yes, dry_run):
    """The target's facts. What it carries is overwritten only if a person says so; a dry run says that it would ask."""
    end.overwrite = yes
    try:
        return end.check()
    except Refused as refusal:
        if refusal.code != "signature":
            raise
        if dry_run:
            app.say(f"note: {refusal.message}; copy asks before it overwrites that, or wants -y")
        else:
            app.confirm(f"{refusal.message}. It will be overwritten.", yes)
        end.overwrite = True
        return end.check()


@click.command(cls=Command)
@click.argument("source", type=click.Path())
@click.argument("target", metavar="[[USER@]HOST:]TARGET")
@click.option("-n", "--dry-run", is_flag=True, help="Say how much would be sent; change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Overwrite what TARGET carries without asking.")
@click.option("--rate", metavar="RATE", help="At most this much a second: 50M, 400Mbit.")
@click.option(
    "--compress", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True,
    help="Pack data on its way to HOST: auto, where that is faster; on, whatever gets smaller.",
)
@click.option("--nice", is_flag=True, help="Read SOURCE so that others who use it hardly notice.")
@click.option("--connections", type=click.IntRange(1, 16), default=2, show_default=True, metavar="N", help="How many carry the data.")
@click.option("--map", "map_dir", type=click.Path(file_okay=False), metavar="DIR", help="Where the digest map is kept (default: the state directory).")
@click.option("--snapshots", type=click.Choice(["auto", "lvm", "reflink", "none"]), default="auto", help="How the source is frozen.")
@click.option("-e", "--rsh", metavar="COMMAND", envvar="QREP_RSH", help="Instead of ssh (QREP_RSH).")
@click.option("--remote-qrep", metavar="COMMAND", default="qrep", help="How qrep is called on HOST.")
@click.option("--direct", is_flag=True, help="Data over TLS connections to a port of HOST instead of ssh.")
@click.option("--direct-address", metavar="ADDR", help="HOST's address for --direct.")
@click.option("--timeout", metavar="TIME", default="30s", help="How long a HOST that went away is tried again.")
@click.pass_obj
def copy(app, source, target, dry_run, yes, rate, compress, nice, connections, map_dir, snapshots, rsh, remote_qrep, direct, direct_address, timeout):
    """Copy the device or image file SOURCE to TARGET, a device or a file (made if missing). Again, it sends what changed.

    What a first copy had done when it was interrupted is kept: the same command goes on from there. A repeat is taken back and begun anew.
    """
    from qrep._native.bucket import Bucket
    from qrep.oneshot.request import CopySource

    bytes_per_s = units.parse_rate(rate) if rate else None
    timeout_s = units.parse_duration(timeout)
    here = CopySource(source, state_dir=app.state_dir, map_dir=map_dir, snapshots=snapshots, connections=connections)
    bucket = Bucket(bytes_per_s) if bytes_per_s else None
    host, path = split_target(target)
    if host is None and (direct or direct_address):
        raise UsageError("--direct is for a target on another host", hint="write [USER@]HOST:TARGET")
    if host is None:
        end = LocalEnd(app, os.path.abspath(path), here, bucket)
    else:
        options = {"rsh": rsh, "remote_qrep": remote_qrep, "direct": direct or bool(direct_address), "address": direct_address}
        end = SshEnd(host, path, here, bucket, **options)
    volume_id, facts = check_or_ask(app, end, yes, dry_run)
    for note in facts["notes"]:
        app.say(f"note: {note}")
    if dry_run:
        would = would_send(here, volume_id, facts, bytes_per_s, nice)
        app.data(would, estimate_text("", would))
        return
    from qrep.source.flow import Run

    with end.open() as (dial, connect, volume_id, compare):
        run = Run(here.request(volume_id, compare=compare, timeout_s=timeout_s, nice=nice, compress=compress if host else "off"), dial, connect, observer=Told(app))
        report = run_to_the_end(app, run, f"{os.path.basename(source)} -> {target}")
    result = report.as_dict() | {"size": here.info.size, "source": source, "target": target}
    app.data(result, run_text(target, result))


def would_send(here, volume_id, facts, bytes_per_s, nice):
    from qrep.source.estimate import estimate

    if volume_id is None or not facts["known"] or facts["compare"]:
        return {"would_send": here.info.size, "size": here.info.size, "full": True, "changed_since": None, "seconds": None}
    found = estimate(here.request(volume_id, compare=lambda: False, timeout_s=1, nice=nice))
    seconds = found.would_send / bytes_per_s if bytes_per_s else None
    return {"would_send": found.would_send, "size": here.info.size, "full": found.full, "changed_since": None, "seconds": seconds, "limit_bytes_per_s": bytes_per_s}
