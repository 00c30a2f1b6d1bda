"""The snapshots that the jobs of this node hold: of a run that can be resumed, and of the last generation for hints."""

import os

from qrep.errors import QrepError, Refused
from qrep.source.runrecord import RunFile
from qrep.volumes import registry


class JobSnapshots:
    """node: the Node."""

    def __init__(self, node):
        self.node = node

    def directory(self, job_id):
        """Of a job as a source."""
        return os.path.join(self.node.state.path, "sources", job_id)

    def let_go_when_idle(self, runner):
        """The snapshot that was kept for hints is given back at once; while a run goes on, by the one after it."""
        try:
            runner.begin("settle")
        except Refused:
            return
        try:
            self.let_go_of_kept(runner.name, runner.settings.id)
        finally:
            runner.end()

    def let_go_of_kept(self, name, job_id):
        """Give back what is kept of the last generation. No run of the job goes on."""
        from qrep.source.kept import Kept

        path = self.directory(job_id)
        if not os.path.isdir(path):
            return
        kept = Kept(path, self._releaser(job_id))
        try:
            record = RunFile.read(path)
            kept.let_go(record.snapshot if record is not None else "")
        except QrepError as error:
            self.node.events.add("snapshot-left", error.message, job=name)
        finally:
            kept.close()

    def _releaser(self, job_id):
        """release(token) of a job: what others hold too stays."""

        def release(token):
            if not self.node.shared_tokens.release(token, job_id):
                registry.release(token)

        return release

    def release_all(self, name, job_id):
        """A stopped run may hold a snapshot for its resume, and the last committed generation's is kept for hints."""
        from qrep.source.kept import Kept

        path, release = self.directory(job_id), self._releaser(job_id)
        kept = Kept(path, release)
        try:
            record = RunFile.read(path)
            token = record.snapshot if record is not None else ""
            for token in ([token] if token else []) + kept.tokens:
                release(token)
        except QrepError as error:
            self.node.events.add("snapshot-left", error.message, job=name, token=token)
        finally:
            kept.close()


def named_tokens(path):
    """The snapshots that the records of a job name. path: its directory as a source."""
    from qrep.source.kept import Kept

    if not os.path.isdir(path):
        return []
    kept = Kept(path, registry.release)
    try:
        record = RunFile.read(path)
        return ([record.snapshot] if record is not None and record.snapshot else []) + kept.tokens
    finally:
        kept.close()
