"""What is refused or found damaged before anything is decoded."""

from __future__ import annotations

import plistlib
from collections.abc import Callable
from dataclasses import replace

import pytest

from restore.errors import Refused, RestoreError
from restore.source import SourceError
from restore.source.udif import lzfse
from restore.source.udif.format import CRC32, RunType
from restore.source.udif.recognise import KOLY_SIZE
from scripts.dmg import Part, Run, checksum, koly, tail
from tests.restore.source.udif.images import KIB, Memory, opened, part, read_all, text, whole

A, B = text(8 * KIB, 1), text(8 * KIB, 2)


def said(content: bytes, kind: type[RestoreError] = SourceError) -> str:
    """What is said of an image, without what is always said."""
    with pytest.raises(kind) as caught:
        opened(content)
    text = str(caught.value)
    if kind is Refused:
        return text.removeprefix("x.dmg ")
    return text.removeprefix("x.dmg is damaged: ").removesuffix("; get another copy of it")


def with_parts(change: Callable[[list[Part]], object], **trailer: object) -> bytes:
    """An image of two blocks of 16 sectors of 2 runs, of which something is changed."""
    fork = bytearray()
    parts = [
        part("one", 0, [(RunType.ZLIB, A), (RunType.ZERO, bytes(8 * KIB))], fork),
        part("two", 32, [(RunType.RAW, B), (RunType.IGNORE, bytes(8 * KIB))], fork),
    ]
    fork += bytes(24 * KIB)
    change(parts)
    return bytes(fork) + tail(parts, len(fork), 0, **({"sectors": 64} | trailer))


def test_unchanged() -> None:
    assert read_all(opened(with_parts(lambda parts: None))) == A + bytes(8 * KIB) + B + bytes(8 * KIB)
    assert read_all(opened(with_parts(lambda parts: parts.reverse()))) == A + bytes(8 * KIB) + B + bytes(8 * KIB)


def run(number: int, **values: int) -> Callable[[list[Part]], object]:
    """Change a run of the second block."""

    def change(parts: list[Part]) -> None:
        parts[1].runs[number] = replace(parts[1].runs[number], **values)

    return change


def block(number: int = 1, **values: object) -> Callable[[list[Part]], object]:
    """Change a block's head."""
    return lambda parts: parts[number].head.update(values)


WRONG: dict[str, Callable[[list[Part]], object]] = {
    'before "two" there is nothing for sectors 32 to 39': lambda parts: setattr(parts[1], "first", 40),
    '"two" begins at sector 31, and what is before ends at 32': lambda parts: setattr(parts[1], "first", 31),
    '"two" begins at sector 0, and what is before ends at 32': lambda parts: setattr(parts[1], "first", 0),
    "before the end there is nothing for sectors 32 to 63": lambda parts: parts.pop(),
    '"two" goes on behind the image\'s 64 sectors': block(sectors=33),
    '"two" is no mish block': block(signature=b"mush"),
    '"two" is a mish block of version 2': block(version=2),
    '"two" has room for another number of runs than the 4 it tells of': block(run_count=4),
    '"two" has room for another number of runs than the 4294967295 it tells of': block(run_count=0xFFFFFFFF),
    '"two" has runs behind its end': run(1, kind=RunType.END),
    'before a run of "two" there is nothing for sectors 48 to 48': run(1, start=17),
    'a run of "two" begins at sector 47, and what is before ends at 48': run(1, start=15),
    '"two" has runs of more than its 32 sectors': run(1, sectors=17),
    'before the end of "two" there is nothing for sectors 63 to 63': run(1, sectors=15),
    'the run at sector 32, in "two", is of unknown type 0x80000009': run(0, kind=0x80000009),
    'the run at sector 32, in "two", is 8192 bytes long, and stored raw in 8191': run(0, length=8191),
    'the run at sector 32, in "two", is 8192 bytes long, and stored in 20481': run(
        0, kind=RunType.ZLIB, offset=0, length=2 * 8192 + 4097
    ),
}


@pytest.mark.parametrize("expected", WRONG)
def test_blocks_and_runs(expected: str) -> None:
    assert said(with_parts(WRONG[expected])) == expected


def test_where_runs_are_stored() -> None:
    content = with_parts(run(0, offset=1 << 63, length=8192))
    assert said(content) == (
        f'the run at sector 32, in "two", is stored up to byte {(1 << 63) + 8192}, and the file ends at {len(content)}'
    )
    content = with_parts(block(data_start=len(content)))
    assert said(content).endswith(f"and the file ends at {len(content)}")


def test_a_run_larger_than_memory_should_hold() -> None:
    sectors = (64 << 20) // 512 + 1
    content = tail([Part("big", 0, sectors, [Run(RunType.ZLIB, 0, sectors, 0, 10)])], 0)
    expected = 'the run at sector 0, in "big", is 67109376 bytes long, and 67108864 are the most'
    assert said(content) == expected


def test_raw_runs_that_share_bytes() -> None:
    """A small file must not claim pieces without end."""
    runs = [Run(RunType.RAW, number * 2, 2, 0, 1024) for number in range(1000)]
    content = bytes(1024) + tail([Part("shared", 0, 2000, runs)], 1024)
    assert said(content).endswith('in "shared", is stored where others are')


def test_trailer() -> None:
    assert said(b"", Refused) == "is no UDIF image: it does not end with a koly trailer; it may be cut short"
    assert said(whole((RunType.ZLIB, A))[:-1], Refused).startswith("is no UDIF image")
    assert said(koly(version=5)) == "its trailer has version 5 and 512 bytes, and not 4 and 512"
    assert said(koly(segment_number=2, segment_count=3), Refused) == (
        "is segment 2 of 3 of a UDIF image; join them on a Mac with hdiutil convert -format UDZO"
    )
    assert said(koly(resource_length=1), Refused) == (
        "has its block tables in a resource fork, as very old images do; "
        "make a new one of it on a Mac with hdiutil convert -format UDZO"
    )
    assert said(koly(sectors=1 << 60)) == f"its trailer tells of {1 << 60} sectors"
    for length in (0, (16 << 20) + 1, 1 << 63):
        assert said(koly(plist_length=length)) == f"its property list has {length} bytes, and 16777216 are the most"
    assert said(koly(plist_length=513)) == "its property list is stored up to byte 513, and the file ends at 512"
    assert said(koly(plist_offset=(1 << 64) - 1, plist_length=10)).startswith("its property list is stored up to")
    assert said(tail([Part("empty", 0, 0)], 0), Refused) == "is a UDIF image of no sectors at all"
    for sectors in (63, 65):
        assert said(with_parts(lambda parts: None, sectors=sectors)) in (
            '"two" goes on behind the image\'s 63 sectors',
            "before the end there is nothing for sectors 64 to 64",
        )


def test_trailer_in_front() -> None:
    """As some old images have it; what it tells of is counted from the beginning of the file."""
    fork = bytearray(KOLY_SIZE)
    block = part("disk", 0, [(RunType.ZLIB, A), (RunType.RAW, B)], fork)
    for item in block.runs:
        item.offset -= KOLY_SIZE
    behind = tail([block], len(fork), data_offset=KOLY_SIZE)
    content = behind[-KOLY_SIZE:] + bytes(fork[KOLY_SIZE:]) + behind[:-KOLY_SIZE]
    assert read_all(opened(content)) == A + B


def test_property_list() -> None:
    assert said(b"junk" + koly(plist_length=4)) == "its property list is no XML: syntax error: line 1, column 0"
    other = plistlib.dumps({"resource-fork": {"plst": []}})
    assert said(other + koly(plist_length=len(other))) == "its property list has no blkx array of blocks"


def test_master_checksum() -> None:
    wrong = checksum(CRC32, 32, b"abcd")
    found = said(with_parts(lambda parts: None, master_checksum=wrong))
    assert found.startswith("the checksum of its checksums is ")
    assert found.endswith(", and 61626364 by its trailer")
    for other in (checksum(0, 0, b""), checksum(4, 128, b"md5")):
        opened(with_parts(lambda parts: None, master_checksum=other))


def test_a_block_of_holes_is_checked_at_once() -> None:
    hole = (RunType.ZERO, bytes(8 * KIB))
    fork = bytearray()
    blocks = [part("holes", 0, [hole], fork)]
    assert read_all(opened(tail(blocks, 0))) == bytes(8 * KIB)
    blocks[0].checksum = (CRC32, 32, b"abcd")
    assert said(tail(blocks, 0)).endswith(", and 61626364 by the image's tables")


def test_lzfse_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lzfse, "available", lambda: False)
    opened(whole((RunType.ZLIB, A)))
    expected = "is compressed with LZFSE, for which a library is missing; pip install lzfse"
    assert said(whole((RunType.LZFSE, A)), Refused) == expected


def test_comments_and_runs_of_nothing_are_no_runs() -> None:
    fork = bytearray()
    block = part("disk", 0, [(RunType.ZLIB, A), (RunType.RAW, B)], fork)
    block.runs.insert(1, Run(RunType.COMMENT, 12345, 99))
    block.runs.insert(2, Run(RunType.ZLIB, 16, 0))
    assert read_all(opened(bytes(fork) + tail([block], len(fork)))) == A + B


def test_a_file_that_is_cut_while_it_is_opened() -> None:
    class Cut(Memory):
        def read(self, offset: int, length: int) -> bytes:
            return super().read(offset, length)[: 100 if offset < self.size - KOLY_SIZE else length]

    from restore.source.udif.layout import read_layout

    with pytest.raises(OSError, match="earlier than it did at the start"):
        read_layout(Cut(whole((RunType.ZLIB, A))))
