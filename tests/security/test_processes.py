"""What the process that faces the network asks of the kernel while it works, seen from outside."""

import re
import signal
import subprocess

import pytest
from agents import MIB, b3sum, wait_until
from machine import need_tool

pytestmark = [pytest.mark.root, pytest.mark.slow]
FORBIDDEN = {
    "open", "openat", "openat2", "creat", "execve", "execveat", "fork", "vfork", "clone3", "ptrace", "process_vm_readv", "process_vm_writev", "io_uring_setup",
    "io_uring_enter", "io_uring_register", "mount", "umount2", "chroot", "pivot_root", "setns", "unshare", "bpf", "kexec_load", "init_module", "finit_module",
    "unlink", "unlinkat", "rename", "renameat", "renameat2", "mkdir", "mkdirat", "link", "linkat", "symlink", "symlinkat", "chmod", "chown", "setuid", "setresuid",
    "setgid", "setresgid", "capset", "kill", "perf_event_open", "userfaultfd", "keyctl", "add_key", "request_key", "memfd_create",
}  # fmt: skip


def test_the_front_makes_no_call_that_reaches_beyond_its_sockets_in_a_whole_run(agents, loop_device, fill, tmp_path):
    """A run, a peer that is added, a stranger: at both ends, from the moment that the port is open."""
    need_tool("strace")
    source, target = loop_device(8 * MIB), loop_device(8 * MIB)
    fill(source, 8 * MIB)
    a, b = agents.pair(known=False)
    traced = []
    for agent in (a, b):
        pid, trace = agent.client().get("/node")["front"]["pid"], tmp_path / agent.name
        process = subprocess.Popen(["strace", "-f", "-qq", "-o", str(trace), "-p", str(pid)], stderr=subprocess.DEVNULL)
        traced.append((process, trace, pid))
        wait_until(lambda pid=pid: "TracerPid:\t0" not in open(f"/proc/{pid}/status").read())
    a.qrep("peer", "add", b.name, f"{b.host}:{b.port}", "-y")
    b.qrep("peer", "add", a.name, f"{a.host}:{a.port}", "-y")
    a.qrep("volume", "add", "db", source)
    b.qrep("volume", "add", "db", target, "--accept", "site-a")
    a.qrep("job", "create", "db", "--source", "db", "--target", "site-b:db")
    assert a.run()["root"] == b3sum(target)
    for process, trace, _pid in traced:
        process.send_signal(signal.SIGINT)
        process.wait(20)
        text = trace.read_text(errors="replace")
        called = re.findall(r"^\d+ +(?:<\.\.\. )?([a-z_0-9]+)[( ].*?(?:= (-?\d+)|<unfinished)", text, re.MULTILINE)
        assert {"recvfrom", "recvmsg", "sendto", "sendmsg"} & {name for name, _result in called}, "something was seen"
        assert [line for line in text.splitlines() if (found := re.match(r"\d+ +(?:<\.\.\. )?([a-z_0-9]+)[( ]", line)) and found[1] in FORBIDDEN and " = -1 E" not in line] == []
        assert not re.search(r"^\d+ +socket\((?!AF_INET)", text, re.MULTILINE), "sockets of the internet, and no others"
        assert not re.search(r"PROT_EXEC", text), "no memory is made executable"
