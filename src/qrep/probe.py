"""What this machine offers the data plane, found by trying it: the facts behind `qrep probe`. Nothing here is printed or kept."""

import errno
import os
import platform
import resource
import socket
from pathlib import Path

from qrep import kerneltls
from qrep._native import _uring_probe, hasher, sandbox
from qrep._native.ring import COPIED, NOTIFY, Ring, explain

ffi, lib = _uring_probe.ffi, _uring_probe.lib

# name -> flags to try; DEFER_TASKRUN is refused by the kernel without SINGLE_ISSUER
SETUP_FLAGS = {
    "SINGLE_ISSUER": lib.IORING_SETUP_SINGLE_ISSUER,
    "DEFER_TASKRUN": lib.IORING_SETUP_SINGLE_ISSUER | lib.IORING_SETUP_DEFER_TASKRUN,
    "COOP_TASKRUN": lib.IORING_SETUP_COOP_TASKRUN,
    "R_DISABLED": lib.IORING_SETUP_R_DISABLED,
}
FEATURES = ("EXT_ARG", "NODROP", "FAST_POLL", "RSRC_TAGS")
OPCODES = (
    "READ", "WRITE", "READ_FIXED", "WRITE_FIXED", "FSYNC", "FALLOCATE", "SENDMSG", "RECVMSG", "SEND_ZC", "SENDMSG_ZC", "POLL_ADD",
)
# What buffers are tried with: more than the 8 MiB that RLIMIT_MEMLOCK grants by default, as a lane's arena is.
REGISTERED_SIZE = 16 << 20


def probe():
    """Everything as one dict of plain values, ready for JSON. Opens and closes rings and a loopback connection.

    Keys: kernel, machine, cpus, memlock_limit (bytes, None: unlimited), huge_pages (always, madvise, never, None: not there),
    sandbox (for the agent's network process: {"seccomp": bool, "landlock": version, 0: none}), hash_kernel, io_uring (see probe_uring),
    zero_copy (loopback: "copied", "zero-copy" or why not), kernel_tls ({"available": bool, "why": why it is not, or None}), ring (backend, why).
    """
    uring = probe_uring()
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memlock_limit": memlock_limit(),
        "huge_pages": huge_pages(),
        "hash_kernel": hasher.isa(),
        "io_uring": uring,
        "zero_copy": {"loopback": zero_copy_on_loopback() if uring["available"] else uring["reason"]},
        "kernel_tls": kernel_tls(),
        "ring": ring_in_use(),
        "sandbox": sandbox.kernel(),
    }


def kernel_tls():
    why = kerneltls.missing()
    return {"available": why is None, "why": why}


def probe_uring():
    """The feature table of io_uring.

    Keys: available, error (errno name or None), reason (a sentence), disabled_sysctl (0, 1, 2; None: no such sysctl), seccomp (bool: a filter is
    active), and if available setup_flags, features, opcodes (name -> bool), registered_files, registered_buffers (bool).
    """
    facts = {"disabled_sysctl": disabled_sysctl(), "seccomp": seccomp_filter_active()}
    error, features = try_ring(0)
    if error:
        return {"available": False, "error": errno.errorcode.get(error, str(error)), "reason": why_not(error, facts), **facts}
    with_probe = probe_ring()
    return {
        "available": True,
        "error": None,
        "reason": explain(0),
        **facts,
        "setup_flags": {name: try_ring(flags)[0] == 0 for name, flags in SETUP_FLAGS.items()},
        "features": {name: bool(features & getattr(lib, f"IORING_FEAT_{name}")) for name in FEATURES},
        **with_probe,
    }


def try_ring(flags):
    """Open a small ring with these flags and close it: (0, features) or (errno, 0)."""
    ring, params = ffi.new("struct io_uring *"), ffi.new("struct io_uring_params *")
    params.flags = flags
    rc = lib.io_uring_queue_init_params(4, ring, params)
    if rc < 0:
        return -rc, 0
    lib.io_uring_queue_exit(ring)
    return 0, params.features


def probe_ring():
    """What one ring can do: opcodes, registered files and registered buffers."""
    ring, params = ffi.new("struct io_uring *"), ffi.new("struct io_uring_params *")
    rc = lib.io_uring_queue_init_params(4, ring, params)
    if rc < 0:
        raise OSError(-rc, explain(rc))
    try:
        table = lib.io_uring_get_probe_ring(ring)
        if table == ffi.NULL:
            raise OSError(errno.ENOSYS, "this kernel's io_uring cannot be asked what it can do; Linux 5.6 or later is needed")
        opcodes = {name: bool(lib.io_uring_opcode_supported(table, getattr(lib, f"IORING_OP_{name}"))) for name in OPCODES}
        lib.io_uring_free_probe(table)
        memory = ffi.new("char[]", REGISTERED_SIZE)
        region = ffi.new("struct iovec *", {"iov_base": memory, "iov_len": REGISTERED_SIZE})
        with open(os.devnull, "rb") as null:
            files = lib.io_uring_register_files(ring, [null.fileno()], 1) == 0
        return {"opcodes": opcodes, "registered_files": files, "registered_buffers": lib.io_uring_register_buffers(ring, region, 1) == 0}
    finally:
        lib.io_uring_queue_exit(ring)


def why_not(error, facts):
    """The cause in a sentence. EPERM has several; the sysctl and the seccomp state tell them apart."""
    if error == errno.EPERM and facts["disabled_sysctl"] == 2:
        return "io_uring is switched off for everyone: sysctl kernel.io_uring_disabled is 2; set it to 0"
    if error == errno.EPERM and facts["disabled_sysctl"] == 1 and os.geteuid() != 0:
        return "io_uring is for privileged processes only: sysctl kernel.io_uring_disabled is 1; run as root or set it to 0"
    if error in (errno.EPERM, errno.ENOSYS) and facts["seccomp"]:
        return "a seccomp filter, usually of a container, forbids io_uring: allow io_uring_setup, io_uring_enter and io_uring_register"
    return explain(error)


def ring_in_use():
    """The backend that a run started now would use, and why."""
    wanted = os.environ.get("QREP_RING")
    try:
        with Ring("auto", 4) as ring:
            backend, fallback = ring.backend, ring.fallback
    except OSError as err:
        return {"backend": None, "why": f"QREP_RING={wanted} asks for it, but: {explain(err.errno)}" if wanted else explain(err.errno)}
    if wanted:
        return {"backend": backend, "why": f"QREP_RING={wanted} asks for it"}
    return {"backend": backend, "why": explain(fallback)}


def zero_copy_on_loopback():
    """Send 1 MiB without copying to ourselves: "copied", "zero-copy", or "plain" where kernel or socket do not know it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    size = 1 << 20
    with ours, theirs, Ring("uring", 4) as ring:
        ring.register_files([ours, theirs])
        ring.start_receive(1, [bytearray(size)], 1)
        ring.start_send(0, [bytes(size)], 0, zero_copy=True)
        flags = [event[2] for _ in iter(lambda: ring.in_flight, 0) for event in ring.wait()]
    notified = [each for each in flags if each & NOTIFY]
    if not notified:
        return "plain"
    return "copied" if notified[0] & COPIED else "zero-copy"


def memlock_limit():
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


def huge_pages():
    """The mode of transparent huge pages, the bracketed word of the kernel's list."""
    try:
        modes = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except FileNotFoundError:
        return None
    return modes[modes.index("[") + 1 : modes.index("]")]


def disabled_sysctl():
    try:
        return int(Path("/proc/sys/kernel/io_uring_disabled").read_text())
    except FileNotFoundError:
        return None


def seccomp_filter_active():
    status = Path("/proc/self/status").read_text()
    return any(line.split() == ["Seccomp:", "2"] for line in status.splitlines())
