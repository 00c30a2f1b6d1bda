"""Where the demo takes place: a directory, loop devices and mounts of its own, all of which go away with it."""

import contextlib
import os
import shutil
import subprocess
import tempfile

from qrep import units
from qrep.errors import QrepError, Refused

GIB = 1 << 30
NEEDED = 3 * GIB  # bytes free: two copies of the data, what changes of them, undo
SPARSE = GIB  # of the volume
TOOLS = {
    "losetup": "mount", "mount": "mount", "mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs", "b3sum": "b3sum", "fallocate": "util-linux", "ip": "iproute2",
}  # fmt: skip
TOOLS_OF_ALL = TOOLS | {"nbdfuse": "libnbd-bin", "fusermount3": "fuse3"}  # what `--all` needs


def run(*command, check=True):
    """Run a tool; its stdout. Raises QrepError with what it said."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise QrepError(f"{' '.join(words)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


def b3sum(path):
    return run("b3sum", "--no-names", path)


def check_machine(tools=TOOLS):
    """Raise Refused with the way out if this machine cannot show it."""
    if os.geteuid() != 0:
        raise Refused("the demo makes loop devices and mounts them: it needs root", hint="sudo qrep demo", code="not-root")
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        packages = " ".join(sorted({tools[tool] for tool in missing}))
        raise Refused(f"missing: {', '.join(missing)}", hint=f"apt-get install {packages}", code="missing-tools")
    if not os.path.exists("/dev/loop-control"):
        raise Refused("there are no loop devices here (no /dev/loop-control)", hint="run it on a machine of its own, not in a container", code="no-loop")


def _memory_available():
    with open("/proc/meminfo") as file:
        facts = dict(line.split(":", 1) for line in file)
    return int(facts["MemAvailable"].split()[0]) * 1024


def choose_parent():
    """tmpfs if there is plenty of memory, else /var/tmp."""
    for parent in ("/dev/shm", "/var/tmp"):
        with contextlib.suppress(FileNotFoundError):
            room = shutil.disk_usage(parent).free
            if parent == "/dev/shm":
                room = min(room, _memory_available())
            if room >= NEEDED:
                return parent
    raise Refused(
        f"neither /dev/shm nor /var/tmp has {units.format_size(NEEDED)} free", hint="free some space in one of them", code="no-room"
    )


class Cables:
    """Two hosts as network namespaces, joined by two cables: 10.97.1.x and 10.97.2.x; site-a is .1, site-b is .2."""

    SITES, COUNT = ("site-a", "site-b"), 2

    def __init__(self, place):
        self.place = place
        self._names = {site: f"qrep-demo-{os.getpid()}-{site[-1]}" for site in self.SITES}
        for name in self._names.values():
            place.command("ip", "netns", "add", name)
            place.after_all(f"ip netns delete {name}", run, "ip", "netns", "delete", name)
        a, b = self._names.values()
        for number in range(1, self.COUNT + 1):
            cable = f"cable{number}"
            place.command("ip", "link", "add", cable, "netns", a, "type", "veth", "peer", "name", cable, "netns", b)
            for host, site in enumerate(self.SITES, 1):
                run(*self.inside(site), "ip", "address", "add", f"10.97.{number}.{host}/24", "dev", cable)
                run(*self.inside(site), "ip", "link", "set", cable, "up")
        for site in self.SITES:
            run(*self.inside(site), "ip", "link", "set", "lo", "up")

    def inside(self, site):
        """The command before a command that is to run on that host."""
        return ["ip", "netns", "exec", self._names[site]]

    def addresses(self, site):
        host = self.SITES.index(site) + 1
        return [f"10.97.{number}.{host}" for number in range(1, self.COUNT + 1)]

    def set(self, number, word):
        """Pull a cable ("down") or plug it in again ("up")."""
        self.place.command(*self.inside("site-b"), "ip", "link", "set", f"cable{number}", word)

    def carried(self, site):
        """Bytes that this host has put on its cables, as the kernel counts them: all headers included."""
        statistics = "/sys/class/net/cable{}/statistics/tx_bytes"
        words = run(*self.inside(site), "cat", *(statistics.format(number) for number in range(1, self.COUNT + 1)))
        return sum(int(word) for word in words.split())


class Place:
    """say(line): told of every command. In `with`; keep: leave everything where it is."""

    def __init__(self, say, keep=False):
        self.say, self.keep = say, keep
        self._undo = contextlib.ExitStack()
        self._loops = set()
        self._ways_out = []  # shell commands that undo what --keep left, first made first

    def __enter__(self):
        self.path = tempfile.mkdtemp(prefix="qrep-demo-", dir=choose_parent())
        self._undo.callback(shutil.rmtree, self.path, ignore_errors=True)
        return self

    def __exit__(self, *exception):
        if self.keep:
            self._undo.pop_all()
        else:
            self._undo.close()

    def after(self, action, *arguments):
        """Do something at the end, last asked first done; not with --keep."""
        self._undo.callback(action, *arguments)

    def after_all(self, way_out, action, *arguments):
        """As after(), with the shell command for --keep."""
        self.after(action, *arguments)
        self._ways_out.append(way_out)

    def ways_out(self):
        """Shell commands that remove what --keep leaves, once the agents were stopped."""
        return [*reversed(self._ways_out), f"rm -r {self.path}"]

    def command(self, *command):
        """Run a tool and show it as a person would have typed it."""
        self.say(f"# {' '.join(str(word) for word in command)}")
        return run(*command)

    def image(self, name, size):
        path = os.path.join(self.path, name)
        self.command("truncate", "-s", units.exact_size(size).removesuffix("iB"), path)
        return path

    def loop(self, image, *options):
        """A loop device over an image file."""
        device = self.command("losetup", "--find", "--show", *options, image)
        self._loops.add(device)
        self._undo.callback(self._detach_if_attached, device)
        self._ways_out.append(f"losetup -d {device}")
        return device

    def detach(self, device):
        """Let a loop device go before the end. Its number may be somebody else's from then on."""
        self.command("losetup", "--detach", device)
        self._loops.discard(device)
        self._ways_out.remove(f"losetup -d {device}")

    def _detach_if_attached(self, device):
        if device in self._loops:
            self._loops.discard(device)
            run("losetup", "--detach", device, check=False)

    def mount(self, device, name, *options):
        point = os.path.join(self.path, name)
        os.mkdir(point)
        self.command("mount", *options, device, point)
        self._undo.callback(self._unmount_if_mounted, point)
        self._ways_out.append(f"umount {point}")
        return point

    @staticmethod
    def _unmount_if_mounted(point):
        if os.path.ismount(point):
            run("umount", "--lazy", point, check=False)

    def unmount(self, point):
        self.command("umount", point)
        self._ways_out.remove(f"umount {point}")
        os.rmdir(point)


class Witness:
    """Keeps what was frozen: a hard link to each snapshot the agent makes, so that it can be hashed after the agent has let go of it."""

    def __init__(self, directory):
        self.snapshots = os.path.join(directory, ".qrep-snapshots")
        self.kept = os.path.join(directory, "witness")
        os.mkdir(self.kept, 0o700)

    def look(self):
        """Link what is there now. Called again and again while a run goes on."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.snapshots):
                with contextlib.suppress(FileExistsError, FileNotFoundError):
                    os.link(os.path.join(self.snapshots, name), os.path.join(self.kept, name))

    def newest(self):
        """Path of the last snapshot that was seen; the older ones are dropped."""
        paths = sorted((os.path.join(self.kept, name) for name in os.listdir(self.kept)), key=os.path.getmtime)
        if not paths:
            raise QrepError("no snapshot of the source was seen while the run went on")
        for path in paths[:-1]:
            os.unlink(path)
        return paths[-1]
