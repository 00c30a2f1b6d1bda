"""A block device with a volatile write cache, whose power can be cut: powerdisk.c below a loop device with direct I/O.

    with Device(directory, size, name) as device:
        device.path                             /dev/loopN, all zeroes; goes with this process, however that ends
        device.cut(seed, keep_percent)          what was not flushed survives by the 512-byte sector; what comes now is seen and never durable
        device.power_on()                       what was durable is there, nothing else
        device.fail("flush", 2, sticky=True)    the second flush from now on and all after it fail
        device.log()                            what it was asked to do, on a clock that all devices share

Several devices of one machine lose their power at one moment: cut({device: keep_percent, ...}, seed, kill).
"""

import contextlib
import errno
import fcntl
import functools
import os
import shlex
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SOURCES = ("powerdisk.c", "disk.c", "medium.c", "recorder.c")
KINDS = ("read", "write", "flush", "zero")
ANSWER_S = 60.0
BLKFLSBUF = 0x1261
STICKY, LOSE = 1, 2
REQUEST, ANSWER, RECORD = struct.Struct("<5Q"), struct.Struct("<q8Q"), struct.Struct("<5Q2I")
NO_DATA = 2**64 - 1
HOLD, CUT, POWER_ON, FAIL, DETAIN, LAND, HOLD_AT, LIE, COUNT, RECORDING, SYNC, SAVE, RESTORE = range(1, 14)


class Unavailable(Exception):
    """What it needs is not here."""


class Counts(NamedTuple):
    """Requests of each kind since the device was made; unflushed: bytes that a cut may take; detained: what is kept unanswered; overflow: the log
    is incomplete; held: nothing is answered any more."""

    read: int
    write: int
    flush: int
    zero: int
    unflushed: int
    detained: int
    overflow: int
    held: int


class Record(NamedTuple):
    """One request. kind: of KINDS. begun, done: CLOCK_MONOTONIC in ns, when it came and when it was carried out. error: 0 or an errno, then nothing was
    written. data: bytes of a write, None where they were not recorded."""

    kind: str
    offset: int
    size: int
    begun: int
    done: int
    error: int
    data: bytes | None


class Cut(NamedTuple):
    """Sectors of unflushed writes."""

    kept: int
    lost: int


@functools.lru_cache(1)
def program():
    """The compiled powerdisk, once per process. Raises Unavailable where its compiler, libfuse3 or /dev/fuse is missing."""
    if not os.path.exists("/dev/fuse") or not os.path.exists("/dev/loop-control"):
        raise Unavailable("needs /dev/fuse and loop devices")
    if not shutil.which("gcc") or not shutil.which("pkg-config"):
        raise Unavailable("needs gcc and pkg-config")
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=False)
    if flags.returncode:
        raise Unavailable("needs libfuse3-dev")
    made = tempfile.TemporaryDirectory(prefix="qrep-power-")  # goes with the process
    out = Path(made.name, "powerdisk")
    command = ["gcc", "-O2", "-g", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", *(HERE / name for name in SOURCES), "-o", out]
    result = subprocess.run([*command, *shlex.split(flags.stdout)], stderr=subprocess.PIPE, text=True, check=False, timeout=300)
    if result.returncode:
        raise RuntimeError(result.stderr)
    return out, made


class Device:
    """directory: an existing one, on tmpfs best; NAME, NAME.log and NAME.data are made in it. size: bytes, whole pages. Close it, or use it in `with`."""

    def __init__(self, directory, size, name="disk", sector_size=512):
        self.name, self.size, self._point = name, size, Path(directory, name)
        self._files = [Path(directory, f"{name}.log"), Path(directory, f"{name}.data")]
        self.path, self._descriptor = "", -1
        self._point.mkdir()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(ANSWER_S)
        with theirs:
            command = [program()[0], directory, name, str(size), str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        try:
            self.counts()  # it is mounted
            self._attach(sector_size)
        except BaseException:
            self.close()
            raise

    def _attach(self, sector_size):
        losetup = ["losetup", "--find", "--show", "--direct-io=on", f"--sector-size={sector_size}", self._point / "disk"]
        path = subprocess.run(losetup, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.path = path
        subprocess.run(["losetup", "--detach", path], check=True)  # it goes when nobody has it open any more, and we have

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()

    def __fspath__(self):
        return self.path

    def __str__(self):
        return self.path

    def close(self):
        """Give everything back. What is detained lands before."""
        with contextlib.suppress(OSError, EOFError):
            self.hold(False)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._wait_detached()
        self._control.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if os.path.ismount(self._point):
            subprocess.run(["umount", "--lazy", self._point], check=True)
        self._point.rmdir()

    def _wait_detached(self):
        shown = Path("/sys/class/block", os.path.basename(self.path), "loop/backing_file")
        deadline = time.monotonic() + 20
        with contextlib.suppress(OSError):  # it has none any more
            while shown.read_text().strip() == str(self._point / "disk") and time.monotonic() < deadline:
                time.sleep(0.01)

    def _tell(self, command, *arguments):
        self._control.send(REQUEST.pack(command, *arguments, *[0] * (4 - len(arguments))))
        answer = self._control.recv(ANSWER.size)
        if not answer:
            raise EOFError(f"{self._point}: its program has ended with {self._process.poll()}")
        error, *values = ANSWER.unpack(answer)
        if error:
            raise OSError(-error, f"{self._point}: {os.strerror(-error)}")
        return values

    # ---- power ----

    def hold(self, on=True):
        """Requests wait from now on, for cut() or until hold(False)."""
        self._tell(HOLD, int(on))

    def hold_at(self, kind, nth=1):
        """The nth request of a kind from now on waits, and all that come after it, as by hold(): counts().held then. nth 0: none any more."""
        self._tell(HOLD_AT, KINDS.index(kind), nth)

    def cut(self, seed, keep_percent):
        """The power goes: each sector of each write since the last flush, those that are under way included, reached the medium with a probability of
        keep_percent, by seed. Until power_on() reads find all that was written, and nothing becomes durable. Injections end. Returns a Cut.

        What lives on in the machine must not go on from what this device answers now: kill it between hold() and cut(), or see cut() below.
        """
        return Cut(*self._tell(CUT, seed % 2**64, keep_percent)[:2])

    def power_on(self, wait_s=60.0):
        """The machine is on again. Waits until nobody of before has the device claimed or mounted any more; TimeoutError."""
        self._wait_unused(wait_s)
        self._tell(POWER_ON)

    def save(self):
        """Remember what is durable now, for restore()."""
        self._tell(SAVE)

    def restore(self, wait_s=60.0):
        """What save() remembered is there, durable, nothing else, and the power is on. Waits as power_on()."""
        self._wait_unused(wait_s)
        self._tell(RESTORE)

    def _wait_unused(self, wait_s):
        deadline = time.monotonic() + wait_s
        while True:
            try:
                os.close(os.open(self.path, os.O_RDWR | os.O_EXCL))
                break
            except OSError as err:
                if err.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise TimeoutError(f"{self.path} ({self.name}) is still in use after {wait_s:g} s") from err
            time.sleep(0.005)
        fcntl.ioctl(self._descriptor, BLKFLSBUF)  # the kernel's memory of it is gone, too

    # ---- faults ----

    def fail(self, kind, nth=1, error=errno.EIO, *, sticky=False, lose=False):
        """The nth request of a kind from now on fails with an errno; sticky: and all after it. nth 0: none any more.

        lose: of a flush; what it was to make durable never will be, although it can be read and the next flush succeeds. A loop device makes EIO of
        whatever a flush fails with.
        """
        self._tell(FAIL, KINDS.index(kind), nth, error, STICKY * sticky + LOSE * lose)

    def lie(self, on=True):
        """Flushes succeed and do nothing, until lie(False)."""
        self._tell(LIE, int(on))

    def detain(self, nth=1):
        """The nth write from now on is under way until land(), or a cut: not carried out, not answered; all others go on."""
        self._tell(DETAIN, nth)

    def land(self):
        """What was detained is carried out; how many writes."""
        return self._tell(LAND)[0]

    # ---- looking ----

    def counts(self):
        return Counts(*self._tell(COUNT))

    def record(self, *, data=False):
        """The log begins anew, now; with what was written, if data."""
        self._tell(RECORDING, 2 if data else 1)

    def log(self):
        """[Record] since record(), by `done`: writes, flushes and zeroes, the failed ones included. Raises RuntimeError when it grew too large."""
        self._tell(SYNC)
        if self.counts().overflow:
            raise RuntimeError(f"{self.name}: more was written than a log can take")
        log, data = (path.read_bytes() for path in self._files)
        return [
            Record(KINDS[kind], offset, size, begun, done, error, None if at == NO_DATA else data[at : at + size])
            for begun, done, offset, size, at, kind, error in RECORD.iter_unpack(log)
        ]


def cut(keeps, seed, kill=None):
    """The power of {device: keep_percent} goes at one moment: all hold, kill() ends whoever runs on that machine, and each loses its own.

    What happened on one device after another one held cannot have depended on that one, so the states fit one moment. kill() may return before its
    victims are reaped, but not before they are sent SIGKILL. Returns {device: Cut}.
    """
    for device in keeps:
        device.hold()
    if kill is not None:
        kill()
    return {device: device.cut(seed + number, keep) for number, (device, keep) in enumerate(keeps.items())}
