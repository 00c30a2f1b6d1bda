"""Kernel TLS: the kernel encrypts what is written to a TCP connection, with the keys that OpenSSL gave it after a handshake."""

import errno
import socket
import ssl
import struct

OP_ENABLE = getattr(ssl, "OP_ENABLE_KTLS", 8)  # Python names it from 3.12 on; OpenSSL 3.0 has it
TCP_ULP, SOL_TLS, TLS_TX = 31, 282, 1  # of linux/tcp.h, linux/socket.h and linux/tls.h
VERSION = struct.Struct("=HH")  # how struct tls_crypto_info begins: version, cipher
TLS_1_3, AES_GCM_256 = 0x0304, 52


def encrypts(stream):
    """Whether the kernel encrypts what is written to this TCP connection, as it says itself. Where it says anything else it does not."""
    try:
        answer = socket.socket.getsockopt(stream, SOL_TLS, TLS_TX, VERSION.size)
    except OSError:  # EBUSY: no keys; ENOPROTOOPT, EOPNOTSUPP: not even TLS
        return False
    return len(answer) == VERSION.size and VERSION.unpack(answer)[0] == TLS_1_3


def absent():
    """Why this kernel has no TLS, None if it has: its module is loaded by this question, where we may load modules."""
    with socket.socket() as unconnected:
        try:
            unconnected.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
        except OSError as err:
            if err.errno == errno.ENOTCONN:  # it is there, and wants a connection
                return None
            if err.errno == errno.ENOENT:
                return "this kernel has no TLS: its module tls is not there, or not loaded (modprobe tls)"
            return f"this kernel has no TLS: {err.strerror}"
    return None


def missing():
    """Why the kernel would not encrypt a connection here, tried over loopback; None if it would."""
    why = absent()
    if why is not None:
        return why
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as stream:
            stream.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
            # struct tls12_crypto_info_aes_gcm_256 with keys of zeroes: nothing is ever sent.
            stream.setsockopt(SOL_TLS, TLS_TX, VERSION.pack(TLS_1_3, AES_GCM_256) + bytes(8 + 32 + 4 + 8))
            return None if encrypts(stream) else "the kernel took keys and does not say that it encrypts"
    except OSError as err:
        if err.errno == errno.ENOENT:
            return "the kernel has TLS, but not the cipher gcm(aes) for it (modprobe gcm)"
        return f"kernel TLS cannot be tried: {err.strerror or err}"
