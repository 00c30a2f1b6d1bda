"""Named crash points of the control plane; the native layer has its own twin (`_native/crashpoint.c`).

`QREP_CRASH=name:n` kills this process with SIGKILL at the n-th passage of `name`. Inert otherwise.
"""

import os
import signal

_name, _, _count = os.environ.get("QREP_CRASH", "").rpartition(":")
_left = int(_count) if _name and _count.isdigit() else 0


def crashpoint(name):
    """Die here as by kill -9 if the environment asks for it."""
    global _left
    if _left and name == _name:
        _left -= 1
        if not _left:
            os.kill(os.getpid(), signal.SIGKILL)
