"""What no replication can pass: b3sum of the device, and what TCP carries by iperf3. The disk's is measure.fio."""

import contextlib
import json
import subprocess

from agents import free_port
from measure import Sample, tool

from peers import Program, ended_with, find

B3SUM, IPERF3 = Program("b3sum", "b3sum"), Program("iperf3", "iperf3")


def b3sum(device, size):
    """Bytes per second of hashing a device of `size` bytes, on all CPUs."""
    return tool([find("b3sum"), "--no-names", device]).sample(size)


@contextlib.contextmanager
def iperf3():
    """run(size, connections): bytes per second of that many TCP connections over loopback, with cubic, as ours has it."""
    port = free_port()
    command = [find("iperf3"), "--server", "--bind", "127.0.0.1", "--port", str(port), "--forceflush"]
    with ended_with(subprocess.Popen(command, stdout=subprocess.PIPE)) as server:
        for line in server.stdout:
            if b"listening" in line:
                break

        def run(size, connections=1):
            command = ["iperf3", "--client", "127.0.0.1", "--port", port, "--bytes", size, "--length", "1M", "--congestion", "cubic",
                       "--parallel", connections, "--json"]  # fmt: skip
            report = json.loads(tool(list(map(str, command)), keep_output=True).output)
            return Sample(report["end"]["sum_received"]["bits_per_second"] / 8)

        yield run
        server.stdout.close()
