"""What the ring does where the machine refuses: no io_uring, no locked memory. Each case in a process of its own."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

SECCOMP = """
import ctypes, struct
def forbid_io_uring(number):
    # load the system call's number; io_uring_setup (425 everywhere) gets `number`, all else goes on
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x00050000 | number), (0x06, 0, 0, 0x7FFF0000)]
    program = b"".join(struct.pack("HBBI", *line) for line in code)
    buffer = ctypes.create_string_buffer(program)
    fprog = struct.pack("HxxxxxxP", len(code), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    prctl = libc.prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_ulong]
    assert libc.prctl(38, 1, None, 0, 0) == 0, "no_new_privs"
    assert prctl(22, 2, fprog, 0, 0) == 0, "seccomp"
"""


def run_python(code, env=None):
    """Run code in a new interpreter; the JSON that it prints."""
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=60,
                            env={**os.environ, **(env or {})})
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(("number", "name"), [(1, "EPERM"), (38, "ENOSYS")])
def test_where_seccomp_forbids_io_uring_threads_do_the_work_and_the_probe_says_why(number, name, tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 8192)
    code = SECCOMP + textwrap.dedent(f"""
        import json
        from qrep._native.ring import Ring
        from qrep.probe import probe
        forbid_io_uring({number})
        try:
            Ring("uring")
        except OSError as err:
            asked = err.errno
        with Ring() as ring, open({str(tmp_path / "file")!r}, "rb") as plain:
            ring.register_files([plain])
            buffer = bytearray(8192)
            print(json.dumps([asked, ring.backend, ring.fallback, ring.read(0, buffer, 0), probe()]))
    """)
    asked, backend, fallback, count, facts = run_python(code, {"QREP_RING": ""})
    assert (asked, backend, fallback, count) == (number, "threads", number, 8192)
    assert facts["io_uring"]["available"] is False
    assert facts["io_uring"]["error"] == name
    assert "seccomp" in facts["io_uring"]["reason"]
    assert facts["ring"]["backend"] == "threads"


def test_the_environment_chooses_the_backend_and_a_wrong_name_is_refused():
    code = "import json; from qrep._native.ring import Ring; print(json.dumps(Ring().backend))"
    assert run_python(code, {"QREP_RING": "threads"}) == "threads"
    assert run_python(code, {"QREP_RING": "threads1"}) == "threads"
    with pytest.raises(AssertionError, match="Invalid argument"):
        run_python(code, {"QREP_RING": "thread"})


@pytest.mark.root
def test_without_locked_memory_plain_buffers_are_used(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 8192)
    code = f"""
        import json, os, resource
        from qrep._native.buffers import BufferPool
        from qrep._native.ring import Ring
        plain = open({str(tmp_path / "file")!r}, "rb")
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (256 << 10, 256 << 10))  # room for the ring, not for the pool
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)  # root's CAP_IPC_LOCK would pass any limit
        pool = BufferPool(1 << 20, 2)
        with Ring("uring", 4) as ring:
            registered = ring.register_buffers(pool)
            ring.register_files([plain])
            slot = pool.lease_nowait()
            count = ring.read(0, slot, 0)
            print(json.dumps([registered, count, bytes(slot)[:8192] == b"x" * 8192]))
    """
    assert run_python(code) == [False, 8192, True]
