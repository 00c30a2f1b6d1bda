"""Who stands on the wire: a relay between two agents that changes, keeps, repeats or mixes what passes; and a listener that only hears."""

import contextlib
import ctypes
import socket
import struct
import threading

ETH_P_ALL = 3
SOL_PACKET, PACKET_STATISTICS, SO_RCVBUFFORCE = 263, 6, 33
CLONE_NEWNET = 0x40000000


class Middle:
    """A relay to (host, port). on_open(number) -> bytes that the far end is sent first. change(number, bytes) -> bytes for the far end; back(number,
    bytes) -> bytes for the near one; None ends the connection. `recorded[number]`: what the near end sent."""

    def __init__(self, host, port, *, on_open=None, change=None, back=None):
        self.target, self.on_open, self.change, self.back = (host, port), on_open, change, back
        self.recorded, self.opened = {}, 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._ends, self._threads = [], []

    def __enter__(self):
        self._start(self._accept)
        return self

    def __exit__(self, *_exception):
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def cut(self):
        for end in list(self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _start(self, function, *arguments):
        self._threads.append(threading.Thread(target=function, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self):
        while True:
            try:
                near, _address = self._listening.accept()
            except OSError:
                return
            number, self.opened = self.opened, self.opened + 1
            self.recorded[number] = bytearray()
            try:
                far = socket.create_connection(self.target, 5)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            self._ends += [near, far]
            if self.on_open is not None:
                with contextlib.suppress(OSError):
                    far.sendall(self.on_open(number))
            self._start(self._pump, near, far, number, self.change, self.recorded[number])
            self._start(self._pump, far, near, number, self.back, None)

    @staticmethod
    def _pump(end, other, number, change, record):
        with contextlib.suppress(OSError):
            while data := end.recv(1 << 16):
                if record is not None:
                    record += data
                if change is not None and (data := change(number, data)) is None:
                    break
                other.sendall(data)
        for each in (end, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


class Listener:
    """Every byte that TCP carries over `interface` of network namespace `space`, either way, in `heard`; `dropped`: packets that were missed."""

    def __init__(self, space, interface):
        self.heard, self.dropped, self._ended = bytearray(), 0, False
        self._socket = self._open(space, interface)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 128 << 20)
        self._thread = threading.Thread(target=self._listen, daemon=True)

    @staticmethod
    def _open(space, interface):
        made = []

        def make():
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/run/netns/{space}") as file:
                if libc.setns(file.fileno(), CLONE_NEWNET):  # this thread only, which ends
                    made.append(OSError(ctypes.get_errno(), "setns"))
                    return
            stream = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            stream.bind((interface, 0))
            made.append(stream)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if isinstance(made[0], OSError):
            raise made[0]
        return made[0]

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_exception):
        self.close()

    def close(self):
        self._ended = True
        self._thread.join(10)
        self.dropped = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        self._socket.close()

    def _listen(self):
        self._socket.settimeout(0.2)
        while True:
            try:
                data = self._socket.recv(1 << 17)
            except TimeoutError:
                if self._ended:
                    return
                continue
            except OSError:
                return
            self.heard += payload(data)


def payload(packet):
    """What TCP carries in an Ethernet frame; b"" if it is none."""
    if len(packet) < 34 or packet[12:14] != b"\x08\x00" or packet[23] != 6:
        return b""
    transport = 14 + (packet[14] & 15) * 4
    return packet[transport + (packet[transport + 12] >> 4) * 4 : 14 + int.from_bytes(packet[16:18], "big")]


def leaks(heard, secrets):
    """Names of those of `secrets` (name -> bytes) that are somewhere in what was heard."""
    return sorted(name for name, secret in secrets.items() if bytes(secret) in heard)

