"""The kernel's own NBD client, by generic netlink: /dev/nbdN over sockets on which data may be asked for at once.

Linux's include/uapi/linux/nbd-netlink.h and genetlink.h have the numbers. Needs the module nbd and CAP_SYS_ADMIN.
"""

import os
import socket
import struct

from qrep.errors import QrepError

HEADER = struct.Struct("=IHHIIBBH")  # nlmsghdr (length, type, flags, sequence, port), then genlmsghdr (command, version, reserved)
ATTRIBUTE = struct.Struct("=HH")
REQUEST, ACKNOWLEDGE = 1, 4
ERROR = 2  # type of a message
GENERIC, CONTROLLER, GET_FAMILY, FAMILY_ID, FAMILY_NAME = 16, 16, 3, 1, 2
CONNECT, DISCONNECT = 1, 2
INDEX, SIZE, BLOCK_SIZE, TIMEOUT, SERVER_FLAGS, CLIENT_FLAGS, SOCKETS = range(1, 8)
BACKEND = 10  # since Linux 5.14; sysfs shows it
SOCKET_ITEM, SOCKET_FD = 1, 1
NESTED = 1 << 15
TIMEOUT_S = 10
REQUEST_S = 60  # without an answer for so long the kernel gives a connection up


def _attribute(kind, data):
    packed = ATTRIBUTE.pack(ATTRIBUTE.size + len(data), kind) + data
    return packed + bytes(-len(packed) % 4)


def _attributes(data):
    found = {}
    while len(data) >= ATTRIBUTE.size:
        length, kind = ATTRIBUTE.unpack_from(data)
        if not ATTRIBUTE.size <= length <= len(data):
            break
        found[kind & 0x3FFF] = data[ATTRIBUTE.size : length]
        data = data[-(-length // 4) * 4 :]
    return found


class _Netlink:
    def __init__(self):
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, GENERIC)
        self._socket.settimeout(TIMEOUT_S)
        self._sequence = 0

    def ask(self, kind, command, attributes):
        """The attributes of the answer; {} when it was acknowledged only. Raises OSError."""
        self._sequence += 1
        body = b"".join(attributes)
        self._socket.send(HEADER.pack(HEADER.size + len(body), kind, REQUEST | ACKNOWLEDGE, self._sequence, 0, command, 1, 0) + body)
        answer = {}
        while True:
            data = self._socket.recv(1 << 16)
            while len(data) >= 16:
                length, message, _flags, sequence, _port = struct.unpack_from("=IHHII", data)
                if not 16 <= length <= len(data):
                    raise OSError(71, "netlink answers in a form that is not known")
                if message == ERROR and sequence == self._sequence:
                    (number,) = struct.unpack_from("=i", data, 16)
                    if number:
                        raise OSError(-number, os.strerror(-number))
                    return answer
                if sequence == self._sequence:
                    answer = _attributes(data[HEADER.size : length])
                data = data[-(-length // 4) * 4 :]

    def family(self):
        answer = self.ask(CONTROLLER, GET_FAMILY, [_attribute(FAMILY_NAME, b"nbd\0")])
        return struct.unpack_from("=H", answer[FAMILY_ID])[0]

    def close(self):
        self._socket.close()


def available():
    """Whether this kernel has its client loaded."""
    return os.path.isdir("/sys/module/nbd")


def backend(path):
    """What connect() was told of whose device it is; "" if nobody said or nothing is connected."""
    try:
        with open(f"/sys/block/{os.path.basename(path)}/backend") as file:
            return file.read().strip()
    except OSError:
        return ""


def connect(sockets, size, flags, block_size, whose):
    """The path of a new block device over connected sockets, which the kernel keeps. whose: a word to know it by again. Raises QrepError."""
    try:
        netlink = _Netlink()
    except OSError as err:
        raise QrepError(f"kernel nbd: {err.strerror}", code="no-kernel-nbd") from err
    try:
        items = b"".join(_attribute(SOCKET_ITEM | NESTED, _attribute(SOCKET_FD, struct.pack("=I", each.fileno()))) for each in sockets)
        answer = netlink.ask(netlink.family(), CONNECT, [
            _attribute(SIZE, struct.pack("=Q", size)), _attribute(BLOCK_SIZE, struct.pack("=Q", block_size)),
            _attribute(TIMEOUT, struct.pack("=Q", REQUEST_S)), _attribute(SERVER_FLAGS, struct.pack("=Q", flags)),
            _attribute(SOCKETS | NESTED, items), _attribute(BACKEND, whose.encode() + b"\0"),
        ])  # fmt: skip
        return f"/dev/nbd{struct.unpack_from('=I', answer[INDEX])[0]}"
    except (OSError, KeyError, struct.error) as err:
        raise QrepError(f"kernel nbd: {err}", hint="is the module nbd loaded?", code="no-kernel-nbd") from err
    finally:
        netlink.close()


def disconnect(path):
    """Take the device away. Raises QrepError."""
    index = int(path.removeprefix("/dev/nbd"))
    try:
        netlink = _Netlink()
        try:
            netlink.ask(netlink.family(), DISCONNECT, [_attribute(INDEX, struct.pack("=I", index))])
        finally:
            netlink.close()
    except (OSError, KeyError, struct.error) as err:
        raise QrepError(f"{path}: {err}", code="no-kernel-nbd") from err
