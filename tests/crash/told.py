"""What this process says while states are tried: its log from warnings on, and whatever goes to its stderr, of threads and of native code, too."""

import contextlib
import fcntl
import logging
import os
import sys
import threading

import oracle

KNOWN_MAX = 10_000  # lines


class Ear(logging.Handler):
    """lines: what the log has said, with the tracebacks."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(self.format(record) if record.exc_info or record.stack_info else record.getMessage())


class Told:
    """Takes descriptor 2, sys.stderr and the log for as long as the block lasts. judge() raises oracle.Forbidden."""

    def __init__(self):
        self._file, self._ear = -1, Ear()
        self._events = []
        self._known = set()  # lines that were judged before

    def __enter__(self):
        with contextlib.ExitStack() as ends:
            self._file = os.memfd_create("told")
            ends.callback(os.close, self._file)
            fcntl.fcntl(self._file, fcntl.F_SETFL, os.O_APPEND)
            kept = os.dup(2)
            ends.callback(os.close, kept)
            os.dup2(self._file, 2)
            ends.callback(os.dup2, kept, 2)
            stream = ends.enter_context(open(2, "w", buffering=1, errors="backslashreplace", closefd=False))
            ends.enter_context(contextlib.redirect_stderr(stream))
            for module, name in ((threading, "excepthook"), (sys, "unraisablehook")):  # they write to sys.stderr, whoever else listens
                ends.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, getattr(module, f"__{name}__"))
            logging.getLogger().addHandler(self._ear)
            ends.callback(logging.getLogger().removeHandler, self._ear)
            self._ends = ends.pop_all()
        return self

    def __exit__(self, kind, error, trace):
        text = self._taken()
        self._ends.close()
        if error is None:
            oracle.nothing_forbidden(text, self._events)

    def observe(self, code, text, **data):
        """For TargetVolume.observer."""
        self._events.append({"code": code, "text": text, **data})

    def judge(self, with_events=True):
        """What was said since it was asked last is what may be said. with_events: also of what the volume is; else that is known, and forgotten."""
        lines, events, self._events = self._ear.lines, self._events if with_events else (), []
        text = self._taken()
        if text or events:
            oracle.nothing_forbidden(text, events)
            if len(self._known) < KNOWN_MAX:
                self._known.update(lines)

    def forget(self):
        """What was said belongs to a defect."""
        self._taken()
        self._events = []

    def _taken(self):
        lines, self._ear.lines = [line for line in self._ear.lines if line not in self._known], []
        size = os.fstat(self._file).st_size
        if size:
            lines.append(os.pread(self._file, size, 0).decode(errors="replace"))
            os.ftruncate(self._file, 0)
        return "\n".join(lines)
