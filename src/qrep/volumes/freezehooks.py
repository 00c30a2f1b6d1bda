"""The freezer's end of a thawguard process (thawguard.py): filesystems that are thawed and hooks that are undone, whatever becomes of us."""

import contextlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from qrep.volumes.base import SnapshotError

GUARD = Path(__file__).with_name("thawguard.py")
log = logging.getLogger("qrep.volumes")


class Guard:
    """subjects: (name for people, FreezeOptions) of each volume; fds: of the filesystems; of these the guard thaws, if we cannot, what is mine()."""

    def __init__(self, fds, subjects, limit_s):
        self._subjects = subjects
        self._started = []  # numbers of subjects whose hook `before` was started
        asked = {
            "fds": fds, "limit_s": limit_s, "before": [list(options.before) for _, options in subjects],
            "after": [list(options.after) for _, options in subjects], "hook_s": [options.limit_s for _, options in subjects],
        }  # fmt: skip
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("QREP_", "PYTHON"))}
        self._process = subprocess.Popen(
            [sys.executable, "-IS", str(GUARD), json.dumps(asked)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, pass_fds=fds,
            start_new_session=True, cwd="/", env=environment,
        )  # fmt: skip
        if self._process.stdout.read(1) != b"r":
            self.close()
            raise SnapshotError("the guard that would thaw the filesystem did not start", hint=f"check {sys.executable}")

    def before(self):
        """Run the hooks that bring to rest what writes to the volumes; numbers of those that have one. Raises SnapshotError (code freeze-hook)."""
        wanted = [number for number, (_, options) in enumerate(self._subjects) if options.before or options.after]
        for number in wanted:
            self._started.append(number)
            self._run("before", number)
        return [number for number in wanted if self._subjects[number][1].before]

    def after(self):
        """Undo what was started; all of it, also if one fails. Raises SnapshotError then."""
        failed = None
        while self._started:
            try:
                self._run("after", self._started.pop())
            except SnapshotError as err:
                log.warning("%s", err.message)
                failed = failed or err
        if failed:
            raise failed

    def frozen(self):
        self._say("frozen")

    def thawed(self):
        with contextlib.suppress(SnapshotError):  # someone killed the guard; all is thawed anyway
            self._say("thawed")

    def mine(self, fd):
        """This one is about to be frozen, by us or by a hook."""
        self._say(f"mine {fd}")

    def leave(self, fd):
        """It was not: somebody else had frozen it before we came, or it cannot be frozen, or is thawed again."""
        self._say(f"leave {fd}")

    def close(self):
        """All is over."""
        with contextlib.suppress(SnapshotError):
            self._say("done")
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _run(self, kind, number):
        name, options = self._subjects[number]
        self._say(f"{kind} {number}")
        line = b""
        while not line.endswith(b"\n"):
            byte = self._process.stdout.read(1)
            if not byte:
                raise self._lost()
            line += byte
        answer = json.loads(line)
        if not answer["ok"]:
            command = (options.before if kind == "before" else options.after)[0]
            raise SnapshotError(
                f"{name}: its freeze_{kind} command {command} failed: {answer['said']}",
                code="freeze-hook", hint="run it by hand; nothing was frozen" if kind == "before" else "check that what it was to undo is undone",
            )  # fmt: skip

    def _say(self, line):
        try:
            self._process.stdin.write(f"{line}\n".encode())
        except BrokenPipeError:
            raise self._lost() from None

    def _lost(self):
        started = ", ".join(self._subjects[number][0] for number in self._started)
        return SnapshotError(
            "the guard that would thaw the filesystem was killed" + (f"; the freeze_after commands of {started} were not run" if started else ""),
            hint="look who kills processes of the agent",
        )
