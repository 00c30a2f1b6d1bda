"""An attachment as a block device: the kernel's NBD client where it is loaded, else nbdfuse and a loop device over the file it shows.

Each has: kind, path (of the device), facts() (what is written down, so that a later agent can take away what this one left), close().
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import time

from qrep import device, deviceusers, filesystems
from qrep.errors import QrepError, Refused
from qrep.nbd import kernel

TOOL_S = 30
APPEAR_S = 20  # for nbdfuse to show its file, and for a device that was taken away to be gone
LANES = 2  # sockets of the kernel's client
SECTOR = 512


def run(*command):
    """What a tool printed. Raises QrepError."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TOOL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise QrepError(f"{command[0]}: {err}", code="attach-device") from err
    if done.returncode:
        raise QrepError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}", code="attach-device")
    return done.stdout.strip()


class KernelDevice:
    kind = "nbd"

    def __init__(self, server, size, flags):
        sockets = [server.connect() for _ in range(LANES)]
        self.whose = f"qrep-{secrets.token_hex(8)}"
        try:
            self.path = kernel.connect(sockets, size, flags, SECTOR, self.whose)
        finally:
            for each in sockets:
                each.close()  # the kernel has its own

    def facts(self):
        return {"kind": self.kind, "path": self.path, "whose": self.whose}

    def close(self):
        """Unless somebody took it away by hand, and it is another's by now. Kernels before 5.14 do not say whose it is."""
        if kernel.backend(self.path) in (self.whose, ""):
            kernel.disconnect(self.path)


class FuseDevice:
    """directory: made here and removed again; address: of the unix socket."""

    kind = "nbdfuse"

    def __init__(self, directory, address, *, read_only):
        for tool, package in (("nbdfuse", "libnbd-bin"), ("losetup", "mount")):
            if shutil.which(tool) is None:
                raise Refused(
                    f"this kernel has no nbd loaded, and {tool} is not installed", code="no-nbd-client",
                    hint=f"modprobe nbd; or apt-get install {package}; or attach with --nbd and use the address",
                )  # fmt: skip
        self.path, self.directory, self._process = "", directory, None
        os.makedirs(directory, mode=0o700)
        file = os.path.join(directory, "disk")
        try:
            command = ["nbdfuse", *["--readonly"] * read_only, file, f"nbd+unix:///?socket={address}"]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True, cwd="/")
            self._wait_for(file)
            self.path = run("losetup", "--find", "--show", f"--sector-size={SECTOR}", *["--read-only"] * read_only, file)
        except BaseException:
            self.close()
            raise

    def _wait_for(self, file):
        deadline = time.monotonic() + APPEAR_S
        while not os.path.exists(file):
            if self._process.poll() is not None:
                raise QrepError(f"nbdfuse ended as it began (exit code {self._process.returncode}); is /dev/fuse there?", code="attach-device")
            if time.monotonic() > deadline:
                raise QrepError(f"nbdfuse shows nothing for {APPEAR_S} s", code="attach-device")
            time.sleep(0.02)

    def facts(self):
        return {"kind": self.kind, "path": self.path, "directory": self.directory}

    def close(self):
        """What can be taken away is. Raises QrepError."""
        take_away({"path": self.path, "directory": self.directory})
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(APPEAR_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def take_away(facts):
    """What an agent wrote down: the kernel's device, or a loop device and the nbdfuse below it. What is not there any more, or somebody else's by now,
    is no error. Raises QrepError."""
    path, directory = facts.get("path", ""), facts.get("directory", "")
    if is_there(facts):
        kernel.disconnect(path) if facts.get("whose") else run("losetup", "--detach", path)
        deadline = time.monotonic() + APPEAR_S
        while is_there(facts) and time.monotonic() < deadline:
            time.sleep(0.02)
    if directory and any(mount.point == os.path.realpath(directory) for mount in filesystems.mounts()):
        run("umount", "--lazy", directory)
    if directory:
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(directory)


def is_there(facts):
    """Whether the device that was written down is there and still the same: its name may be somebody else's by now."""
    path, directory, whose = facts.get("path", ""), facts.get("directory", ""), facts.get("whose", "")
    if whose:
        return kernel.backend(path) == whose
    file = os.path.join(directory, "disk")
    with contextlib.suppress(OSError):
        with open(f"/sys/block/{os.path.basename(path)}/loop/backing_file") as backing:
            return bool(directory) and backing.read().strip().removesuffix(" (deleted)") in (file, os.path.realpath(file))
    return False


def users_of(facts):
    """As users(), of what was written down."""
    return users(facts["path"]) if is_there(facts) else ""


def users(path):
    """Who uses a device, in words; "" if nobody does. It may be one whose server is gone."""
    try:
        number = os.stat(path).st_rdev
    except FileNotFoundError:
        return ""
    for mount in filesystems.mounts():
        if mount.source == path or mount.number == (os.major(number), os.minor(number)):
            return f"it is mounted on {mount.point}"
    with contextlib.suppress(OSError, QrepError):
        info = device.inspect(path)
        for user in deviceusers.users(info):
            return f"it is mounted on {user.what}" if user.kind == "mounted" else f"it is used as {user}"
        for process in deviceusers.processes(info):
            return f"it is open in {process}"
    return ""
