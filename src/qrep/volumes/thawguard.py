"""The process that thaws filesystems when the one that froze them cannot: it died, or took too long.

    python -IS thawguard.py LIMIT_SECONDS FD...

stdin is a pipe from the freezer: `d` says that it has thawed by itself; end of file says that it died, also by
kill -9. stdout gets one byte once the guard stands, and nothing may be frozen before. After LIMIT_SECONDS it thaws, and
keeps thawing until it is told that all is done. Imports nothing of qrep, so that it starts in a few milliseconds.
"""

import fcntl
import os
import select
import signal
import sys

FITHAW = 0xC0045878
AGAIN_S = 0.2


def thaw(fds):
    for fd in fds:
        try:
            fcntl.ioctl(fd, FITHAW, 0)
        except OSError:  # EINVAL: it is not frozen, which is what we want
            continue


def main(limit_s, fds):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # what ends the freezer must not end its guard
        signal.signal(number, signal.SIG_IGN)
    os.write(1, b"r")
    readable = select.select([0], [], [], limit_s)[0]
    while not readable:
        thaw(fds)
        readable = select.select([0], [], [], AGAIN_S)[0]
    if os.read(0, 1) != b"d":
        thaw(fds)


if __name__ == "__main__":
    main(float(sys.argv[1]), [int(word) for word in sys.argv[2:]])
