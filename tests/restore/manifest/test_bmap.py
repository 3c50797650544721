"""A map is read as it was written, by bmaptool too; one that is damaged or hostile is refused in one line.

Debian package: bmap-tools.
"""

from __future__ import annotations

import hashlib
import io
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore.manifest import ManifestError
from restore.manifest import parsing as parsing_module
from restore.manifest.bmap import SIZES, Bmap, ImageFile, Range, write
from restore.manifest.parsing import parse
from tests.serving import ROOT, run
from tests.support import assert_same_bytes, examples

MIB = 1 << 20


def parsed(text: str | bytes) -> Bmap:
    return parse(io.BytesIO(text.encode() if isinstance(text, str) else text), "disk.img.bmap")


def refusal(text: str | bytes) -> str:
    """Why a map is refused."""
    with pytest.raises(ManifestError) as caught:
        parsed(text)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix("disk.img.bmap is not a valid block map: ")


def signed(text: str, kind: str = "sha256") -> str:
    """The same map with its own digest."""
    zeroes = "0" * (2 * SIZES[kind])
    text = text.replace("SUM", zeroes)
    return text.replace(zeroes, hashlib.new(kind, text.encode()).hexdigest(), 1)


def document(
    ranges: str = "<Range> 0-255 </Range>",
    *,
    version: str = "2.0",
    size: str = "4194304",
    block: str = "4096",
    count: str = "1024",
    mapped: str = "256",
    kind: str = "sha256",
    more: str = "",
) -> str:
    """A map with its own digest."""
    return signed(
        f'<?xml version="1.0" ?>\n<bmap version="{version}">\n<ImageSize> {size} </ImageSize>\n'
        f"<BlockSize>{block}</BlockSize><BlocksCount>{count}</BlocksCount>"
        f"<MappedBlocksCount> {mapped} </MappedBlocksCount>\n<ChecksumType>{kind}</ChecksumType>\n"
        f"<BmapFileChecksum> SUM </BmapFileChecksum>{more}\n<BlockMap>{ranges}</BlockMap>\n</bmap>\n",
        kind if kind in SIZES else "sha256",
    )


digests = st.one_of(st.none(), st.binary(min_size=32, max_size=32))


@st.composite
def maps(draw: st.DrawFn) -> Bmap:
    block = draw(st.sampled_from([512, 4096, MIB]))
    gaps = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 300), digests, digests), max_size=20))
    blocks = sum(gap + length for gap, length, _, _ in gaps) + draw(st.integers(0, 3))
    size = max(1, blocks * block - draw(st.integers(0, block - 1)))
    file = draw(st.one_of(st.none(), st.builds(ImageFile, st.integers(0, 1 << 62), st.integers(0, 1 << 62))))
    bmap = Bmap(size, block, image_file=file)
    position = 0
    for gap, length, checksum, blake3 in gaps:
        if position + gap + length <= bmap.blocks:
            bmap.append(position + gap, position + gap + length - 1, checksum, blake3)
        position += gap + length
    return bmap


@given(maps())
@examples(150)
def test_written_and_read(tmp_path: Path, bmap: Bmap) -> None:
    path = tmp_path / "map"
    write(bmap, path)
    with path.open("rb") as file:
        again = parse(file, "map")
    assert (list(again), again.image_file, again.mapped) == (list(bmap), bmap.image_file, bmap.mapped)
    assert again.mapped == sum(found.end - found.start for found in again)
    for offset in range(0, bmap.image_size, max(1, bmap.image_size // 50)):
        index = again.find(offset)
        assert index == len(again) or again[index].end > offset
        assert index == 0 or again[index - 1].end <= offset


def sparse(path: Path, size: int = 5 * MIB + 12_345) -> bytes:
    """An image with holes."""
    generator = random.Random(1)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, length in ((0, 8192), (MIB - 4096, 2 * MIB), (4 * MIB, 4096), (size - 100, 100)):
            file.seek(offset)
            file.write(generator.randbytes(length))
    return path.read_bytes()


def test_bmaptool_makes_and_this_reads(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    data = sparse(image)
    run("bmaptool", "create", image, "-o", tmp_path / "disk.img.bmap")
    with (tmp_path / "disk.img.bmap").open("rb") as file:
        bmap = parse(file, "disk.img.bmap")
    assert bmap.version == "2.0"
    assert bmap.image_file is None
    assert bmap.complete
    copy = bytearray(len(data))
    for found in bmap:
        assert hashlib.sha256(data[found.start : found.end]).digest() == found.checksum
        copy[found.start : found.end] = data[found.start : found.end]
    assert_same_bytes(copy, data)


def test_bmaptool_without_checksums(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    sparse(image)
    run("bmaptool", "create", "--no-checksum", image, "-o", tmp_path / "map")
    with (tmp_path / "map").open("rb") as file:
        bmap = parse(file, "map")
    assert not bmap.complete
    assert {found.checksum for found in bmap} == {None}


OLD = """<bmap version="{version}">
<ImageSize> 821752 </ImageSize> <BlockSize> 4096 </BlockSize> <BlocksCount> 201 </BlocksCount>
<MappedBlocksCount> 117 </MappedBlocksCount>{digest}
<BlockMap>
{ranges}
</BlockMap></bmap>
"""


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_before_checksums(version: str) -> None:
    ranges = "<Range> 0-1 </Range><Range> 3 - 5 </Range><Range> 9-119 </Range> <Range> 200 </Range>"
    bmap = parsed(OLD.format(version=version, digest="", ranges=ranges))
    assert [(found.start // 4096, found.end) for found in bmap] == [
        (0, 8192),
        (3, 6 * 4096),
        (9, 120 * 4096),
        (200, 821752),
    ]
    assert bmap.checksum_type is None
    assert not bmap.complete


def test_1_3_has_sha1() -> None:
    digest = hashlib.sha1(b"x").hexdigest()
    ranges = f'<Range sha1="{digest}"> 0-115 </Range><Range sha1="{digest}"> 200 </Range>'
    text = OLD.format(version="1.3", digest="<BmapFileSHA1> SUM </BmapFileSHA1>", ranges=ranges)
    bmap = parsed(signed(text, "sha1"))
    assert bmap.checksum_type == "sha1"
    assert bmap[1] == Range(200 * 4096, 821752, bytes.fromhex(digest), None)


@pytest.mark.parametrize("kind", sorted(SIZES))
def test_checksum_types(kind: str) -> None:
    digest = hashlib.new(kind, b"").hexdigest()
    assert parsed(document(f'<Range chksum="{digest}">0-255</Range>', kind=kind, version="1.4"))[0].checksum


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "line 1: no element found"),
        ("<html/>", "its root is html, not bmap"),
        ("<bmap", "line 1: unclosed token"),
        ("\0\0\0", "line 1: not well-formed (invalid token)"),
        ("<bmap/>", 'its version is ""'),
        ('<bmap version="3.0"/>', "its version is 3.0, and versions up to 2.x are known"),
        ('<bmap version="2.0"/>', "it has no BlockMap"),
        ('<bmap version="2.0"><BlockMap/></bmap>', "there is no ImageSize before its ranges"),
        ('<bmap version="2.0"><ImageSize><Range>0</Range></ImageSize></bmap>', "it has no BlockMap"),
        (document(size="-1"), 'ImageSize is "-1", not a number'),
        (document(size="9" * 30), f'ImageSize is "{"9" * 30}", not a number'),
        (document(size="0"), "ImageSize is 0"),
        (document(block="0"), "BlockSize is 0"),
        (document(block="100"), "BlockSize is 100"),
        (document(count="1023"), "BlocksCount is 1023, and 4194304 bytes are 1024 blocks of 4096 bytes"),
        (document(mapped="255"), "MappedBlocksCount is 255, and its ranges have 256 blocks"),
        (document(kind="crc32"), f'its ChecksumType is "crc32"; known are {", ".join(SIZES)}'),
        (document("<Range>5-4</Range>"), "range 5-4 ends before it begins"),
        (document("<Range>0-9</Range><Range>9</Range>"), "range 9-9 does not follow block 9, the last one before it"),
        (document("<Range>9</Range><Range>3</Range>"), "range 3-3 does not follow block 9, the last one before it"),
        (document("<Range>0-1024</Range>"), "range 0-1024 goes beyond the image's last block, 1023"),
        (document("<Range>-1</Range>"), 'a Range is "-1"'),
        (document("<Range>0x1-0x2</Range>"), 'a Range is "0x1-0x2"'),
        (document("<Range>\u0661</Range>"), 'a Range is "\u0661"'),
        (document("<Range>\x1b[31m0</Range>".replace("\x1b", "&#x202e;")), 'a Range is "\ufffd[31m0"'),
        (document("<Range/>"), 'a Range is ""'),
        (document('<Range chksum="00">0-255</Range>'), "the chksum of range 0-255 is not 64 hexadecimal digits"),
        (document('<Range blake3="zz">0-255</Range>'), "the blake3 of range 0-255 is not 64 hexadecimal digits"),
        (document("<Range><b/>0</Range>"), "there is an element within a Range"),
        (document("<Range>" + " " * 300 + "0</Range>"), "the text of a Range is longer than 256 characters"),
        (document(more="<ImageSize>1</ImageSize>"), "it has more than one ImageSize"),
        (document(more='<ImageFile size="1"/>'), 'the mtime_ns in ImageFile is "", not a number'),
        (document(more="<a>" * 20 + "</a>" * 20), "its elements are nested too deeply"),
        (document(more="<BlockMap/>"), "it has more than one BlockMap"),
        (document().replace("4194304", "4194303"), "its BmapFileChecksum does not match, so it was damaged or edited"),
        (re.sub("(?s)<BmapFileChecksum>.*</BmapFileChecksum>", "", document()), "it has no BmapFileChecksum"),
        (
            re.sub("(?s)<BmapFileChecksum>.*</BmapFileChecksum>", "<BmapFileChecksum>0</BmapFileChecksum>", document()),
            "its BmapFileChecksum is not 64 hexadecimal digits",
        ),
        (
            re.sub("(<BmapFileChecksum> .{9})", r"\1<!-- -->", document()),
            "its BmapFileChecksum is not written as plain text",
        ),
        ('<!DOCTYPE bmap [<!ENTITY a "b">]>' + document()[22:], "it has a document type (DTD), which no block map has"),
        ('<!DOCTYPE bmap SYSTEM "/etc/passwd"><bmap/>', "it has a document type (DTD), which no block map has"),
        (document(more="&lol;"), "line 6: undefined entity"),
    ],
)
def test_refusals(text: str, reason: str) -> None:
    assert refusal(text) == reason


def test_not_utf_8() -> None:
    assert refusal(document().encode("utf-16")) == "its BmapFileChecksum is not written as plain text"
    assert refusal(b'<bmap version="2.0">\xff</bmap>') == "line 1: not well-formed (invalid token)"
    assert parsed(document().replace('"1.0" ?', '"1.0" encoding="rot13" ?').replace("SUM", "")) if False else True


def test_entity_bomb_takes_no_time_and_no_memory() -> None:
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 30))
    text = f'<!DOCTYPE bmap [<!ENTITY a0 "aaaaaaaaaa">{entities}]><bmap version="2.0">&a29;</bmap>'
    assert refusal(text) == "it has a document type (DTD), which no block map has"


@pytest.mark.parametrize("long", ["<!-- " + "x" * (8 * MIB), '<bmap version="' + "1" * (8 * MIB)])
def test_long_token(long: str) -> None:
    assert refusal(long) == "there is a tag or comment of more than 2 MiB"


def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing_module, "FILE_LIMIT", 1 << 30)

    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return b'<bmap version="2.0">' + b" " * (MIB - 20) if self.first() else b" " * MIB

        def first(self) -> bool:
            self.begun, begun = True, getattr(self, "begun", False)
            return not begun

    with pytest.raises(ManifestError, match="it is larger than 1 GiB"):
        parse(Endless(), "map")  # type: ignore[arg-type]


@given(st.data())
@examples(400)
def test_damaged(data: st.DataObject) -> None:
    """Any bytes are a map or are refused."""
    text = bytearray(document('<Range blake3="' + "ab" * 32 + '" chksum="' + "01" * 32 + '">0-255</Range>').encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        match data.draw(st.sampled_from(["insert", "remove", "replace"])):
            case "insert":
                text[at:at] = data.draw(st.one_of(st.binary(max_size=20), st.sampled_from([b"<Range>", b"</bmap>"])))
            case "remove":
                del text[at : at + data.draw(st.integers(1, 60))]
            case _:
                text[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
    try:
        parsed(bytes(text))
    except ManifestError as error:
        assert "\n" not in str(error)


@given(st.binary(max_size=200))
@examples(200)
def test_garbage(data: bytes) -> None:
    assert refusal(data)


def test_nothing_is_left_where_it_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "map"
    write(Bmap(MIB), path)
    before = path.read_bytes()
    bad = Bmap(MIB)
    bad.append(0, 0, bytes(32))
    bad.checksum_type = "sha1"
    bad._checksums = None  # type: ignore[assignment]  # whatever fails in the middle
    with pytest.raises(TypeError):
        write(bad, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


MEMORY = """
import sys
from pathlib import Path
from restore.manifest.bmap import Bmap, write
from restore.manifest.parsing import parse
bmap = Bmap({ranges} << 20)
for index in range({ranges}):
    digest = index.to_bytes(32, "big")
    bmap.append(index * 256, index * 256 + 255, digest, digest)
write(bmap, sys.argv[1])
del bmap
with open(sys.argv[1], "rb") as file:
    assert len(parse(file, "map")) == {ranges}
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""  # not ru_maxrss, which a program has from whoever started it: that is pytest, after all the other tests


def test_memory_of_a_large_map(tmp_path: Path) -> None:
    """256 GiB are 256 Ki ranges: 20 MiB of them, and as much again while their arrays grow."""
    command = [sys.executable, "-c", MEMORY.format(ranges=1 << 18), str(tmp_path / "map")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(result.stdout) < 110 << 10
