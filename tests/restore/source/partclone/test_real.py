"""Images that partclone made of real file systems, compressed by real tools; what partclone restores is the measure.

Debian packages: partclone e2fsprogs dosfstools mtools xfsprogs btrfs-progs ntfs-3g gzip zstd xz-utils bzip2 lz4.
"""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from typing import Final

import pytest

from restore.errors import Refused
from restore.source import SourceError, SourceSettings
from restore.source.detect import open_image
from tests.restore.engine import failed, restore, succeeded
from tests.restore.filesystems import checked, make_filesystem
from tests.restore.source.partclone.images import QUIET, Content, clone, image_1, partclone, restoration
from tests.serving import run
from tests.support import assert_same_bytes

MIB: Final = 1 << 20
OPTIONS: Final[dict[str, tuple[str, ...]]] = {
    "none": ("-a0",),
    "crc32": ("-a1",),
    "each": ("-a1", "-k1"),
    "odd": ("-a1", "-k7"),
    "one": ("-a1", "-k100000"),
    "on and on": ("-a1", "-k100", "-K"),
    "clonezilla": ("-z", "10485760"),
}
KINDS: Final = ("ext4", "vfat", "ntfs", "xfs", "btrfs")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of `KIND.img`, `KIND.ptcl` and `KIND.restored`, and of ext4 `OPTION.ptcl`."""
    here = tmp_path_factory.mktemp("partclone")
    tree = here / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "random").write_bytes(random.Random(8).randbytes(2 * MIB + 321))
    for number in range(200):
        (tree / f"small{number}").write_text(f"{number}\n" * 50)
    commands = []
    for kind in KINDS:
        path = here / f"{kind}.img"
        if kind == "ext4":
            with path.open("wb") as file:
                file.truncate(48 * MIB + 1536)  # not a whole number of blocks
            run("mkfs.ext4", "-q", "-F", "-d", tree, path)
        elif kind == "btrfs":
            with path.open("wb") as file:
                file.truncate(120 * MIB)
            run("mkfs.btrfs", "-q", "--rootdir", tree, path)
        else:
            make_filesystem(path, kind)
            if kind == "vfat":
                run("mcopy", "-s", "-i", path, tree / "sub", "::/")
            if kind == "ntfs":
                run("ntfscp", "-q", path, tree / "sub" / "random", "random")
        commands.append(clone(kind, path, here / f"{kind}.ptcl"))
    source = here / "ext4.img"
    commands += (clone("ext4", source, here / f"{name}.ptcl", *words) for name, words in OPTIONS.items())
    partclone(commands)
    partclone([restoration(here / f"{kind}.ptcl", here / f"{kind}.restored") for kind in KINDS])
    return here


def decoded(path: Path, form: str) -> bytes:
    """All of an image."""
    found = open_image(str(path))
    try:
        assert found.format == form
        size, parts, position = found.source.size, [], 0
        assert size is not None
        for extent in found.source.extents():
            for at in range(position, position + extent.length, MIB):
                length = min(MIB, position + extent.length - at)
                payload = bytes(length)
                if not extent.zero:
                    content = found.source.payload(at, length)
                    if isinstance(content, memoryview):
                        payload = bytes(content)
                    else:
                        with path.open("rb") as file:
                            file.seek(content.offset)
                            payload = file.read(length)
                parts.append(payload)
            position += extent.length
        assert position == size
        return b"".join(parts)
    finally:
        found.source.close()


@pytest.mark.parametrize("name", OPTIONS)
def test_options(made: Path, name: str) -> None:
    assert_same_bytes(decoded(made / f"{name}.ptcl", "partclone"), (made / "ext4.restored").read_bytes())


@pytest.mark.parametrize("kind", KINDS)
def test_onto_junk(made: Path, tmp_path: Path, kind: str) -> None:
    """What `asr` leaves is what partclone leaves on an empty disk; the file system's own checker is content."""
    reference = made / f"{kind}.restored"
    target = tmp_path / "target"
    with target.open("wb") as file:
        file.write(random.Random(4).randbytes(16 * MIB) * 3)
        file.truncate(reference.stat().st_size)
    assert "verified" in succeeded(restore(made / f"{kind}.ptcl", target))
    run("cmp", reference, target)
    if kind == "ntfs":  # partclone does not keep the copy of the boot sector, of which ntfsfix complains
        assert run("ntfsls", target).out == run("ntfsls", made / "ntfs.img").out
        assert "random" in run("ntfsls", target).out
    else:
        checked(target, kind)
    run("cmp", f"--bytes={MIB}", made / f"{kind}.img", target)


@pytest.mark.parametrize("tool", ["gzip", "zstd", "lz4"])
def test_compressed(made: Path, tmp_path: Path, tool: str) -> None:
    packed = tmp_path / "image"
    source = made / "clonezilla.ptcl"
    packed.write_bytes(subprocess.run([tool, "-1", "-c", source], capture_output=True, check=True).stdout)
    assert_same_bytes(decoded(packed, f"partclone+{tool}"), (made / "ext4.restored").read_bytes())


def test_compressed_in_blocks(made: Path, tmp_path: Path) -> None:
    """Which can be read at random, and is streamed all the same: no block is decoded twice."""
    packed = tmp_path / "image"
    command = ["xz", "-0", "-T2", "--block-size=1MiB", "-c", str(made / "clonezilla.ptcl")]
    packed.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    found = open_image(str(packed))
    assert found.source.sequential
    found.source.close()
    assert_same_bytes(decoded(packed, "partclone+xz"), (made / "ext4.restored").read_bytes())


@pytest.mark.parametrize("tool", ["gzip", "cat"])
def test_split(made: Path, tmp_path: Path, tool: str) -> None:
    first = tmp_path / "sda1.ext4-ptcl-img.gz.aa"
    command = f"{tool} < {made / 'crc32.ptcl'} | split -a 2 -b 1000000 - {first.with_suffix('')}."
    run("bash", "-o", "pipefail", "-c", command)
    form = "partclone+gzip" if tool == "gzip" else "partclone"
    assert_same_bytes(decoded(first, form), (made / "ext4.restored").read_bytes())


def test_version_1(made: Path, tmp_path: Path) -> None:
    """No program writes it any more; partclone still reads it."""
    reference = (made / "vfat.restored").read_bytes()
    size, total = 2048, len(reference) // 2048
    blocks = ((number, reference[number * size : (number + 1) * size]) for number in range(total))
    used = {number: block for number, block in blocks if block != bytes(size)}
    path = tmp_path / "old"
    path.write_bytes(image_1(Content(total, size, used)))
    assert_same_bytes(decoded(path, "partclone"), reference)
    theirs = tmp_path / "theirs"
    theirs.write_bytes(bytes(len(reference)))
    run("partclone.restore", *QUIET, "-C", "-s", path, "-O", theirs, "-L", tmp_path / "log")
    assert_same_bytes(theirs.read_bytes(), reference)


def test_damage_ends_a_restore(made: Path, tmp_path: Path) -> None:
    wrong = bytearray((made / "crc32.ptcl").read_bytes())
    wrong[-1_500_000] ^= 1
    path, target = tmp_path / "wrong", tmp_path / "target"
    path.write_bytes(wrong)
    packed = tmp_path / "wrong.zst"
    packed.write_bytes(subprocess.run(["zstd", "-c", path], capture_output=True, check=True).stdout)
    for source in (path, packed):
        target.write_bytes(b"\xff" * (49 * MIB))
        line = failed(restore(source, target))
        assert line.startswith(f"{source}: blocks "), line
        assert "damaged, their CRC-32 is not right (from byte " in line
        assert not any(target.read_bytes()[:MIB])  # nothing boots from it


def test_another_format_by_force(made: Path) -> None:
    with pytest.raises(SourceError, match=r"ext4\.img does not begin with the header of a partclone image$"):
        open_image(str(made / "ext4.img"), SourceSettings(format="partclone"))
    found = open_image(str(made / "crc32.ptcl"), SourceSettings(format="raw"))
    assert (found.format, found.source.size) == ("raw", (made / "crc32.ptcl").stat().st_size)
    found.source.close()


@pytest.mark.parametrize(
    ("magic", "program"), [(b"PaRtImAgE-VoLuMe", "partimage"), (b"\0ntfsclone-image", "ntfsclone")]
)
def test_images_of_other_programs(tmp_path: Path, magic: bytes, program: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(magic + bytes(100))
    with pytest.raises(Refused, match=f"^{path} is an image of {program}, which asr does not read; use {program}"):
        open_image(str(path))
