"""Prepared images through the command line: what is refused before anything is touched, and what options leave alone.

Debian packages: bmap-tools openssh-client.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from restore.manifest.damage import map_path, write_map
from tests.restore.engine import MIB, asr, failed, restore, succeeded, verify
from tests.restore.manifest.images import fill
from tests.restore.source.storage.servers import nginx
from tests.serving import pattern, run
from tests.support import assert_same_bytes

SIZE = 6 * MIB
ISLANDS = ((0, 300_000), (MIB + 8192, 4096), (2 * MIB, MIB // 2), (4 * MIB + 65536, MIB))
AGAIN = "scan it again: asr imagescan"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A scanned one, with holes."""
    path = tmp_path / "disk.img"
    fill(path, SIZE, ISLANDS)
    succeeded(asr("imagescan", path))
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target.img"
    path.write_bytes(pattern(SIZE + MIB, seed=4))
    return path


@pytest.fixture
def untouched(target: Path) -> Iterator[Path]:
    """A target of which, when the test is over, not one byte has changed."""
    old = target.read_bytes()
    yield target
    assert_same_bytes(target.read_bytes(), old)


def scan_of(image: Path) -> Path:
    return Path(f"{image}.bmap")


def islands(size: int = SIZE) -> list[tuple[int, int]]:
    """What is mapped, as (start, end): by blocks, with gaps of less than 64 KiB."""
    return [(start // 4096 * 4096, min(-(-(start + length) // 4096) * 4096, size)) for start, length in ISLANDS]


# --- What is refused ---


def test_older_than_the_image(image: Path, untouched: Path) -> None:
    with image.open("r+b") as file:
        file.write(b"changed")
    later = scan_of(image).stat().st_mtime_ns + 10**9
    os.utime(image, ns=(later, later))
    assert failed(restore(image, untouched)) == (
        f"{scan_of(image)} is older than {image}; {AGAIN} {image}, or if the image was only copied: touch "
        f"{scan_of(image)}"
    )


def test_of_a_file_of_another_size(image: Path, untouched: Path) -> None:
    with image.open("ab") as file:
        file.write(b"more")
    scan_of(image).touch()
    assert failed(restore(image, untouched)) == (
        f"{scan_of(image)} does not match: {image} had {SIZE} bytes when it was scanned, and has {SIZE + 4}; "
        f"{AGAIN} {image}"
    )


def test_of_an_image_of_another_size(image: Path, untouched: Path, tmp_path: Path) -> None:
    """bmaptool's has nothing of the file."""
    other = tmp_path / "other.img"
    fill(other, SIZE + MIB, ISLANDS)
    run("bmaptool", "create", other, "-o", scan_of(image))
    assert failed(restore(image, untouched)) == (
        f"{scan_of(image)} does not match: it is of an image of 7.0 MiB ({SIZE + MIB} bytes), and {image} has 6.0 MiB "
        f"({SIZE} bytes); {AGAIN} {image}"
    )


def test_damaged_scan(image: Path, untouched: Path) -> None:
    text = scan_of(image).read_text()
    scan_of(image).write_text(text.replace('blake3="', 'blake3="0', 1).replace("0 </BlocksCount>", "0</BlocksCount>"))
    assert failed(restore(image, untouched)).startswith(f"{scan_of(image)} is not a valid block map: ")
    one = next(line for line in text.splitlines() if "<Range" in line)
    digit = one.index('blake3="') + 8
    other = one[:digit] + ("0" if one[digit] != "0" else "1") + one[digit + 1 :]
    scan_of(image).write_text(text.replace(one, other))
    assert failed(restore(image, untouched)) == (
        f"{scan_of(image)} is not a valid block map: its BmapFileChecksum does not match, so it was damaged or edited"
    )
    scan_of(image).write_bytes(b"\x89PNG\r\n")
    assert failed(restore(image, untouched)).startswith(f"{scan_of(image)} is not a valid block map: line 1: ")


def make_key(path: Path) -> Path:
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path)
    return path


def allowing(key: Path) -> Path:
    path = key.with_name("allowed")
    path.write_text(f"admin@example.org {Path(f'{key}.pub').read_text()}")
    return path


def test_signatures(image: Path, target: Path, tmp_path: Path) -> None:
    old = target.read_bytes()
    allowed = allowing(make_key(tmp_path / "key"))
    stranger = make_key(tmp_path / "stranger")
    scan, words = scan_of(image), ("--verify-signature", str(allowed))
    assert failed(restore(image, target, *words)) == f"{scan} is not signed: there is no {scan}.sshsig"
    succeeded(asr("imagescan", "--sign", stranger, image))
    assert failed(restore(image, target, *words)) == f"{scan}.sshsig is not from a signer that {allowed} allows"
    succeeded(asr("imagescan", "--sign", tmp_path / "key", image))
    text = scan.read_text()
    scan.write_text(text.replace("<BlockMap>", "<BlockMap> "))
    assert failed(restore(image, target, *words)) == (
        f"{scan}.sshsig does not match {scan}: one of them was changed, or it was signed for another purpose"
    )
    scan.unlink()
    assert failed(restore(image, target, *words)) == (
        f"{image} has no scan that could be signed; scan it: asr imagescan --sign KEY {image}"
    )
    assert_same_bytes(target.read_bytes(), old)
    scan.write_text(text)
    out = succeeded(restore(image, target, *words))
    assert f"  The scan of {image} is signed by admin@example.org\n" in out
    assert ", verified" in out
    assert_same_bytes(target.read_bytes(), image.read_bytes() + old[SIZE:])


@pytest.mark.parametrize("output", ["", "--json", "--plist"])
def test_info_of_what_has_to_be_signed(image: Path, tmp_path: Path, output: str) -> None:
    """What there is to tell is told first; then it fails, unless the scan is signed as it has to be."""
    allowed = allowing(make_key(tmp_path / "key"))
    stranger = make_key(tmp_path / "stranger")
    scan = scan_of(image)

    def refusal(signers: Path = allowed) -> str:
        result = asr("info", image, "--verify-signature", signers, *([output] if output else []))
        assert str(image) in result.out
        return failed(result)

    assert refusal() == f"{scan} is not signed: there is no {scan}.sshsig"
    succeeded(asr("imagescan", "--sign", stranger, image))
    assert refusal() == f"{scan}.sshsig is not from a signer that {allowed} allows"
    succeeded(asr("imagescan", "--sign", tmp_path / "key", image))
    missing = tmp_path / "missing"
    assert refusal(missing) == f"{missing}, the list of allowed signers: No such file or directory"
    assert "admin@example.org" in succeeded(asr("info", image, "--verify-signature", allowed))
    scan.unlink()
    assert refusal() == f"{image} has no scan that could be signed; scan it: asr imagescan --sign KEY {image}"


def test_what_lies_beside_a_url(image: Path, target: Path, tmp_path: Path) -> None:
    """Scan and signature are found there, and what is read is checked."""
    old = target.read_bytes()
    allowed = allowing(make_key(tmp_path / "key"))
    words = ("restore", "--target", target, "--erase", "--noprompt", "--verify-signature", allowed, "--source")
    with nginx(tmp_path) as server:
        url, served = server.url("image"), server.files / "image"
        served.write_bytes(image.read_bytes())
        insisting = failed(restore(url, target, "--SHA256"))
        assert insisting.endswith(" with --SHA256: scan it where its file is: asr imagescan FILE")
        assert (
            failed(asr(*words, url))
            == f"{url} has no scan that could be signed; scan it: asr imagescan --sign KEY FILE, where its file is"
        )
        succeeded(asr("imagescan", "--sign", tmp_path / "key", image))
        scan = server.files / "image.bmap"
        scan.write_bytes(scan_of(image).read_bytes())
        info = asr("info", "--verify-signature", allowed, url)
        assert failed(info) == f"{url}.bmap is not signed: there is no {url}.bmap.sshsig"
        assert "Scan:         matches" in info.out
        assert failed(asr(*words, url)) == f"{url}.bmap is not signed: there is no {url}.bmap.sshsig"
        (server.files / "image.bmap.sshsig").write_bytes(Path(f"{scan_of(image)}.sshsig").read_bytes())
        assert f"The scan of {url} is signed by admin@example.org" in succeeded(asr(*words, url))
        assert_same_bytes(target.read_bytes(), image.read_bytes() + old[SIZE:])
        with served.open("r+b") as file:
            byte = file.read(1)
            file.seek(0)
            file.write(bytes([byte[0] ^ 1]))
        assert failed(asr(*words, url)).startswith(
            f"the source is at fault: {url} is damaged or was changed: MiB 0 does"
        )


def test_damaged_image(image: Path, target: Path) -> None:
    """What is damaged is not written; what was written by then leaves an empty disk."""
    old = target.read_bytes()
    with image.open("r+b") as file:
        file.seek(2 * MIB + 5)
        file.write(b"!")
    scan_of(image).touch()
    message = failed(restore(image, target))
    assert message == (
        f"the source is at fault: {image} is damaged or was changed: MiB 2 does not match its scan, nor when read once "
        f"more; {target} is left empty"
    )
    now = target.read_bytes()
    assert_same_bytes(now[:MIB], bytes(MIB))
    assert_same_bytes(now[SIZE:], old[SIZE:])


# --- --keep-unmapped ---


@pytest.mark.parametrize("kept", [False, True])
def test_what_lies_between(kept: bool, image: Path, target: Path) -> None:
    """It stays as it was but for the first MiB, which is zeroed at first; by default it is zeroed."""
    old, data = target.read_bytes(), image.read_bytes()
    wanted = bytearray(MIB) + bytearray(old[MIB:SIZE] if kept else SIZE - MIB)
    for start, end in islands():
        wanted[start:end] = data[start:end]
    options = ("--keep-unmapped",) if kept else ()
    assert ", verified" in succeeded(restore(image, target, *options))
    assert_same_bytes(target.read_bytes(), bytes(wanted) + old[SIZE:])
    assert "every block is the same" in succeeded(verify(image, target, *options))
    with target.open("r+b") as file:
        file.seek(3 * MIB + 4096)
        file.write(b"not mapped")
    if kept:
        succeeded(verify(image, target, *options))
    else:
        failed(verify(image, target), 3)


def test_kept_unmapped_and_delta(image: Path, target: Path) -> None:
    """Nothing is asked about what is not mapped."""
    succeeded(restore(image, target, "--keep-unmapped"))
    before = target.read_bytes()
    said = succeeded(restore(image, target, "--keep-unmapped", "--delta"))
    assert "of it written, the rest was there already" in said
    assert_same_bytes(target.read_bytes(), before)


def test_kept_unmapped_without_a_scan(image: Path, untouched: Path) -> None:
    scan_of(image).unlink()
    assert failed(restore(image, untouched, "--keep-unmapped")) == (
        f"{image} has no scan that says what is mapped, for --keep-unmapped; asr imagescan {image}"
    )


# --- --allow-bad, --SHA256 ---


def test_images_with_bad_sectors(image: Path, target: Path) -> None:
    old = target.read_bytes()
    write_map(map_path(image), SIZE, [(2 * MIB, 1024), (3 * MIB, 512)])
    assert failed(restore(image, target)) == (
        f"{image} is not whole: 1.5 KiB of it could not be read when it was made (2 ranges, the first from byte "
        f"{2 * MIB} on; see {map_path(image)}); with --allow-bad they are restored as the image has them"
    )
    assert_same_bytes(target.read_bytes(), old)
    said = succeeded(restore(image, target, "--allow-bad"))
    assert f"{image}: 1.5 KiB could not be read when it was captured, and are zeroes\n" in said
    assert_same_bytes(target.read_bytes(), image.read_bytes() + old[SIZE:])


def test_sha256(image: Path, target: Path) -> None:
    old = target.read_bytes()
    scan = scan_of(image).read_bytes()
    scan_of(image).unlink()
    assert failed(restore(image, target, "--SHA256")) == (
        f"{image}: could not find any scan information. The source image needs to be imagescanned before it can be "
        f"restored with --SHA256: asr imagescan {image}"
    )
    run("bmaptool", "create", "--no-checksum", image, "-o", scan_of(image))
    assert failed(restore(image, target, "--SHA256")) == (
        f"{image}: its scan has no SHA-256 checksums of all of it, which --SHA256 insists on; asr imagescan {image}"
    )
    assert_same_bytes(target.read_bytes(), old)
    scan_of(image).write_bytes(scan)
    succeeded(restore(image, target, "--SHA256"))
    assert_same_bytes(target.read_bytes(), image.read_bytes() + old[SIZE:])
