"""Verifies of this node's jobs: begun by a person or by their schedule, at the rate and within the shape of the job."""

from qrep import units
from qrep.daemon.made import check_may_verify
from qrep.jobs import look
from qrep.settings import check_rate


def start(node, runner, options, cause=""):
    """Begin a verify of a job. options: independent, repair, dry_run, rate. Returns its task. Raises Refused while the job is busy."""
    check_may_verify(runner)
    rate = options.pop("rate", "") or runner.settings.verify_rate or units.UNLIMITED
    check_rate(rate)
    rate = units.parse_rate(rate) or 0
    runner.begin("verify")
    try:
        bucket = node.shapes.bucket(runner.name)
        return node.tasks.start("verify", runner.name, lambda task: look.verify(runner, task, cause, rate=rate, bucket=bucket, **options))
    except BaseException:
        runner.end()
        raise
