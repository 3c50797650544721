"""What a datagram of a stream says, as a `construct` definition and as the struct that the hot path precompiles.

Every datagram names its session, chunk and segment, so that nothing depends on order, and all of a session are of one
size: the last segment of a chunk is padded with zeroes. Integers are big-endian.
"""

from __future__ import annotations

from struct import Struct as Precompiled
from typing import Final, NamedTuple

from construct import Bytes, Const, Int8ub, Int16ub, Int32ub, Int64ub, Struct

MAGIC: Final = 0x7A73
VERSION: Final = 1
DEFAULT_PORT: Final = 7800  # of the control API, as asr has it; the data go to the same number over UDP

HEADER: Final = Struct(
    "magic" / Const(MAGIC, Int16ub),
    "version" / Const(VERSION, Int8ub),
    "flags" / Const(0, Int8ub),
    "session" / Int64ub,
    "sequence" / Int64ub,  # how many datagrams were sent before this turn of a chunk: what a report is as of
    "chunk" / Int32ub,
    "segment" / Int32ub,  # from the number of a chunk's segments on it repairs the others
)
PACKED: Final = Precompiled(">HBBQQII")
HEADER_SIZE: Final = PACKED.size
UDP_HEADER: Final = 8
IPV4_HEADER: Final = 20
IPV6_HEADER: Final = 40
MULTIPLE: Final = 8  # bytes, which a segment's size has to be a multiple of for the repair codec
LEAST_SEGMENT: Final = 512
MOST_SEGMENT: Final = 32 << 10  # a datagram has to fit 65,507 bytes, and two a batch are the least that is one

# Where the fields that change from chunk to chunk are in a header.
_SEQUENCE: Final = 12
_CHUNK: Final = 20
_SEGMENT: Final = 24


class Header(NamedTuple):
    """The header of a datagram, see `HEADER`."""

    session: int
    sequence: int
    chunk: int
    segment: int

    def pack(self) -> bytes:
        """As it is sent."""
        return PACKED.pack(MAGIC, VERSION, 0, self.session, self.sequence, self.chunk, self.segment)


def datagram(segment_size: int) -> Struct:
    """A whole datagram of a session whose segments have so many bytes."""
    return Struct("header" / HEADER, "data" / Bytes(segment_size))


def parse(data: bytes | bytearray | memoryview, session: int) -> Header | None:
    """The header of a datagram; None if it is not one of this session."""
    if len(data) < HEADER_SIZE:
        return None
    magic, version, flags, said, sequence, chunk, segment = PACKED.unpack_from(data)
    if magic != MAGIC or version != VERSION or flags or said != session:
        return None
    return Header(said, sequence, chunk, segment)


def segment_size(mtu: int, *, ipv6: bool = False) -> int:
    """Bytes of a segment whose datagram fits a link's MTU, and that can be repaired.

    Raises:
        ValueError: none does.
    """
    room = mtu - (IPV6_HEADER if ipv6 else IPV4_HEADER) - UDP_HEADER - HEADER_SIZE
    size = min(room // MULTIPLE * MULTIPLE, MOST_SEGMENT)
    if size < LEAST_SEGMENT:
        raise ValueError(f"an MTU of {mtu} bytes is too small")
    return size


class Headers:
    """The headers of all datagrams of a chunk, made together: they differ in little from the last chunk's.

    Attributes:
        whole: one behind the other.
        views: each of them.
    """

    def __init__(self, session: int, segments: int) -> None:
        """Room for chunks of up to so many segments."""
        self._segments = segments
        self.whole = bytearray().join(Header(session, 0, 0, segment).pack() for segment in range(segments))
        view = memoryview(self.whole)
        self.views = [view[at : at + HEADER_SIZE] for at in range(0, len(view), HEADER_SIZE)]

    def name(self, sequence: int, chunk: int) -> None:
        """Have them be the headers of this chunk."""
        fields = sequence.to_bytes(8, "big") + chunk.to_bytes(4, "big")
        for index, value in enumerate(fields, _SEQUENCE):
            self.whole[index::HEADER_SIZE] = bytes((value,)) * self._segments


def segments_of(length: int, size: int) -> int:
    """How many segments of `size` bytes a chunk of `length` bytes has."""
    return -(-length // size)
