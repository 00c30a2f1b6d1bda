"""A machine with a stock Debian kernel, for what this machine's kernel has not: kernel TLS, device-mapper, nbd, ublk, netem.

QEMU without KVM boots Debian's kernel over an initramfs made here from Debian packages. The guest sees this machine's file system
read only (9p), with a layer of memory over it (overlayfs), so the checkout and its venv are there as they are; what it writes is gone
with it. It has no network but its own loopback.

    guest = Guest(directory)                       # gets the packages into `directory` once; raises Unavailable
    guest.check("uname -r", modules=["tls"])       # what it printed; a failure shows the console
    guest.pytest("tests/native/test_wire.py")      # these tests in there
    guest.check(..., drives=[image])               # an image file of ours that it may write: its /dev/vda

Without KVM everything in it takes ten times as long as here: little should run there. Nothing loads modules by itself, so each that is needed
is named; those it needs in turn are found.
"""

import dataclasses
import fcntl
import glob
import io
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

PACKAGES = "busybox-static", "linux-image-6.12-amd64"  # the second is a meta package: what it depends on is the kernel
KERNEL_TLS = "tls", "gcm", "ctr", "ghash_generic", "aes_generic", "seqiv", "aesni_intel"  # AES-GCM is asked for by name, so no dependency shows it
BASE_MODULES = "virtio_pci", "virtio_rng", "9pnet_virtio", "9p", "overlay"
ROOT = Path(__file__).resolve().parents[1]
MARK = "qrep-guest-exit:"
PYTEST = "-m", "pytest", "-q", "-rs", "-s", "-p", "no:cacheprovider"

INIT = """#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in $(cat /modules.order); do insmod /modules/$module || echo "insmod $module failed"; done
mkdir -p /host /layer /root
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /host || poweroff -f
mount -t tmpfs -o size=75% layer /layer; mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay /root || poweroff -f
for place in proc sys dev; do mount --move /$place /root/$place; done
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts pts /root/dev/pts; mount -t tmpfs shm /root/dev/shm; mount -t tmpfs tmp /root/tmp; mount -t tmpfs run /root/run
cp /command /root/run/guest-command
chroot /root /bin/bash -c 'ip link set lo up 2>/dev/null; exec /bin/bash /run/guest-command </dev/null 2>&1'
echo "MARK$?"
sync; poweroff -f
""".replace("MARK", MARK)


class Unavailable(Exception):
    """The packages cannot be had."""


@dataclasses.dataclass
class Result:
    """code: of the command, None if the guest ended without saying. output: all that its console said."""

    code: int | None
    output: str


class Guest:
    def __init__(self, directory):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self.directory / "lock", "w") as lock:  # closing it lets the next one in
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._unpack()
        (self.kernel,) = glob.glob(f"{self.directory}/root/boot/vmlinuz-*")
        self.version = self.kernel.partition("vmlinuz-")[2]
        self.modules = self.directory / "root" / "lib" / "modules" / self.version

    def _unpack(self):
        root = self.directory / "root"
        if root.exists():
            return
        kernel = re.search(r"Depends: (linux-image-\S+)", _apt(["apt-cache", "depends", PACKAGES[1]]))
        if kernel is None:
            raise Unavailable(f"the package sources have no {PACKAGES[1]}")
        _apt(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", PACKAGES[0], kernel[1]], self.directory)
        new = self.directory / "root.new"
        shutil.rmtree(new, ignore_errors=True)
        for package in self.directory.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, new], check=True)
            package.unlink()
        subprocess.run(["depmod", "-b", new, next((new / "lib" / "modules").iterdir()).name], check=True)
        new.rename(root)

    def _in_order(self, names):
        """The module files that `names` need, each after those it depends on. What is built in needs none."""
        depends, order = {}, []
        for line in (self.modules / "modules.dep").read_text().splitlines():
            path, _, needed = line.partition(":")
            depends[Path(path).name.split(".ko")[0].replace("-", "_")] = path, needed.split()
        for name in names:
            if name.replace("-", "_") not in depends:
                continue  # built in
            path, needed = depends[name.replace("-", "_")]
            order += [found for found in [*reversed(needed), path] if found not in order]
        return order

    def _initramfs(self, command, modules):
        """A cpio archive (newc) with busybox, the modules, and what is to be run."""
        archive = Archive()
        archive.add("init", INIT.encode(), 0o755)
        archive.add("command", command.encode(), 0o644)
        busybox = self.directory / "root" / "bin" / "busybox"
        archive.add("bin/busybox", busybox.read_bytes(), 0o755)
        for tool in "sh mount mkdir cat insmod poweroff echo sync cp chroot".split():
            archive.link(f"bin/{tool}", "busybox")
        names = []  # in the order to load them
        for path in self._in_order([*BASE_MODULES, *modules]):
            data = subprocess.run(["xz", "-dc", self.modules / path], capture_output=True, check=True).stdout
            names.append(Path(path).name.removesuffix(".xz"))
            archive.add(f"modules/{names[-1]}", data, 0o644)
        archive.add("modules.order", "\n".join(names).encode(), 0o644)
        for place in ("proc", "sys", "dev"):
            archive.directory(place)
        return archive.bytes()

    def run(self, command, *, modules=(), memory="2G", cpus=2, seconds=600, drives=()):
        """Boot, run `command` (a shell script) as root in a copy of this machine's file system, power off.

        drives: image files that become /dev/vda, /dev/vdb, ... in there; what is written there stays.
        """
        initramfs = self.directory / f"initramfs-{os.getpid()}"
        initramfs.write_bytes(self._initramfs(command, [*modules, *(["virtio_blk"] if drives else [])]))
        arguments = [
            "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(cpus), "-m", memory, "-nographic", "-no-reboot",
            "-nic", "none", "-kernel", self.kernel, "-initrd", initramfs, "-append", "console=ttyS0 quiet panic=-1 mitigations=off",
            "-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap", "-device", "virtio-rng-pci",
            *(word for drive in drives for word in ("-drive", f"file={drive},format=raw,if=virtio,cache=unsafe")),
        ]  # fmt: skip
        try:
            done = subprocess.run(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds)
            output = done.stdout.decode(errors="replace")
        except subprocess.TimeoutExpired as err:
            output = f"{(err.stdout or b'').decode(errors='replace')}\nit did not end in {seconds} s"
        finally:
            initramfs.unlink()
        found = re.search(rf"{MARK}(\d+)", output)
        return Result(int(found[1]) if found else None, output)

    def check(self, command, **options):
        """run() of what must succeed; its output."""
        result = self.run(command, **options)
        assert result.code == 0, f"{command}: exit {result.code}\n{result.output}"
        return result.output

    def pytest(self, *arguments, **options):
        """check() of tests of this checkout."""
        return self.check(self.python(*PYTEST, *arguments), **options)

    def pytest_result(self, *arguments, path=None, **options):
        """run() of tests of this checkout. path: as for python()."""
        return self.run(self.python(*PYTEST, *arguments, path=path), **options)

    @staticmethod
    def python(*arguments, path=None):
        """The script that starts the interpreter that runs us, in this checkout. path: its PYTHONPATH, ours if not told."""
        lines = [
            f"cd {shlex.quote(str(ROOT))}", f"export PATH={shlex.quote(os.environ['PATH'])}:/usr/sbin:/sbin QREP_GUEST=1",
            f"export PYTHONPATH={shlex.quote(os.environ.get('PYTHONPATH', '') if path is None else path)} PYTHONDONTWRITEBYTECODE=1",
            *([f"export QREP_SEED={shlex.quote(os.environ['QREP_SEED'])}"] if "QREP_SEED" in os.environ else []), shlex.join([sys.executable, *map(str, arguments)]),
        ]  # fmt: skip
        return "\n".join(lines)


def _apt(command, directory=None):
    """What it printed. Raises Unavailable: no network, no such package, no apt."""
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise Unavailable(f"{shlex.join(command)}: {err}") from err
    if done.returncode:
        raise Unavailable(f"{shlex.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


class Archive:
    """A newc cpio archive, as the kernel wants its initramfs."""

    def __init__(self):
        self._data, self._made, self._number = io.BytesIO(), set(), 0

    def _entry(self, name, mode, data=b""):
        self._number += 1
        fields = (self._number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        for part in (header, data):
            self._data.write(part + bytes(-len(part) % 4))

    def directory(self, name):
        if name and name not in self._made:
            self.directory(os.path.dirname(name))
            self._made.add(name)
            self._entry(name, stat.S_IFDIR | 0o755)

    def add(self, name, data, mode):
        self.directory(os.path.dirname(name))
        self._entry(name, stat.S_IFREG | mode, data)

    def link(self, name, target):
        self.directory(os.path.dirname(name))
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def bytes(self):
        self._entry("TRAILER!!!", 0)
        return self._data.getvalue()
