"""The bytes of the NBD protocol, newstyle, as the public protocol document numbers them. Big-endian. Nothing here does I/O."""

import struct

GREETING = struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 0b11)  # fixed newstyle, no zeroes
CLIENT_FLAGS = struct.Struct(">I")
FIXED_NEWSTYLE, NO_ZEROES = 1, 2

OPTION = struct.Struct(">QII")  # magic, option, length
OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY = struct.Struct(">QIII")  # magic, option, kind, length
OPTION_REPLY_MAGIC = 0x0003E889045565A9
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY = 1, 2, 3, 5, 6, 7, 8
ACK, SERVER, INFORMATION = 1, 2, 3
ERROR = 1 << 31
UNSUPPORTED, POLICY, INVALID, UNKNOWN, TOO_BIG = ERROR + 1, ERROR + 2, ERROR + 3, ERROR + 6, ERROR + 9
INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3
EXPORT = struct.Struct(">QH")  # size, transmission flags
EXPORT_NAME_ZEROES = 124

HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SEND_TRIM, SEND_WRITE_ZEROES, SEND_DF, CAN_MULTI_CONN = 1 << 5, 1 << 6, 1 << 7, 1 << 8

REQUEST = struct.Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
REQUEST_MAGIC = 0x25609513
READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
FUA, NO_HOLE, DF = 1, 2, 4
SIMPLE_REPLY = struct.Struct(">IIQ")  # magic, error, cookie
SIMPLE_REPLY_MAGIC = 0x67446698
CHUNK = struct.Struct(">IHHQI")  # magic, flags, kind, cookie, length
CHUNK_MAGIC = 0x668E33EF
CHUNK_DONE = 1
CHUNK_NONE, CHUNK_DATA, CHUNK_ERROR = 0, 1, (1 << 15) + 1
EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 12, 22, 28, 75, 95, 108

OPTION_MAX = 8 << 10  # bytes of an option that is read; a name has 4096 at most
REQUEST_MAX = 32 << 20  # bytes of a READ or WRITE
BLOCK_MIN, BLOCK_PREFERRED = 512, 4096


def option_reply(option, kind, data=b""):
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def simple_reply(error, cookie):
    return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)


def chunk(flags, kind, cookie, length):
    return CHUNK.pack(CHUNK_MAGIC, flags, kind, cookie, length)


def error_chunk(error, cookie):
    return chunk(CHUNK_DONE, CHUNK_ERROR, cookie, 6) + struct.pack(">IH", error, 0)
