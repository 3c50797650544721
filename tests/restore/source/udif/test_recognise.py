from __future__ import annotations

import bz2
import plistlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from restore.errors import Refused
from restore.source import SourceError
from restore.source.detect import open_image
from restore.source.raw import RawStream
from restore.source.udif.format import RunType
from restore.source.udif.recognise import is_udif, refuse_bundle
from scripts.dmg import koly
from tests.restore.engine import failed, restore
from tests.restore.source.udif.images import KIB, Memory, text, whole

CONVERT = "make an image of it on a Mac with hdiutil convert -format UDZO"
NDIF = b"\0\x04disk".ljust(65, b"\0") + b"rohdddsk" + bytes(55)
RELATIVES = {
    f"x.dmg is an encrypted disk image; {CONVERT}, which asks for the password": b"encrcdsa" + bytes(2000),
    f"x.dmg is a sparse disk image (.sparseimage); {CONVERT}": b"sprs" + bytes(2000),
    f"x.dmg is an image of Disk Copy (NDIF), older than UDIF; {CONVERT}": NDIF + bytes(2000),
}


def test_what_is_one() -> None:
    assert is_udif(Memory(whole((RunType.ZLIB, text(KIB)))))
    assert is_udif(Memory(koly()))
    assert is_udif(Memory(koly() + bytes(1000)))
    for other in (b"", b"x", bytes(511), bytes(4 * KIB), b"koly" + bytes(1000), koly()[:-1], text(4 * KIB)):
        assert not is_udif(Memory(other))


@pytest.mark.parametrize("expected", RELATIVES)
def test_relatives_are_refused_by_name(expected: str) -> None:
    with pytest.raises(Refused) as refused:
        is_udif(Memory(RELATIVES[expected]))
    assert str(refused.value) == expected


def test_the_older_kind_of_encryption() -> None:
    with pytest.raises(Refused, match="is an encrypted disk image"):
        is_udif(Memory(bytes(3000) + b"cdsaencr"))


def test_nothing_is_touched_then(tmp_path: Path) -> None:
    image, target = tmp_path / "secret.dmg", tmp_path / "target.img"
    image.write_bytes(b"encrcdsa" + bytes(4088))
    target.write_bytes(text(8 * KIB))
    said = failed(restore(image, target))
    assert said == f"{image} is an encrypted disk image; {CONVERT}, which asks for the password"
    assert target.read_bytes() == text(8 * KIB)


def test_sparse_bundles(tmp_path: Path) -> None:
    bundle = tmp_path / "x.sparsebundle"
    bundle.mkdir()
    info = bundle / "Info.plist"
    refuse_bundle(bundle)
    for other in (b"", b"junk", plistlib.dumps({"size": 1}), plistlib.dumps([1]), b"<plist><date>x</date></plist>"):
        info.write_bytes(other)
        refuse_bundle(bundle)
    for form in (plistlib.FMT_XML, plistlib.FMT_BINARY):
        content = {"diskimage-bundle-type": "com.apple.diskimage.sparsebundle", "size": 1 << 30}
        info.write_bytes(plistlib.dumps(content, fmt=form))
        with pytest.raises(Refused) as refused:
            open_image(str(bundle))
        assert str(refused.value) == f"{bundle} is a sparse disk image (.sparsebundle); {CONVERT}"


def test_a_damaged_one_lets_go_of_its_file(tmp_path: Path) -> None:
    """The file may be written again at once."""
    path = tmp_path / "x.dmg"
    path.write_bytes(koly(version=3))
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(SourceError, match="version 3"):
        open_image(str(path))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("piece", [100, 512, 5000])
def test_one_that_only_comes_as_a_stream_is_no_raw_disk(piece: int) -> None:
    """Its trailer comes last; what was written until then is no disk yet."""
    content = whole((RunType.ZLIB, text(4 * KIB)))

    class Sent(Memory):
        def stream(self) -> Iterator[bytes]:
            for offset in range(0, len(self.content), piece):
                yield self.content[offset : offset + piece]

    passed = b""
    with pytest.raises(SourceError) as caught:
        for found in RawStream(Sent(content)).decode():
            assert isinstance(found, bytes)
            passed += found
    assert str(caught.value) == "x.dmg is a udif image, which has to be a file: copy it, decompressed, to one first"
    assert passed == content
    for other in (content + b"x", content[:-1], b"koly", bytes(512)):
        assert b"".join(RawStream(Sent(other)).decode()) == other  # type: ignore[arg-type]


def test_a_compressed_file_that_is_damaged_at_once_is_closed_once(tmp_path: Path) -> None:
    """What takes the storage over closes it as it fails, and so does who opened it."""
    path = tmp_path / "x.bz2"
    path.write_bytes(bz2.compress(b"x" * 1000) + b"BZh9" + bytes(100))
    with pytest.raises(SourceError, match="is damaged at byte"):
        open_image(str(path))
