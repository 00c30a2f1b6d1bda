"""What tests do to the machine besides the fixtures of conftest.py: run tools, make images and partitions."""

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import time

import pytest

MIB = 1 << 20


def run(*command):
    """Run a tool; its stdout. A failure shows what the tool said."""
    result = subprocess.run([os.fspath(word) for word in command], capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit {result.returncode}: {result.stderr.strip()}")
    return result.stdout.strip()


def need_tool(name):
    """Skip the test with a reason if a program of the system is missing."""
    if not shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"):
        pytest.skip(f"needs {name}, which is not installed")


def is_free(device):
    """Whether nobody has claimed the device (no mount, nobody who asked for it with O_EXCL), or locked the image file. The kernel holds what a killed
    process had for a moment longer, until its last I/O has ended."""
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_EXCL)
    except OSError as err:
        if err.errno != errno.EBUSY:
            raise
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def image(directory, name="image", size=8 * MIB):
    """A sparse file of that size; its path."""
    with open(directory / name, "wb") as file:
        file.truncate(size)
    return directory / name


@contextlib.contextmanager
def loop_devices(*backings):
    """Paths of loop devices over files, for fixtures that live longer than a test."""
    with contextlib.ExitStack() as stack:
        devices = []
        for backing in backings:
            devices.append(run("losetup", "--find", "--show", backing))
            stack.callback(run, "losetup", "--detach", devices[-1])
        yield devices


def partitioned(disk):
    """Give a loop device of at least 64 MiB, made with partscan, a GPT and two partitions; returns it."""
    need_tool("parted")
    run("parted", "-s", disk, "mklabel", "gpt", "mkpart", "one", "1MiB", "20MiB", "mkpart", "two", "20MiB", "60MiB")
    deadline = time.monotonic() + 5
    while not os.path.exists(f"{disk}p2"):
        assert time.monotonic() < deadline, "the partitions of a loop device did not appear"
        time.sleep(0.01)
    return disk


def bad_spots(directory, size, extents, undo_after):
    """A file of `size` bytes of "x" whose reads fail with EIO inside `extents` [(offset, size)]: nbdkit through FUSE. Its path."""
    for tool in ("nbdkit", "nbdfuse", "fusermount3"):
        need_tool(tool)
    tests = " || ".join(f"{{ [ $4 -lt {offset + length} ] && [ $end -gt {offset} ]; }}" for offset, length in extents)
    pread = f"""
        end=$(($4 + $3))
        if {tests}; then echo EIO bad spot >&2; exit 1; fi
        head -c $3 /dev/zero | tr '\\0' x
    """
    return _served(directory, "bad-spots", undo_after, "eval", f"get_size=echo {size}", f"pread={pread}")


class BadBlocks:
    """A file in memory of which some places cannot be read, or written, for as long as a test says so: nbdkit through FUSE. `path`: the file; put a
    loop device over it. `content`: the file below, which a test may read and write itself."""

    def __init__(self, directory, size, undo_after, name="blocks"):
        for tool in ("nbdkit", "nbdfuse", "fusermount3"):
            need_tool(tool)
        self.content = directory / f"{name}.content"
        self._lists = {"pread": directory / f"{name}.unreadable", "pwrite": directory / f"{name}.unwritable"}
        with open(self.content, "wb") as file:
            file.truncate(size)
        self.heal()

        def check(call):
            return f"end=$(($4 + $3)); while read o l; do [ $o -lt $end ] && [ $((o + l)) -gt $4 ] && {{ echo EIO bad block >&2; exit 1; }}; done <{self._lists[call]}"

        dd = "dd status=none bs=1M"
        calls = {
            "get_size": f"echo {size}", "can_write": "exit 0", "can_flush": "exit 0", "flush": "exit 0", "can_zero": "exit 3", "can_trim": "exit 3",
            "pread": f"{check('pread')}; {dd} if={self.content} iflag=skip_bytes,count_bytes skip=$4 count=$3",
            "pwrite": f"{check('pwrite')}; {dd} of={self.content} conv=notrunc oflag=seek_bytes seek=$4",
        }  # fmt: skip
        self.path = _served(directory, name, undo_after, "eval", *(f"{call}={script}" for call, script in calls.items()))

    def unreadable(self, *extents):
        """From now on these (offset, size) cannot be read, and all others can."""
        self._say("pread", extents)

    def unwritable(self, *extents):
        self._say("pwrite", extents)

    def heal(self):
        self.unreadable()
        self.unwritable()

    def _say(self, call, extents):
        fresh = self._lists[call].with_name(f"{self._lists[call].name}.new")
        fresh.write_text("".join(f"{offset} {size}\n" for offset, size in extents))
        fresh.replace(self._lists[call])


def slow_reads(directory, size, delay, undo_after):
    """A file of `size` bytes in memory whose every read takes `delay`: nbdkit through FUSE. Its path."""
    for tool in ("nbdkit", "nbdfuse", "fusermount3"):
        need_tool(tool)
    return _served(directory, "slow-reads", undo_after, "--filter=delay", "memory", str(size), f"delay-read={delay}")


def _end(fuse):
    """It ends when nobody has it mounted any more; a network namespace of another test may hold a copy of the mount."""
    try:
        fuse.wait(3)
    except subprocess.TimeoutExpired:
        fuse.kill()
        fuse.wait(10)


def _served(directory, name, undo_after, *nbdkit):
    path, pidfile = directory / name, directory / f"{name}.pid"
    path.touch()
    server = ["nbdkit", "--exit-with-parent", "-s", *nbdkit]
    fuse = subprocess.Popen(["nbdfuse", "--pidfile", pidfile, path, "--command", *server], stderr=subprocess.PIPE)
    undo_after.callback(_end, fuse)
    undo_after.callback(subprocess.run, ["fusermount3", "-u", path], check=True)
    for _ in range(1000):
        if pidfile.exists() and pidfile.read_text():
            return path
        if fuse.poll() is not None:
            undo_after.pop_all()
            pytest.skip(f"nbdfuse does not run here: {fuse.stderr.read().decode().strip()}")
        time.sleep(0.01)
    pytest.fail("nbdfuse did not come up in 10 s")
