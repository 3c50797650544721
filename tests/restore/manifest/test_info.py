"""What is told of an image is what is there, as text, as a property list, and as JSON.

Debian packages: fdisk dosfstools e2fsprogs openssh-client bmap-tools.
"""

from __future__ import annotations

import json
import os
import plistlib
from contextlib import closing
from pathlib import Path

from restore.manifest.beside import bmap_path
from restore.manifest.damage import write_map
from restore.manifest.info import ImageInfo, describe
from restore.source.detect import open_image
from restore.source.raw import RawStream
from restore.source.storage.file import LocalFile
from restore.source.stream import StreamSource
from tests.restore.manifest.images import MIB, scanned
from tests.serving import run


def make_disk(path: Path) -> None:
    """A GPT disk with an EFI system partition and ext4."""
    with path.open("wb") as file:
        file.truncate(80 * MIB)
    table = "label: gpt\nstart=2048, size=65536, type=U, name=EFI\nstart=67584, size=90112, type=L, name=root\n"
    run("sfdisk", "--quiet", path, stdin=table)
    run("mkfs.vfat", "-n", "BOOT", "-i", "12345678", "-F", "32", "--offset=2048", path, str(32 * 1024), check=False)
    options = f"offset={33 * MIB}"
    uuid = "5a2f36b7-0a5f-4a3a-9f0c-111111111111"
    run("mke2fs", "-q", "-t", "ext4", "-F", "-L", "system", "-U", uuid, "-E", options, path, "44M")


def info(path: Path, allowed_signers: str | None = None) -> ImageInfo:
    with closing(open_image(str(path)).source) as source:
        return describe(source, path, "raw", allowed_signers)


def test_a_disk(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    make_disk(image)
    found = info(image)
    assert (found.size, found.stored, found.scheme, found.scan) == (80 * MIB, 80 * MIB, "gpt", "none")
    assert [(p.number, p.start, p.size, p.name) for p in found.partitions] == [
        (1, MIB, 32 * MIB, "EFI"),
        (2, 33 * MIB, 44 * MIB, "root"),
    ]
    root = found.partitions[1].file_system
    assert root is not None
    assert (root.kind, root.label, root.uuid) == ("ext4", "system", "5a2f36b7-0a5f-4a3a-9f0c-111111111111")
    assert found.mapped is not None
    assert found.mapped <= image.stat().st_blocks * 512
    lines = found.as_text().splitlines()
    assert lines[:3] == [f"Image:        {image}", "Format:       raw", "Size:         80.0 MiB (83886080 bytes)"]
    assert lines[4] == "Partitions:   2, gpt"
    assert lines[6:] == [
        '  2:          ext4 "system", 44.0 MiB at byte 34603008, "root"',
        "Scan:         none",
        "Signature:    none",
    ]


def test_a_file_system(tmp_path: Path) -> None:
    image = tmp_path / "fs.img"
    run("mke2fs", "-q", "-t", "ext4", "-F", "-L", "data", image, "8M")
    found = info(image)
    assert (found.scheme, found.partitions) == ("", ())
    assert 'File system:  ext4 "data"' in found.as_text().splitlines()


def test_nothing_known(image: Path) -> None:
    found = info(image)
    assert (found.scheme, found.partitions, found.file_system) == ("", (), None)


def test_json_and_plist_say_the_same(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    make_disk(image)
    scanned(image)
    found = info(image)
    as_json = json.loads(found.as_json())
    assert as_json == plistlib.loads(found.as_plist().encode()) == found.as_dictionary()
    assert as_json["partitions"][1]["file_system"]["kind"] == "ext4"
    assert as_json["scan"] == "matches"
    assert as_json["mapped"] == found.mapped
    assert "scan_ranges" in as_json
    assert "scan_ranges" not in info_without_scan(image)


def info_without_scan(image: Path) -> dict[str, object]:
    bmap_path(image).unlink()
    return info(image).as_dictionary()


def test_scans(image: Path) -> None:
    bmap, _ = scanned(image)
    assert f"Scan:         matches, {len(bmap)} ranges" in info(image).as_text().splitlines()
    os.utime(image, ns=(1 << 61, 1 << 61))
    found = info(image)
    assert found.scan == "refused"
    assert found.scan_problem.startswith(f"{image}.bmap is older than {image}; scan it again: asr imagescan {image}")
    assert f"Scan:         {found.scan_problem}" in found.as_text().splitlines()
    bmap_path(image).write_text("nonsense")
    assert info(image).scan_problem.startswith(f"{image}.bmap is not a valid block map: line 1: ")


def test_signatures(image: Path, tmp_path: Path) -> None:
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key")
    allowed = tmp_path / "allowed"
    allowed.write_text("admin " + (tmp_path / "key.pub").read_text())
    scanned(image, sign=str(tmp_path / "key"))
    assert "Signature:    there is one, not checked" in info(image).as_text().splitlines()
    assert "Signature:    valid, by admin" in info(image, str(allowed)).as_text().splitlines()
    allowed.write_text("")
    found = info(image, str(allowed))
    assert found.signature == "refused"
    line = f"Signature:    {image}.bmap.sshsig is not from a signer that {allowed} allows"
    assert line in found.as_text().splitlines()


def test_damage(image: Path) -> None:
    write_map(f"{image}.map", image.stat().st_size, [(512, 1024)])
    line = f"Unreadable:   1.0 KiB when it was captured; see {image}.map"
    assert line in info(image).as_text().splitlines()
    Path(f"{image}.map").write_text("nonsense")
    assert "unreadable" not in info(image).as_dictionary()
    assert f"Unreadable:   unknown when it was captured; see {image}.map" in info(image).as_text().splitlines()


def test_a_stream_is_not_decoded_for_it(tmp_path: Path) -> None:
    """But for its beginning."""
    image = tmp_path / "disk.img"
    make_disk(image)
    with closing(StreamSource(RawStream(LocalFile(str(image))))) as source:
        found = describe(source, image, "raw")
    assert found.scheme == "gpt"
    assert [partition.number for partition in found.partitions] == [1, 2]
    assert found.mapped is None


def test_hostile_names(image: Path) -> None:
    evil = image.with_name("a\x1b[31m\nb.img")
    image.rename(evil)
    assert "\x1b" not in info(evil).as_text()
    json.loads(info(evil).as_json())
