"""How the processes of a trial ended, and what they told: each ends as it was made to, and tells of no fault of qrep's own. Shares no code with it."""

import json

import oracle

KILLED = -9
NOT_FOR = ("protocol", "internal")  # of what no run may fail, whatever is done to it


class Told:
    """note() every process that has ended, then check()."""

    def __init__(self):
        self._notes = []

    def note(self, process):
        """process: a Child that has ended and was read to its end, with `role`, `crash`: where it was to die, and `may_end`: its exit codes."""
        what = f"{process.role}, to die at {process.crash}" if process.crash else process.role
        self._notes.append((what, process.returncode, wrong_end(process), process.errors()))

    def check(self):
        """Raises oracle.Forbidden, naming the first that is not as it must be; begins anew."""
        notes, self._notes = self._notes, []
        for what, code, wrong, errors in notes:
            try:
                oracle.nothing_forbidden(errors)
            except oracle.Forbidden as err:
                raise oracle.Forbidden(f"{what}: {err}") from None
            if wrong is not None:
                raise oracle.Forbidden(f"{what}: ended with {code}{wrong}: {errors}")


def wrong_end(process):
    """What is wrong with how a process ended, None: nothing."""
    code = process.returncode
    if code == KILLED:
        return None if process.killed or process.crash else ", and nobody had killed it"
    if code not in process.may_end:
        return ", which it may not"
    return _wrong_failure(process.said) if process.role == "source" and code else None


def _wrong_failure(said):
    try:
        reason = json.loads(said.splitlines()[-1])["code"]
    except (IndexError, KeyError, TypeError, ValueError):
        return f", and says {said!r}"
    return f", of {reason}" if reason in NOT_FOR else None
