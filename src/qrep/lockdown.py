"""How a process of an agent that parses what strangers send gives up its rights: what front and attachment have in common."""

import contextlib
import os
import signal
import threading
import traceback

from qrep import packets
from qrep.errors import ProtocolError

STACK_SIZE = 512 << 10  # bytes of a thread's; there is one for every connection


def begin():
    """It ends when the agent does, not by a signal of a terminal; its threads are many and small."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.stack_size(STACK_SIZE)


def warm_up():
    """Load what is loaded late otherwise: afterwards no file can be opened."""
    import linecache  # noqa: F401

    try:
        raise ProtocolError("not an error: loads what printing one needs")
    except ProtocolError:
        traceback.format_exc()
    threading.Thread(target=lambda: None).start()
    os.strerror(1)


def keep_only(descriptors):
    """Close every other descriptor; standard input, output and error become /dev/null."""
    kept = {0, 1, 2, *descriptors}
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(int(name))
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def note(line, make_note, exception, text_max):
    """A bug of ours goes to the agent's log: there is no other place left. make_note(text=...): the packet."""
    text = "".join(traceback.format_exception(exception))
    with contextlib.suppress(packets.Gone):
        line.send(make_note(text=text[-text_max:]))


def tell_bugs(note_it):
    """What ends a thread is told by note_it(exception); not that the agent is gone: then so are we, at once."""

    def ended(what):
        if not isinstance(what.exc_value, packets.Gone):
            note_it(what.exc_value)

    threading.excepthook = ended
