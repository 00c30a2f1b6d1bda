"""Snapshots of image files by FICLONE, on XFS and btrfs; also of a loop device through its backing file.

A clone shares its blocks with the image until one of them is written. It lies beside the image:

    DIR/db.img    DIR/.qrep-snapshots/db.img@NAME~MARKRANDOM    directory 0700, file 0600, mtime = the moment it shows

MARK: `a` application-consistent, `c` crash-consistent.

It is made without a name (O_TMPFILE) and gets one when it is complete, so a crash leaves all of it or nothing.

DIR may be another user's, who can put anything in the place of what is in it. So whatever is done with a clone is done in the directory that was
opened and found to be closed to others, by its name there, RANDOM included, which only this user ever saw; and what is read is the file made or found.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time

from qrep import blocktree, filesystems
from qrep.crashpoint import crashpoint
from qrep.errors import Refused
from qrep.extents import is_all_hole
from qrep.volumes import fiemap
from qrep.volumes.base import Capability, Frozen, SnapshotBackend, SnapshotError, check_name, consistency_of, mark_of
from qrep.volumes.quiet import quiet

DIRECTORY = ".qrep-snapshots"
FICLONE = 0x40049409
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_NOCOW_FL = 0x00800000
UNSWAPPED = os.O_NOFOLLOW | os.O_NONBLOCK  # a link put in its place leads nowhere, a pipe does not hang us


class Reflink(SnapshotBackend):
    name = "reflink"
    hints = True

    def probe(self, device):
        try:
            image = _image(device)
            _try_clone(os.path.dirname(image))
        except SnapshotError as err:
            return Capability(False, err.message)
        return Capability(True, f"clones of {image}")

    def freeze(self, device, name, *, quieted=""):
        check_name(name)
        image = _image(device)
        try:
            return self._freeze(device, image, name, quieted)
        except OSError as err:
            hint = "free some space" if err.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise SnapshotError(f"{device.path}: cannot clone {image}: {err.strerror}", hint=hint) from err

    def find(self, token):
        path = self._path(token)
        try:
            with _directory_of(path) as directory:
                status = os.stat(os.path.basename(path), dir_fd=directory, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return Frozen(path, status.st_size, False, status.st_mtime_ns, token, consistency_of(token), (status.st_dev, status.st_ino))

    def open(self, frozen):
        try:
            fd = _open_clone(self._path(frozen.token), os.O_DIRECT)
        except OSError as err:
            raise SnapshotError(f"the snapshot {frozen.path} cannot be opened: {err.strerror}") from err
        try:
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) != frozen.file:
                raise Refused(f"{frozen.path} is not the snapshot that was made", code="wrong-device", hint="look who writes to that directory")
            return fd, filesystems.direct_io_alignment(f"/proc/self/fd/{fd}", status)
        except BaseException:
            os.close(fd)
            raise

    def release(self, token):
        path = self._path(token)
        try:
            with _directory_of(path) as directory:
                os.unlink(os.path.basename(path), dir_fd=directory)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as err:
            raise SnapshotError(f"cannot remove the snapshot {path}: {err.strerror}") from err

    def stale(self, device, keep=()):
        image = _image(device)
        path = os.path.join(os.path.dirname(image), DIRECTORY)
        try:
            directory = _open_directory(path)
        except FileNotFoundError:
            return []
        try:
            names = sorted(os.listdir(directory))
        finally:
            os.close(directory)
        mine = [name for name in names if name.rpartition("@")[0] == os.path.basename(image)]
        tokens = [f"{self.name}:{os.path.join(path, name)}" for name in mine]
        return [token for token in tokens if token not in keep]

    def changes(self, device, old_token, new_token):
        with contextlib.ExitStack() as stack:
            fds = []
            for token in (old_token, new_token):
                fds.append(_open_clone(self._path(token)))
                stack.callback(os.close, fds[-1])
            return fiemap.changes(*fds)

    def never_written(self, device):
        try:
            return is_all_hole(_image(device), device.size)
        except (OSError, SnapshotError):
            return False

    def _freeze(self, device, image, name, quieted):
        parent, base = os.path.split(image)
        directory = _make_directory(os.path.join(parent, DIRECTORY))
        source = clone = -1
        try:
            source = os.open(image, os.O_RDONLY | os.O_CLOEXEC | UNSWAPPED)
            _check_image(device, image, os.fstat(source))
            os.set_blocking(source, True)
            clone = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory)
            _match_nocow(source, clone)
            with quiet(device, self.options, quieted) as consistency:
                time_ns = time.time_ns()
                _clone(clone, source)
            final = f"{base}@{name}~{mark_of(consistency)}{os.urandom(4).hex()}"
            os.ftruncate(clone, device.size)  # a loop device ends at a whole sector, its file may not
            os.utime(clone, ns=(time_ns, time_ns))
            os.fsync(clone)
            crashpoint("snapshot-cloned")
            # With a directory descriptor Python calls linkat(AT_SYMLINK_FOLLOW), which gives the nameless file a name.
            os.link(f"/proc/self/fd/{clone}", final, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=True)
            os.fsync(directory)
            crashpoint("snapshot-named")
            made = os.fstat(clone)
        finally:
            for fd in (clone, source, directory):
                if fd >= 0:
                    os.close(fd)
        path = os.path.join(parent, DIRECTORY, final)
        return Frozen(path, device.size, False, time_ns, f"{self.name}:{path}", consistency, (made.st_dev, made.st_ino))

    def _path(self, token):
        """The path in a token; only a file of ours may be looked at or removed, whatever the token says."""
        kind, _, path = token.partition(":")
        directory, name = os.path.split(path)
        ours = os.path.basename(directory) == DIRECTORY and "@" in name and os.path.normpath(path) == path
        if kind != self.name or not ours or not os.path.isabs(path):
            raise SnapshotError(f"{token!r} is not a {self.name} snapshot", code="snapshot-token")
        return path


def _image(device):
    """The image file of a device. Raises SnapshotError, whose message is the reason why there is none to clone."""
    if device.kind == "file":
        return device.real_path
    if not device.is_loop:
        raise SnapshotError(f"{device.path} is neither an image file nor a loop device over one")
    if device.partition_start:
        raise SnapshotError(f"{device.path} is a partition of a loop device")
    if device.backing_offset:
        raise SnapshotError(f"{device.path} begins {device.backing_offset} bytes into {device.backing_file}")
    try:
        status = os.stat(device.backing_file)
    except OSError as err:
        raise SnapshotError(f"the backing file {device.backing_file} of {device.path}: {err.strerror}") from err
    _check_image(device, device.backing_file, status)
    return device.backing_file


def _check_image(device, image, status):
    key = blocktree.storage(device).place.key
    if not stat.S_ISREG(status.st_mode) or key != ("file", status.st_dev, status.st_ino):
        raise SnapshotError(f"{image} is not the file {device.path} is made of (replaced, or another mount namespace)")
    if status.st_size < device.size:
        raise SnapshotError(f"{image} is shorter than {device.path}, which is {device.size} bytes")


def _try_clone(directory):
    """Clone one block between two nameless files: the only answer that counts is the filesystem's own."""
    fds = []
    try:
        for _ in range(2):
            fds.append(os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))
        os.write(fds[0], b"x")
        fcntl.ioctl(fds[1], FICLONE, fds[0])
    except OSError as err:
        raise SnapshotError(f"the filesystem of {directory} cannot clone files: {err.strerror}") from err
    finally:
        for fd in fds:
            os.close(fd)


def _clone(clone, source):
    fcntl.ioctl(clone, FICLONE, source)


def _match_nocow(source, clone):
    """btrfs clones between two files only if both or neither are `chattr +C`; it can be set while a file is empty."""
    flags = []
    for fd in (source, clone):
        try:
            flags.append(int.from_bytes(fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))[:4], "little"))
        except OSError:  # a filesystem without these flags
            return
    if flags[0] & FS_NOCOW_FL and not flags[1] & FS_NOCOW_FL:
        fcntl.ioctl(clone, FS_IOC_SETFLAGS, (flags[1] | FS_NOCOW_FL).to_bytes(8, "little"))


@contextlib.contextmanager
def _directory_of(path):
    """A descriptor of the snapshot directory that a clone lies in. Raises as _open_directory."""
    fd = _open_directory(os.path.dirname(path))
    try:
        yield fd
    finally:
        os.close(fd)


def _open_clone(path, flags=0):
    """A descriptor for reading a clone: a regular file in a directory that nobody else can put one into."""
    with _directory_of(path) as directory:
        fd = os.open(os.path.basename(path), os.O_RDONLY | os.O_CLOEXEC | UNSWAPPED | flags, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Refused(f"{path} is no regular file, so it is no snapshot of qrep's", code="wrong-device", hint="move it away")
    os.set_blocking(fd, True)
    return fd


def _make_directory(path):
    """As _open_directory; made if need be."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    return _open_directory(path)


def _open_directory(path):
    """A descriptor of a snapshot directory. Refused if someone else could look in or swap what is in it. Raises FileNotFoundError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as err:
        raise Refused(f"{path} is not a directory of qrep's: {err.strerror}", hint="move it away") from err
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        os.close(fd)
        raise Refused(
            f"{path} is open to others; a snapshot holds everything the volume does",
            hint=f"chown {os.geteuid()} {path} && chmod 700 {path}",
        )
    return fd
