"""Every message of the NBD protocol as a `construct` definition, with the values that they carry.

Names are those of the specification (`doc/proto.md` of NetworkBlockDevice/nbd), without the `NBD_` prefix; each
definition cites its section. All integers are big-endian. The definitions are the single description of the wire:
negotiation parses and builds with them, and the structs that the hot path precompiles (`transmission.py`) are tested
against them.
"""

from __future__ import annotations

import errno
from enum import IntEnum, IntFlag
from typing import Final

from construct import (
    Bytes,
    Const,
    FixedSized,
    GreedyBytes,
    GreedyRange,
    Int16ub,
    Int32ub,
    Int64ub,
    Padded,
    Prefixed,
    PrefixedArray,
    Struct,
    Switch,
    Tell,
    this,
)

DEFAULT_PORT: Final = 10809

INIT_MAGIC: Final = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC: Final = 0x49484156454F5054  # "IHAVEOPT"
OLDSTYLE_MAGIC: Final = 0x00420281861253
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF

MAX_STRING: Final = 4096  # "Conventions": strings longer than this are not portable
MAX_PAYLOAD: Final = 32 << 20  # "Size constraints"
MAX_EXTENTS: Final = 1 << 20  # "NBD_REPLY_TYPE_BLOCK_STATUS"
MAX_OPTION: Final = 4 * MAX_STRING  # an export name and a handful of queries
MAX_OPTION_DISCARD: Final = 1 << 20  # a longer option is an attack, not a mistake
MAX_OPTIONS: Final = 64  # options one client may send before it must enter transmission
MAX_SIZE: Final = (1 << 63) - 1  # an export's size has to fit a signed 64-bit file offset


class HandshakeFlag(IntFlag):
    """Section "Handshake flags", sent by the server."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class ClientFlag(IntFlag):
    """Section "Client flags"."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class TransmissionFlag(IntFlag):
    """Section "Transmission flags"."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_RESIZE = 1 << 9
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


class Option(IntEnum):
    """Section "Option types"."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class Rep(IntEnum):
    """Section "Option reply types"."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) + 1
    ERR_POLICY = (1 << 31) + 2
    ERR_INVALID = (1 << 31) + 3
    ERR_PLATFORM = (1 << 31) + 4
    ERR_TLS_REQD = (1 << 31) + 5
    ERR_UNKNOWN = (1 << 31) + 6
    ERR_SHUTDOWN = (1 << 31) + 7
    ERR_BLOCK_SIZE_REQD = (1 << 31) + 8
    ERR_TOO_BIG = (1 << 31) + 9


REP_ERROR_BIT: Final = 1 << 31


class Info(IntEnum):
    """Information types of `INFO` and `GO`, under "NBD_REP_INFO"."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Command(IntEnum):
    """Section "Request types"."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7
    RESIZE = 8


class CommandFlag(IntFlag):
    """Section "Command flags"."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4


class ReplyFlag(IntFlag):
    """Section "Structured reply flags"."""

    DONE = 1 << 0


class ReplyType(IntEnum):
    """Section "Structured reply types"."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = (1 << 15) + 1
    ERROR_OFFSET = (1 << 15) + 2


REPLY_ERROR_BIT: Final = 1 << 15


class StateFlag(IntFlag):
    """Status flags of the `base:allocation` metadata context."""

    HOLE = 1 << 0
    ZERO = 1 << 1


class Error(IntEnum):
    """Section "Error values"."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


BASE_ALLOCATION: Final = "base:allocation"

_FROM_ERRNO: Final = {
    errno.EPERM: Error.EPERM,
    errno.EROFS: Error.EPERM,
    errno.EACCES: Error.EPERM,
    errno.ENOMEM: Error.ENOMEM,
    errno.EINVAL: Error.EINVAL,
    errno.ENOSPC: Error.ENOSPC,
    errno.EDQUOT: Error.ENOSPC,
    errno.EFBIG: Error.ENOSPC,
    errno.EOVERFLOW: Error.EOVERFLOW,
    errno.ENOTSUP: Error.ENOTSUP,
    errno.ESHUTDOWN: Error.ESHUTDOWN,
}
_TO_ERRNO: Final = {int(value): getattr(errno, value.name) for value in Error}


def error_from_errno(number: int) -> Error:
    """The wire's error value for a local errno; what it has no name for is `EIO`."""
    return _FROM_ERRNO.get(number, Error.EIO)


def errno_from_error(value: int) -> int:
    """The local errno for a wire error; unknown values read as `EINVAL` (section "Error values")."""
    number: int = _TO_ERRNO.get(value, errno.EINVAL)
    return number


# --- Handshake phase ---

# "Newstyle negotiation": the server's greeting.
Greeting = Struct("init_magic" / Const(INIT_MAGIC, Int64ub), "magic" / Const(OPTION_MAGIC, Int64ub), "flags" / Int16ub)

# "Newstyle negotiation": the client's answer.
ClientFlags = Struct("flags" / Int32ub)

# "Newstyle negotiation": the head of an option request; its data follows.
OptionHeader = Struct("magic" / Const(OPTION_MAGIC, Int64ub), "option" / Int32ub, "length" / Int32ub)

# "Fixed newstyle negotiation": the head of an option reply; its data follows.
OptionReplyHeader = Struct(
    "magic" / Const(OPTION_REPLY_MAGIC, Int64ub), "option" / Int32ub, "reply" / Int32ub, "length" / Int32ub
)

# "NBD_OPT_EXPORT_NAME": the reply, with its 124 zeroes unless both sides set NO_ZEROES.
ExportNameReply = Struct("size" / Int64ub, "flags" / Int16ub)
ExportNameReplyPadded = Padded(134, ExportNameReply)

# "NBD_OPT_INFO and NBD_OPT_GO": the request's data.
InfoRequest = Struct("name" / Prefixed(Int32ub, GreedyBytes), "infos" / PrefixedArray(Int16ub, Int16ub), "end" / Tell)

# "NBD_OPT_LIST_META_CONTEXT", "NBD_OPT_SET_META_CONTEXT": the request's data.
MetaContextRequest = Struct(
    "name" / Prefixed(Int32ub, GreedyBytes),
    "queries" / PrefixedArray(Int32ub, Prefixed(Int32ub, GreedyBytes)),
    "end" / Tell,
)

# "NBD_REP_SERVER": one export of a list, its name and a text for people.
ServerReply = Struct("name" / Prefixed(Int32ub, GreedyBytes), "description" / GreedyBytes)

# "NBD_REP_META_CONTEXT"
MetaContextReply = Struct("id" / Int32ub, "name" / GreedyBytes)

# "NBD_REP_INFO", by information type.
InfoExport = Struct("size" / Int64ub, "flags" / Int16ub)
InfoBlockSize = Struct("minimum" / Int32ub, "preferred" / Int32ub, "maximum" / Int32ub)
InfoReply = Struct(
    "type" / Int16ub,
    "data"
    / Switch(this.type, {int(Info.EXPORT): InfoExport, int(Info.BLOCK_SIZE): InfoBlockSize}, default=GreedyBytes),
)

# --- Transmission phase ---

# "Request message": the payload of a WRITE follows.
Request = Struct(
    "magic" / Const(REQUEST_MAGIC, Int32ub),
    "flags" / Int16ub,
    "type" / Int16ub,
    "cookie" / Int64ub,
    "offset" / Int64ub,
    "length" / Int32ub,
)

# "Simple reply message": the data of a READ follows.
SimpleReply = Struct("magic" / Const(SIMPLE_REPLY_MAGIC, Int32ub), "error" / Int32ub, "cookie" / Int64ub)

# "Structured reply chunk message": the head; the payload is by type, below.
StructuredReplyHeader = Struct(
    "magic" / Const(STRUCTURED_REPLY_MAGIC, Int32ub),
    "flags" / Int16ub,
    "type" / Int16ub,
    "cookie" / Int64ub,
    "length" / Int32ub,
)

# "Structured reply types"
OffsetData = Struct("offset" / Int64ub, "data" / GreedyBytes)
OffsetHole = Struct("offset" / Int64ub, "length" / Int32ub)
ExtentDescriptor = Struct("length" / Int32ub, "flags" / Int32ub)
BlockStatus = Struct("context" / Int32ub, "extents" / GreedyRange(ExtentDescriptor))
ErrorChunk = Struct("error" / Int32ub, "message" / Prefixed(Int16ub, GreedyBytes))
ErrorOffsetChunk = Struct("error" / Int32ub, "message" / Prefixed(Int16ub, GreedyBytes), "offset" / Int64ub)

StructuredReply = Struct(
    "header" / StructuredReplyHeader,
    "payload"
    / FixedSized(
        this.header.length,
        Switch(
            this.header.type,
            {
                int(ReplyType.NONE): Bytes(0),
                int(ReplyType.OFFSET_DATA): OffsetData,
                int(ReplyType.OFFSET_HOLE): OffsetHole,
                int(ReplyType.BLOCK_STATUS): BlockStatus,
                int(ReplyType.ERROR): ErrorChunk,
                int(ReplyType.ERROR_OFFSET): ErrorOffsetChunk,
            },
            default=GreedyBytes,
        ),
    ),
)
