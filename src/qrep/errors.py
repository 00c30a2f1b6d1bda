"""Every error a person can meet: a stable code, an exit code, one line that names the object and the reason, and the way out.

The exit codes are a contract (INTERFACE in docs/): 1 failed, 2 usage, 3 degraded, 4 unreachable, 5 refused for safety,
6 verify found differences, 7 no such object, 8 timed out, 130 interrupted.
"""


class QrepError(Exception):
    """Base of all errors that are shown to a person.

    message: one line, names the object and the reason. hint: one line, the way out, or "".
    code: stable kebab-case word for scripts, defaults to the class's.
    """

    code = "failed"
    exit_code = 1
    retry = False  # True: the same attempt may succeed later without anyone's help

    def __init__(self, message, *, hint="", code=None):
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code:
            self.code = code

    def as_dict(self):
        return {"code": self.code, "exit": self.exit_code, "message": self.message, "hint": self.hint}


class UsageError(QrepError):
    """The command or a setting does not make sense."""

    code, exit_code = "usage", 2


class ConfigError(QrepError):
    """A configuration file or object is wrong; the message names file, place and what was probably meant."""

    code, exit_code = "config", 2


class Degraded(QrepError):
    """It runs or ended, but not as it should."""

    code, exit_code = "degraded", 3


class Unsynced(Degraded):
    """A run applied all but some blocks, and committed nothing; its open generation is kept for the next run.

    unreadable: of the source, unwritten: of the target: lists of (offset, size), bytes.
    """

    code = "unsynced"

    def __init__(self, message, *, unreadable=(), unwritten=(), hint=""):
        super().__init__(message, hint=hint)
        self.unreadable, self.unwritten = list(unreadable), list(unwritten)


class Unreachable(QrepError):
    """The agent or the peer does not answer."""

    code, exit_code, retry = "unreachable", 4, True


class Refused(QrepError):
    """Refused for safety; nothing was written."""

    code, exit_code = "refused", 5


class Differences(QrepError):
    """Verify found differences."""

    code, exit_code = "differences", 6


class NotFound(QrepError):
    """No object of that name."""

    code, exit_code = "not-found", 7


class TimedOut(QrepError):
    """It took longer than it may."""

    code, exit_code, retry = "timed-out", 8, True


class Interrupted(QrepError):
    """Ended by the person in front of it."""

    code, exit_code = "interrupted", 130


STOPPED = "the run was stopped; start resumes it"


class DeviceReadError(QrepError):
    """Sectors of a device cannot be read. extents: list of (offset, size, errno), bytes."""

    code = "device-read"

    def __init__(self, message, *, extents=(), hint=""):
        super().__init__(message, hint=hint)
        self.extents = list(extents)


class DeviceWriteError(QrepError):
    """A device did not take a write or a flush."""

    code = "device-write"


class UndoSpaceError(QrepError):
    """The undo store of the target volume is full; the run was rolled back exactly."""

    code = "undo-space"


class ProtocolError(QrepError):
    """The other side said something it may not say now; its connection is closed, nothing of it was applied."""

    code = "protocol"


class DamagedError(QrepError):
    """qrep's own records (undo, superblock, map) are damaged; named, and never used."""

    code = "damaged"


BY_EXIT_CODE = {
    cls.exit_code: cls
    for cls in (QrepError, UsageError, Degraded, Unreachable, Refused, Differences, NotFound, TimedOut, Interrupted)
}


def from_dict(fields):
    """The error that `as_dict` described, for instance one that crossed the local API."""
    error = BY_EXIT_CODE.get(fields.get("exit"), QrepError)(fields.get("message", "failed"), hint=fields.get("hint", ""))
    error.code = fields.get("code", error.code)
    return error
