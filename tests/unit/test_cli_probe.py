"""qrep probe: what is used and why comes first, also where io_uring is not allowed."""

from qrep.cli.system import probe_text

BASE = {
    "sandbox": {"seccomp": True, "landlock": 7},
    "kernel": "6.1.0", "machine": "x86_64", "cpus": 8, "memlock_limit": 8 << 20, "huge_pages": "madvise", "hash_kernel": "avx2",
    "zero_copy": {"loopback": "copied"}, "kernel_tls": {"available": False, "why": "this kernel has no TLS"},
}  # fmt: skip


def test_the_backend_in_use_and_its_reason_are_named():
    reason = "io_uring is switched off (kernel.io_uring_disabled = 2)"
    text = probe_text(BASE | {"io_uring": {"available": False, "reason": reason}, "ring": {"backend": "threads", "why": reason}})
    assert f"requests        threads: {reason}" in text
    assert "registered buffers  no" in text


def test_every_feature_is_a_line_of_the_table():
    uring = {
        "available": True, "setup_flags": {"SINGLE_ISSUER": True}, "features": {}, "opcodes": {"SEND_ZC": False},
        "registered_files": True, "registered_buffers": True,
    }  # fmt: skip
    lines = probe_text(BASE | {"io_uring": uring, "ring": {"backend": "uring", "why": "it is there"}}).splitlines()
    assert "requests        io_uring: it is there" in lines
    assert [line.split() for line in lines[-4:]] == [
        ["SINGLE_ISSUER", "yes"], ["SEND_ZC", "no"], ["registered", "files", "yes"], ["registered", "buffers", "yes"],
    ]  # fmt: skip


def test_a_machine_without_seccomp_is_told_that_the_agent_will_not_start():
    from qrep.cli.system import sandbox_text

    assert sandbox_text({"seccomp": True, "landlock": 7}) == "seccomp, Landlock 7"
    assert "no Landlock" in sandbox_text({"seccomp": True, "landlock": 0})
    assert "will not start" in sandbox_text({"seccomp": False, "landlock": 0})
