"""The process that asks a thin pool's metadata a question: holds them still for that long, and lets go, whatever becomes of the asker.

    python -IS thinreader.py LIMIT_SECONDS DMSETUP POOL METADATA COMMAND...

POOL: the device-mapper name of the pool; METADATA: the path of its metadata device; COMMAND: thin_delta or thin_dump with its options, to which
METADATA is appended. stdout is that of the command. A pool has one metadata snapshot: a lock on METADATA lets one of us in at a time. One that
is there all the same belongs to somebody else, and is left to them: exit 3. exit 4: the lock was not to be had. Imports nothing of qrep.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time

THEIRS, LOCKED, LATE = 3, 4, 5


def main(limit_s, dmsetup, pool, metadata, command):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    until = time.monotonic() + limit_s
    lock = os.open(metadata, os.O_RDONLY | os.O_CLOEXEC)
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= until:
                return LOCKED
            time.sleep(0.05)
    if subprocess.run([dmsetup, "message", pool, "0", "reserve_metadata_snap"], stdin=subprocess.DEVNULL, check=False).returncode:
        return THEIRS
    try:
        left_s = max(1.0, until - time.monotonic())
        return 0 if subprocess.run([*command, metadata], stdin=subprocess.DEVNULL, timeout=left_s, check=False).returncode == 0 else 1
    except subprocess.TimeoutExpired:
        return LATE
    finally:
        subprocess.run([dmsetup, "message", pool, "0", "release_metadata_snap"], stdin=subprocess.DEVNULL, check=False)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:]))
