from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore.source import SourceError
from restore.source.partclone.header import BitmapMode, Header, Mode, parse_header
from tests.restore.source.partclone.images import CRC32, NONE, XXH64, Content, crc, header, image_1
from tests.support import examples

CONTENT = Content(100, 4096, {})


def test_what_it_says() -> None:
    found = parse_header(header(Content(100, 4096, {}, 500_000), XXH64, 7, going_on=1), "x")
    assert found == Header(2, "EXTFS", 500_000, 100, 4096, Mode.XXH64, 7, reseed=False, bitmap=BitmapMode.BIT)
    assert found.size == 500_000
    assert (found.bitmap_start, found.blocks_start) == (110, 110 + 13 + 4)
    assert found.stored_at(15) == 127 + 15 * 4096 + 2 * 8
    assert found.stored_size(15) == 127 + 15 * 4096 + 3 * 8


def test_version_1() -> None:
    found = parse_header(image_1(CONTENT)[:4160], "x")
    assert found == Header(1, "EXTFS", 409_600, 100, 4096, Mode.CRC32_0001, 1, reseed=False, bitmap=BitmapMode.BYTE)
    assert found.blocks_start == 4160 + 100 + 8


def test_a_device_smaller_than_its_file_system() -> None:
    assert parse_header(header(CONTENT, NONE, 0, device=5), "x").size == 409_600


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"endian": 0xDEC0}, "x was made by partclone on a big-endian machine, which cannot be read"),
        ({"feature": 20}, "x: partclone's header has features that are not known"),
        ({"version": 3}, "x: partclone's header has features that are not known"),
        ({"mode": 0x40}, "x: checksums of the unknown kind 0x40"),
        ({"mode": 0xFF}, "x: checksums of the unknown kind 0xff"),
        ({"size": 8}, "x: CRC-32 checksums of 8 bytes cannot be"),
        ({"per": 0}, "x: checksums of no blocks cannot be"),
        ({"bitmap": 8}, "x: a bitmap of the unknown kind 8"),
        ({"block": 0}, "x: blocks of 0 bytes cannot be"),
        ({"block": 4097}, "x: blocks of 4097 bytes cannot be"),
        ({"block": 128 << 20}, "x: blocks of 134217728 bytes cannot be"),
        ({"total": 0}, "x is of a file system without blocks"),
        ({"used": 101}, "x: 101 blocks in use of 100 cannot be"),
        ({"device": 1 << 63}, "x: a file system of 9223372036854775808 bytes cannot be"),
        ({"total": 1 << 28, "bitmap": 0}, "x: a bitmap of 268435456 blocks is larger than can be read"),
        ({"total": 1 << 34}, "x: a bitmap of 17179869184 blocks is larger than can be read"),
    ],
)
def test_what_cannot_be(fields: dict[str, int], message: str) -> None:
    with pytest.raises(SourceError, match=f"^{re.escape(message)}$"):
        parse_header(header(CONTENT, CRC32, 4, **fields), "x")


def test_damage() -> None:
    raw = header(CONTENT, CRC32, 4)
    for at in (20, 60, 90, 105, 109):
        with pytest.raises(SourceError, match=r"^x: partclone's header is damaged, its CRC-32 is not right$"):
            parse_header(raw[:at] + bytes((raw[at] ^ 1,)) + raw[at + 1 :], "x")
    with pytest.raises(SourceError, match=r"^x is a partclone image of version '0003'; only 0001 and 0002 are known$"):
        parse_header(raw[:30] + b"0003" + raw[34:], "x")
    with pytest.raises(SourceError, match=r"^x does not begin with the header of a partclone image$"):
        parse_header(b"P" + raw[1:], "x")
    for short in (raw[:109], image_1(CONTENT)[:4159]):
        with pytest.raises(SourceError, match=r"^x is cut short: it ends within partclone's header$"):
            parse_header(short, "x")


@given(st.binary(max_size=200), st.sampled_from((b"0001", b"0002", b"")), st.booleans())
@examples(300)
def test_any_bytes(raw: bytes, version: bytes, sealed: bool) -> None:
    """Parsed, or a `SourceError`."""
    raw = b"partclone-image\0" + raw[:14].ljust(14, b"\0") + version + raw[14:]
    if sealed:
        raw = raw[:106] + crc(raw[:106]).to_bytes(4, "little")
    if version == b"0001":
        raw = raw.ljust(4160, b"\0")
    try:
        found = parse_header(raw, "x")
    except SourceError as error:
        assert str(error).startswith("x")
    else:
        assert found.size >= found.total_blocks * found.block_size > 0
