"""What a process can still do after it gave up its rights: each attempt in a process of its own, from the kernel's mouth."""

import json
import subprocess
import sys
import textwrap

import pytest

# What a stranger who has taken the process over would try next. Each is a line of Python that must raise OSError or PermissionError.
FORBIDDEN = {
    "read a file": "os.open('/etc/passwd', os.O_RDONLY)",
    "read a file it had a descriptor beside": "os.open('passwd', os.O_RDONLY, dir_fd=before)",
    "read a file of its own root": "os.open('/', os.O_RDONLY)",
    "write a file": "os.open('/tmp/x', os.O_WRONLY | os.O_CREAT)",
    "look at a file": "os.stat('/etc/shadow')",
    "list a directory": "os.listdir('/')",
    "make a directory": "os.mkdir('/x')",
    "remove a file": "os.unlink('/tmp/x')",
    "make a device": "os.mknod('/x', 0o600 | stat.S_IFBLK, os.makedev(7, 0))",
    "run a program": "os.execv('/bin/sh', ['sh'])",
    "make a process": "os.fork()",
    "trace another process": "call(SYS['ptrace'], 16, os.getppid())",
    "read another process": "call(SYS['process_vm_readv'], os.getppid(), 0, 0, 0, 0, 0)",
    "end another process": "os.kill(os.getppid(), 9)",
    "become root again": "os.setresuid(0, 0, 0)",
    "take back a capability": "call(SYS['capset'], 0, 0)",
    "make an io_uring": "call(425, 4, 0)",
    "mount something": "call(SYS['mount'], 0, 0, 0, 0, 0)",
    "leave its root": "os.chroot('..')",
    "a namespace of its own": "call(SYS['unshare'], 0x10000000)",
    "a program for the kernel": "call(SYS['bpf'], 0, 0, 0)",
    "a key of the kernel's": "call(SYS['keyctl'], 0, 0, 0)",
    "a module": "call(SYS['finit_module'], 0, 0, 0)",
    "another kind of socket": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "a raw socket": "socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)",
    "a protocol whose module the kernel would load": "socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)",
    "a signal to another process by way of a socket": "fcntl.fcntl(before, fcntl.F_SETOWN, os.getpid())",
    "which signal that is": "fcntl.fcntl(before, fcntl.F_SETSIG, 9)",
    "a packet socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)",
    "a unix socket of someone's": "socket.socket(socket.AF_UNIX)",
    "memory that can be run": "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)",
    "a file in memory": "os.memfd_create('x')",
    "another host name": "socket.sethostname('x')",
    "another clock": "time.clock_settime(time.CLOCK_REALTIME, 0)",
    "more descriptors": "resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 16, 1 << 16))",
}
NUMBERS = {
    "x86_64": {"ptrace": 101, "process_vm_readv": 310, "capset": 126, "mount": 165, "unshare": 272, "bpf": 321, "keyctl": 250, "finit_module": 313},
    "aarch64": {"ptrace": 117, "process_vm_readv": 270, "capset": 91, "mount": 40, "unshare": 97, "bpf": 280, "keyctl": 219, "finit_module": 273},
}  # fmt: skip

CHILD = """
import ctypes, fcntl, json, mmap, os, platform, resource, socket, stat, sys, threading, time
from qrep._native import sandbox
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")
SYS = NUMBERS.get(platform.machine(), {})
"x".encode("idna")
before = os.open('/etc', os.O_RDONLY | os.O_DIRECTORY)
root = os.geteuid() == 0
def status():
    with open('/proc/self/status') as file:
        return file.read()
status()
if UNPRIVILEGED:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    root = False
given = os.memfd_create('given')
os.write(given, b'given')
IN_FORCE = sandbox.enter(files=64, uid=65534 if root else 0, gid=65534 if root else 0, empty_root=BASE if root else None, storage=STORAGE)
"""


def sandboxed(code, base, unprivileged=False, storage=False):
    """Run code after sandbox.enter() in a new interpreter; the JSON it prints. storage: as of the servers of attachments."""
    setup = CHILD.replace("STORAGE", str(storage)).replace("NUMBERS.get", f"{NUMBERS!r}.get").replace("BASE", repr(str(base))).replace("UNPRIVILEGED", str(unprivileged))
    result = subprocess.run(
        [sys.executable, "-c", setup + textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


TRY_ALL = f"""
    found = {{}}
    for name, line in {FORBIDDEN!r}.items():
        try:
            eval(line)
            found[name] = "allowed"
        except OSError as err:
            found[name] = err.errno
        except ValueError as err:
            found[name] = str(err)
    print(json.dumps([IN_FORCE, found]))
"""


@pytest.fixture
def base(memory_dir):
    memory_dir.chmod(0o755)
    return memory_dir


@pytest.mark.root
def test_nothing_that_reaches_beyond_its_sockets_is_possible(base):
    in_force, found = sandboxed(TRY_ALL, base)
    assert in_force["unprivileged"] and in_force["empty_root"]
    assert {name for name, error in found.items() if error == "allowed"} == set()
    assert all(error in (1, 13) or "not allowed" in str(error) for error in found.values()), found  # EPERM, EACCES
    assert list(base.iterdir()) == [], "the empty root leaves nothing behind"


@pytest.mark.root
def test_a_server_of_storage_can_do_no_more_and_makes_no_socket_either(base):
    forbidden = FORBIDDEN | {
        "a socket": "socket.socket()", "a pair of them": "socket.socketpair()", "a connection": "socket.create_connection(('127.0.0.1', 1))",
    }  # fmt: skip
    _in_force, found = sandboxed(TRY_ALL.replace(repr(FORBIDDEN), repr(forbidden)), base, storage=True)
    assert len(found) == len(FORBIDDEN) + 3 and "allowed" not in found.values(), found
    code = """
        os.pwrite(given, b"new", 0)
        os.fdatasync(given)
        print(json.dumps([os.pread(given, 5, 0).decode(), os.preadv(given, [bytearray(3)], 0), os.lseek(given, 0, os.SEEK_END)]))
    """
    assert sandboxed(code, base, storage=True) == ["newen", 3, 5]


@pytest.mark.root
def test_without_root_it_is_the_same_but_for_the_user_and_the_root_directory(base):
    in_force, found = sandboxed(TRY_ALL, base, unprivileged=True)
    assert not in_force["unprivileged"] and not in_force["empty_root"]
    assert {name for name, error in found.items() if error == "allowed"} == set()


def test_what_a_relay_needs_goes_on(base):
    code = """
        done = []
        thread = threading.Thread(target=lambda: done.append("thread")); thread.start(); thread.join()
        near, far = socket.socketpair()
        near.sendall(b"x"); done.append(far.recv(1).decode())
        server = socket.socket(); server.bind(("127.0.0.1", 0)); server.listen(1)
        client = socket.create_connection(server.getsockname(), 5, ("127.0.0.1", 0))
        accepted, _ = server.accept()
        socket.send_fds(near, [b"f"], [accepted.fileno()])
        _, (passed,), _, _ = socket.recv_fds(far, 1, 1)
        client.sendall(b"over"); done.append(os.read(passed, 4).decode())
        done.append(len(bytes(64 << 20)) >> 20)  # memory
        time.sleep(0.01); done.append(len(os.urandom(4)))
        print(json.dumps(done))
    """
    assert sandboxed(code, base) == ["thread", "x", "over", 64, 4]


def test_it_says_what_this_machine_has():
    from qrep._native import sandbox

    found = sandbox.kernel()
    assert isinstance(found["seccomp"], bool) and found["landlock"] >= 0


@pytest.mark.root
def test_a_part_that_does_not_work_is_named_and_not_passed_over(base):
    code = """
        import json, os
        from qrep._native import sandbox
        try:
            sandbox.enter(files=64, uid=65534, gid=65534, empty_root="/nowhere")
        except OSError as err:
            print(json.dumps(str(err)))
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=60)
    assert "empty root directory: No such file or directory" in json.loads(result.stdout)
