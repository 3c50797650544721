"""What the usual programs compress is decoded, and damage is told in one line.

Debian packages: bzip2 gzip lz4 pbzip2 pigz tabix xz-utils zstd.
"""

from __future__ import annotations

import re
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore.source import SourceError
from restore.source.compressed import FORMATS, decompressed, sniff
from restore.source.compressed.input import Input
from restore.source.raw import RawStream
from restore.source.storage import Decoded
from restore.source.stream import StreamSource
from tests.restore.source.compressed.files import MIB, TOOLS, Bytes, compress, compressed_content, content, decoded
from tests.support import assert_same_bytes, examples

SMALL = 70_000
NAMES = {"gzip": "gzip", "pigz": "gzip", "bgzip": "gzip", "bzip2": "bzip2", "pbzip2": "bzip2", "pzstd": "zstd"}


def name_of(tool: str) -> str:
    word = tool.split(",")[0]
    return NAMES.get(word, word)


def error_of(data: bytes | bytearray, form: str) -> str:
    """What is said of a damaged file, and is the same whether it can be read at random or not."""
    said = set()
    for seekable in (True, False):
        with pytest.raises(SourceError) as caught:
            decoded(bytes(data), form, seekable=seekable)
        said.add(str(caught.value))
    assert len(said) == 1, said
    return said.pop()


@pytest.mark.parametrize("tool", TOOLS)
def test_what_programs_make(tool: str) -> None:
    data = compressed_content(tool)
    assert sniff(data[:4096]) == name_of(tool)
    for seekable in (True, False):
        assert_same_bytes(decoded(data, seekable=seekable, piece=MIB if seekable else 65_537), content())


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("size", [0, 1])
def test_hardly_anything(tool: str, size: int) -> None:
    assert decoded(compress(tool, b"x" * size)) == b"x" * size


@pytest.mark.parametrize("form", FORMATS)
def test_files_that_follow_one_another(form: str) -> None:
    """As `cat` puts them together, whatever made them."""
    tools = [tool for tool in TOOLS if name_of(tool) == form]
    data = b"".join(compressed_content(tool, SMALL) + compress(tool, b"") for tool in tools)
    for seekable in (True, False):
        assert_same_bytes(decoded(data, seekable=seekable), content(SMALL) * len(tools))


@pytest.mark.parametrize("tool", TOOLS)
def test_a_storage_that_gives_a_byte_at_a_time(tool: str) -> None:
    data = compressed_content(tool, SMALL)
    assert_same_bytes(decoded(data, seekable=False, piece=1), content(SMALL))


@pytest.mark.parametrize("tool", [tool for tool in TOOLS if not tool.startswith("gzip, with")])
@given(st.data())
@examples(60)
def test_a_byte_that_is_not_right(tool: str, data: st.DataObject) -> None:
    """It is found, or it does not matter."""
    good = bytearray(compressed_content(tool, SMALL))
    ends = st.one_of(st.integers(0, 40), st.integers(len(good) - 60, len(good) - 1), st.integers(0, len(good) - 1))
    good[data.draw(ends)] ^= data.draw(st.integers(1, 255))
    for seekable in (True, False):
        try:
            found = decoded(bytes(good), name_of(tool), seekable=seekable)
        except SourceError as error:
            assert re.match(r"image (is|was|needs|holds|ends) ", str(error)), error
            assert "\n" not in str(error)
        else:
            assert_same_bytes(found, content(SMALL))


@pytest.mark.parametrize("tool", TOOLS)
@given(st.data())
@examples(30)
def test_a_file_that_is_cut(tool: str, data: st.DataObject) -> None:
    good = compressed_content(tool, SMALL)
    ends = st.one_of(st.integers(0, 40), st.integers(len(good) - 60, len(good) - 1), st.integers(0, len(good) - 1))
    length = data.draw(ends)
    for seekable in (True, False):
        try:
            found = decoded(good[:length], name_of(tool), seekable=seekable)
        except SourceError as error:
            assert re.match(r"image is (cut short|damaged)", str(error)), error
        else:
            # bgzip and pbzip2 make files that are whole without what follows, and none but bgzip marks an end.
            assert tool in ("bgzip", "pbzip2", "pzstd"), length
            assert content(SMALL).startswith(found)


@pytest.mark.parametrize("form", FORMATS)
@given(st.binary(min_size=1, max_size=400))
@examples(100)
def test_noise(form: str, noise: bytes) -> None:
    good = compress(TOOLS[form], b"noise")
    for begin in (0, 4, 6, 10, len(good)):
        try:
            decoded(good[:begin] + noise, form)
        except SourceError as error:
            assert str(error).startswith("image ")


@pytest.mark.parametrize(
    ("form", "what"),
    [
        ("gzip", "gzip member"),
        ("bzip2", "bzip2 stream"),
        ("xz", "xz stream"),
        ("zstd", "zstd frame"),
        ("lz4", "lz4 frame"),
    ],
)
def test_what_does_not_belong(form: str, what: str) -> None:
    good = compressed_content(form, SMALL)
    said = f"image is damaged at byte {len(good)} of what is stored: no {what} begins here, and it is not the end"
    assert error_of(good + b"\1", form) == said
    assert error_of(b"garbage", form) == said.replace(f"byte {len(good)}", "byte 0")


def test_zeroes_behind() -> None:
    """Are padding of gzip, as gzip itself has it, and of xz where its format has them."""
    for zeroes in (1, 512, 100_000):
        data = compressed_content("gzip", SMALL) + bytes(zeroes)
        assert_same_bytes(decoded(data), content(SMALL))
        assert_same_bytes(decoded(compressed_content("bgzip", SMALL) + bytes(zeroes)), content(SMALL))
    good = compressed_content("xz", SMALL)
    assert_same_bytes(decoded(good + bytes(8) + good + bytes(4)), content(SMALL) * 2)
    assert "no xz stream begins here" in error_of(good + bytes(3), "xz")


@pytest.mark.parametrize(
    ("tool", "what"),
    [
        ("gzip", "a gzip member"),
        ("bgzip", "a gzip member"),
        ("bzip2", "a bzip2 stream"),
        ("xz", "an xz stream"),
        ("xz, several blocks", "an xz block"),
        ("zstd", "a zstd frame"),
        ("pzstd", "a zstd frame"),
        ("lz4", "an lz4 frame"),
    ],
)
def test_cut_short(tool: str, what: str) -> None:
    data = compressed_content(tool, SMALL)[: SMALL // 4]
    said = f"image is cut short: it ends at byte {SMALL // 4}, in the middle of {what}"
    assert error_of(data, name_of(tool)) == said


def test_checksums() -> None:
    """Of the content, which is what it should be otherwise."""
    wrong = {tool: bytearray(compressed_content(tool, SMALL)) for tool in ("gzip", "zstd", "lz4", "lz4, small blocks")}
    for data in wrong.values():
        data[-1] ^= 1
    wrong["gzip"][-1] ^= 1
    wrong["gzip"][-6] ^= 1
    said = error_of(bytes(wrong["gzip"]), "gzip")
    assert said.startswith("image is damaged at byte 0 of what is stored: a gzip member: "), said
    said = error_of(bytes(wrong["zstd"]), "zstd")
    assert said == "image is damaged at byte 0 of what is stored: a zstd frame: Restored data doesn't match checksum"
    said = "image is damaged at byte 0 of what is stored: an lz4 frame does not match its checksum"
    assert error_of(bytes(wrong["lz4"]), "lz4") == error_of(bytes(wrong["lz4, small blocks"]), "lz4") == said
    wrong["lz4, small blocks"][30] ^= 1
    said = "image is damaged at byte 7 of what is stored: an lz4 block does not match its checksum"
    assert error_of(bytes(wrong["lz4, small blocks"]), "lz4") == said


def test_refusals() -> None:
    assert error_of(compress("lz4 -c -l", b"old"), "lz4") == (
        "image is in lz4's legacy format, which tells neither its size nor a checksum; unpack it first: lz4 -d"
    )
    assert error_of(compress("zstd --long=30 --ultra", content(SMALL)), "zstd") == (
        "image needs 1024 MiB of memory to decode, more than the 128 that zstd takes too; unpack it first: "
        "zstd -d --long=31"
    )
    frame = bytearray(compress("zstd", b"x"))
    frame[4] |= 1  # a dictionary's number follows the window
    frame[5 if frame[4] & 0x20 else 6 : 0] = b"\7"
    assert error_of(bytes(frame), "zstd") == "image was compressed with a dictionary (7), which it does not hold"


def test_what_is_known_beforehand(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("sized") / "content"
    path.write_bytes(content())
    for tool in ("zstd", "xz", "lz4, with its size"):
        data = compress(f"{TOOLS[tool]} {'-c ' if tool != 'lz4, with its size' else ''}{path}", b"")
        storage = decompressed(Bytes(data), name_of(tool))
        assert isinstance(storage, Decoded)
        assert storage.least_size == len(content()), tool
        source = StreamSource(RawStream(storage))
        assert source.least_size == len(content())
        source.close()


def test_how_far_it_is() -> None:
    data = compressed_content("gzip")
    storage = Bytes(data)
    passed = decompressed(storage, "gzip")
    assert isinstance(passed, Decoded)
    assert passed.fraction() == 0
    fractions = [passed.fraction() for _ in passed.stream()]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < 0.8 < fractions[-1] == 1
    passed.close()
    assert storage.closed == 1


@pytest.mark.parametrize("tool", ["gzip", "bzip2", "xz", "zstd", "lz4", "bgzip", "pzstd"])
def test_a_bomb_comes_in_small_pieces(tool: str) -> None:
    storage = decompressed(Bytes(compress(TOOLS[tool], bytes(40 * MIB)), seekable=False), name_of(tool))
    pieces = [len(piece) for piece in storage.stream()]
    assert max(pieces) <= MIB
    assert sum(pieces) == 40 * MIB


@pytest.mark.parametrize("tool", ["bgzip", "xz, several blocks", "pzstd", "lz4"])
def test_leaving_early(tool: str) -> None:
    """Ends the threads that decode."""
    before = threading.active_count()
    stream = decompressed(Bytes(compressed_content(tool)), name_of(tool)).stream()
    next(stream)
    assert threading.active_count() > before
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_sniff() -> None:
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    zstd, lz4 = compress("zstd", b"x"), compress("lz4 -c", b"x")
    assert sniff(skippable * 2 + zstd) == "zstd"
    assert sniff(skippable * 2 + lz4) == "lz4"
    assert decoded(skippable * 2 + zstd + skippable) == decoded(skippable + lz4 + skippable) == b"x"
    assert sniff(skippable[:4] + b"\xff\xff\0\0") == "zstd"  # what follows is not in sight
    for other in (b"", b"\x1f\x8b", b"BZh9", b"\0" * 512, b"(\xb5/", b"BZh91AY&S"):
        assert sniff(other) is None


@given(st.lists(st.binary(max_size=20)), st.lists(st.integers(0, 30)))
@examples(100)
def test_input(pieces: list[bytes], reads: list[int]) -> None:
    whole = b"".join(pieces)
    source = Input("image", iter(pieces))
    position = 0
    for length in reads:
        assert source.peek(length) == whole[position : position + length]
        found = source.up_to(length)
        assert found == whole[position : position + length]
        position += len(found)
        assert source.position == position
