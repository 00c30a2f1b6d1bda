"""What each step of a run costs on this machine, in busy core-seconds per GB (/proc/stat: kernel threads count, and so does whatever else runs), and the
rate that its CPUs allow a chain of them: cores / sum of the steps. Every bench that judges by it measures the steps in its own rounds.
"""

import os
import socket
import ssl
import threading
import time

from measure import FULL, GIB, MIB, busy_seconds, fio, huge_pages
from ratios import huge_memory

from qrep._native import hasher
from qrep.protocol import unpaced

LEAF, GRANULE, PIECE = 4096, 8 * MIB, MIB
TOTAL = GIB if FULL else 64 * MIB
TICK_S = 1 / os.sysconf("SC_CLK_TCK")  # what the kernel counts in: nothing is cheaper than one


def cost(function, size):
    """Busy core-seconds per GB of `size` bytes that function() moves."""
    before = busy_seconds()
    function()
    return max(busy_seconds() - before, TICK_S) / (size / 1e9)


def device_cost(device, direction, size):
    """Of reading or writing the first `size` bytes of a device as fio does, with huge pages if there are some; what fio needs to start is not part of it."""
    huge, passes = huge_pages() > 0, 2 if FULL else 1
    start = cost(lambda: fio(device, direction, GRANULE, 2, size=GRANULE, huge=huge, passes=1), 1e9)
    whole = cost(lambda: fio(device, direction, GRANULE, 2, size=size, huge=huge, passes=passes), 1e9)
    return max(whole - start, TICK_S) / (passes * size / 1e9)


def hash_cost(hash_granule):
    """Of hashing memory that is not in the cache, by the thread's own time. hash_granule(memory, offset)."""
    memory = huge_memory(min(TOTAL, 128 * MIB))
    started = time.thread_time()
    for start in range(0, TOTAL, GRANULE):
        at = start % len(memory)
        hash_granule(memory[at : at + GRANULE], start)
    return max(time.thread_time() - started, TICK_S) / (TOTAL / 1e9)


def own_hash_cost():
    leaves = bytearray(GRANULE // LEAF * 32)
    return hash_cost(lambda memory, start: hasher.subtree(memory, start, LEAF, leaves))


def packaged_hash_cost():
    import blake3

    return hash_cost(lambda memory, _start: blake3.blake3(memory, max_threads=1).digest())


def connected():
    """Two ends over loopback, cubic: bbr halves it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = unpaced.connect(listening.getsockname())
        far, _ = listening.accept()
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
    return near, far


def carry(size, near, far, near_side=lambda end: end, far_side=lambda end: end):
    """`size` bytes from one end to the other, in pieces; the sides are wrapped in their own threads, which close them."""
    def receive():
        with far_side(far) as stream:
            buffer, left = bytearray(PIECE), size
            while left:
                got = stream.recv_into(buffer)
                if not got:
                    raise ConnectionError(f"the stream ended with {left} bytes to come")
                left -= got

    receiver = threading.Thread(target=receive)
    receiver.start()
    with near_side(near) as stream:
        piece = os.urandom(PIECE)
        for _ in range(size // PIECE):
            stream.sendall(piece)
        receiver.join()


def tcp_cost(connections=2):
    """Of a plain loop of send and receive, both ends here."""
    def send():
        threads = [threading.Thread(target=carry, args=(TOTAL // connections, *connected())) for _ in range(connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return cost(send, TOTAL)


def tls_cost(identity):
    """The same through one TLS 1.3 connection; OpenSSL works without the GIL. identity: certificate_path, key_path."""
    server, client = (ssl.SSLContext(side) for side in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT))
    server.load_cert_chain(identity.certificate_path, identity.key_path)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    near, far = connected()
    return cost(lambda: carry(TOTAL, near, far, client.wrap_socket, lambda end: server.wrap_socket(end, server_side=True)), TOTAL)


def allowed(*steps):
    """Bytes per second that the cores of this machine allow a chain of these."""
    return os.cpu_count() / sum(steps) * 1e9
