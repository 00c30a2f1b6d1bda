"""What a process says while something is done in it, and what it keeps open: what an agent's log would have, of code that is called.

    with overheard.everything() as told:
        ...
    oracle.nothing_forbidden(told.getvalue())
    with overheard.repeatable(seed): ...        # ids are drawn, and times told, the same way each time
"""

import contextlib
import io
import logging
import os
import random
import secrets
import sys
import threading
import time
import traceback
import warnings
from unittest import mock

import oracle

from qrep.target import ages

ENDING_S = 5.0
NOW_NS = 1_900_000_000 * 10**9
BOOT = "1b0d7e5e-3c1f-4f43-9f0e-0d6b6d4c1a11"


@contextlib.contextmanager
def everything():
    """Yields a text that grows: the log, threads and finalizers that ended with an exception, what was dropped unclosed, and at its end which
    descriptors and threads are still there."""
    told, root = io.StringIO(), logging.getLogger()
    handler, level, disabled = logging.StreamHandler(told), root.level, logging.root.manager.disable

    def raised(what, error):
        told.write(f"{what}:\n{''.join(traceback.format_exception(error))}")

    def warned(message, category, filename, line, *_more):
        told.write(warnings.formatwarning(message, category, filename, line))

    held, threads = oracle.held(os.getpid()), set(threading.enumerate())
    with contextlib.ExitStack() as put_back:
        logging.disable(logging.NOTSET)
        put_back.callback(logging.disable, disabled)
        put_back.enter_context(mock.patch.object(root, "handlers", [handler]))  # nobody else needs to hear it
        root.setLevel(logging.INFO)
        put_back.callback(root.setLevel, level)
        put_back.enter_context(mock.patch.object(sys, "unraisablehook", lambda found: raised(f"unraisable in {found.object!r}", found.exc_value)))
        put_back.enter_context(mock.patch.object(threading, "excepthook", lambda found: raised(f"thread {found.thread}", found.exc_value)))
        put_back.enter_context(warnings.catch_warnings())
        warnings.simplefilter("always", ResourceWarning)
        warnings.showwarning = warned
        yield told
    for thread in set(threading.enumerate()) - threads:
        thread.join(ENDING_S)
        if thread.is_alive():
            told.write(f"ResourceWarning: {thread} is still there\n")
    left = oracle.leaked(held, oracle.held(os.getpid()))
    if left:
        told.write(f"ResourceWarning: still open: {left}\n")


@contextlib.contextmanager
def repeatable(seed):
    """Ids are drawn, and times told, by this seed."""
    chance = random.Random(seed)
    drawn = {"token_bytes": chance.randbytes, "token_hex": lambda size: chance.randbytes(size).hex(), "randbits": chance.getrandbits}
    times = {"time_ns": lambda: NOW_NS, "time": lambda: NOW_NS / 1e9, "clock_gettime_ns": lambda _clock: NOW_NS}
    with mock.patch.multiple(secrets, **drawn), mock.patch.multiple(time, **times), mock.patch.object(ages, "boot_id", lambda: BOOT):
        yield
