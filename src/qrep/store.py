"""Files of qrep's own state: replaced atomically, flushed or die, 0600 in 0700 directories, never through a symbolic link.

A `Directory` is an open descriptor; every name below it is one component and is opened relative to it, so that nobody can
swap a path under us. A failed flush ends the process (R2): the kernel reports it once and then forgets it, so whoever goes
on would build on data that may not be there.
"""

import contextlib
import errno
import os
import secrets
import stat
import sys

from qrep.crashpoint import crashpoint
from qrep.errors import DamagedError, Refused

FLUSH_FAILED = 71  # exit code of a process that met a failed flush (EX_OSERR)
TEMPORARY = ".tmp"


def flush(descriptor, what):
    """Make everything written to `descriptor` durable, or end this process at once (R2). what: named to the person."""
    try:
        os.fsync(descriptor)
    except OSError as err:
        die(what, err)


def die(what, err):
    """End the process after a failed flush: no clean-up, no retry; recovery at the next start knows what to do."""
    text = f"qrep: {what}: flush failed: {os.strerror(err.errno or errno.EIO)}; ending, recovery follows at the next start\n"
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), text.encode())
    os._exit(FLUSH_FAILED)


def write_all(descriptor, data, offset=None):
    """Write every byte of `data`, at `offset` or where the descriptor stands. Raises OSError, then some may be written."""
    view = memoryview(data).cast("B")
    while view:
        written = os.write(descriptor, view) if offset is None else os.pwrite(descriptor, view, offset)
        if not written:  # asked again it might be so for ever
            raise OSError(errno.EIO, "a write took nothing")
        view = view[written:]
        if offset is not None:
            offset += written


def read_exact(descriptor, size, offset):
    """`size` bytes at `offset`, fewer only at the end of the file. Returns a bytearray."""
    data = bytearray(size)
    done = 0
    while done < size:
        got = os.preadv(descriptor, [memoryview(data)[done:]], offset + done)
        if not got:
            del data[done:]
            break
        done += got
    return data


def read_into(descriptor, view, offset):
    """Fill `view`, a writable memoryview of bytes. Returns how many were read, fewer only at the end of the file. For O_DIRECT, too."""
    done = 0
    while done < len(view) and (got := os.preadv(descriptor, [view[done:]], offset + done)):
        done += got
    return done


def _component(name):
    name = os.fspath(name)
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} is not a file name")
    return name


def _make(path):
    """A directory and its missing parents, each 0700; os.makedirs gives the parents what the umask says."""
    if not os.path.isdir(path):
        _make(os.path.dirname(path))
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)


class Directory:
    """A private directory, held open. Close it, or use it in `with`."""

    def __init__(self, path, *, descriptor=None):
        """Open `path`, making it and its missing parents 0700.

        Raises Refused if the directory belongs to someone else or others may write to it.
        """
        self.path = os.path.abspath(path)
        if descriptor is None:
            _make(self.path)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self.descriptor = descriptor
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self):
        status = os.fstat(self.descriptor)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
            raise Refused(
                f"{self.path}: not private: owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}",
                hint=f"it must belong to user {os.geteuid()}: chmod 700 {self.path}",
                code="state-not-private",
            )

    def sub(self, name):
        """The directory `name` in this one, made 0700 if it is missing."""
        name = _component(name)
        try:
            os.mkdir(name, 0o700, dir_fd=self.descriptor)
            self.flush()
        except FileExistsError:
            pass
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return Directory(os.path.join(self.path, name), descriptor=os.open(name, flags, dir_fd=self.descriptor))

    def open(self, name, flags=os.O_RDONLY):
        """Descriptor of a regular file in this directory, 0600 when it is made. Raises OSError; symbolic links are ELOOP."""
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe put in its place must not hang us
        descriptor = os.open(_component(name), flags, 0o600, dir_fd=self.descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise DamagedError(f"{self.path}/{name}: not a regular file")
        os.set_blocking(descriptor, True)
        return descriptor

    def read(self, name, limit):
        """The whole of a file, or None if there is none. Raises DamagedError if it is larger than `limit` bytes."""
        try:
            descriptor = self.open(name)
        except FileNotFoundError:
            return None
        try:
            size = os.fstat(descriptor).st_size
            if size > limit:
                raise DamagedError(f"{self.path}/{name}: {size} bytes, more than the {limit} it can have")
            return read_exact(descriptor, size, 0)
        finally:
            os.close(descriptor)

    def write(self, name, *parts):
        """Replace `name` by the bytes of `parts`, atomically and durably: after a crash it is the old or the new one. A part that is a number stands
        for so many zeroes, of which a hole is made.

        Raises OSError (full, read-only); then the old one is still there.
        """
        temporary = f"{_component(name)}.{secrets.token_hex(4)}{TEMPORARY}"
        descriptor = self.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            for part in parts:
                if isinstance(part, int):
                    os.ftruncate(descriptor, os.lseek(descriptor, part, os.SEEK_CUR))
                else:
                    write_all(descriptor, part)
            crashpoint("store-write-unflushed")
            flush(descriptor, f"{self.path}/{name}")
        except OSError:
            os.unlink(temporary, dir_fd=self.descriptor)
            raise
        finally:
            os.close(descriptor)
        self.rename(temporary, name)

    def rename(self, old, new):
        """Give `old` the name `new`, durably; what was called `new` is gone."""
        crashpoint("store-rename-before")
        os.rename(_component(old), _component(new), src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        crashpoint("store-rename-unflushed")
        self.flush()

    def remove(self, name):
        """Delete a file durably; it may be missing."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_component(name), dir_fd=self.descriptor)
            crashpoint("store-remove-unflushed")
            self.flush()

    def names(self):
        """Names in this directory, sorted, without the temporary files of an interrupted replace."""
        return sorted(name for name in os.listdir(self.descriptor) if not name.endswith(TEMPORARY))

    def sweep(self):
        """Delete the temporary files that a crash left. Call where nobody else writes to this directory."""
        for name in os.listdir(self.descriptor):
            if name.endswith(TEMPORARY):
                os.unlink(name, dir_fd=self.descriptor)

    def flush(self):
        flush(self.descriptor, self.path)

    def close(self):
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()
