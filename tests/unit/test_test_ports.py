"""The ports of test agents: no two test processes of one machine may meet at one."""

import socket
import subprocess
import sys
from pathlib import Path

import agents


def test_another_test_process_never_takes_a_port_of_this_one_nor_one_that_somebody_listens_on():
    own = {agents.free_port() for _ in range(agents.PORTS_OF_ONE)}
    script = "import agents; print(*(agents.free_port() for _ in range(agents.PORTS_OF_ONE)))"
    place = str(Path(agents.__file__).parent)
    other = subprocess.run([sys.executable, "-c", script], cwd=place, capture_output=True, text=True, check=True)
    assert not own & set(map(int, other.stdout.split()))
    with socket.create_server(("127.0.0.1", agents.free_port())) as taken:
        assert taken.getsockname()[1] not in {agents.free_port() for _ in range(agents.PORTS_OF_ONE)}
