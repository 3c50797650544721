"""A disk that is captured is an image that restores to the same disk, and says what could not be read.

Debian packages: bmap-tools gddrescue nbdkit util-linux.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import io
import os
import random
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from nbd.backend import Extent
from nbd.client import Client
from nbd.errors import ConnectionLost
from nbd.uri import NBDURI
from restore.errors import Refused, RestoreError
from restore.making import capture as capture_module
from restore.making.capture import CaptureSettings, Reread, capture
from restore.manifest.beside import bmap_path, load
from restore.manifest.damage import check_damage, map_path, read_map
from restore.manifest.signature import verify
from restore.report.text import TextReport
from restore.source import Source
from restore.source.chunked import ChunkedSource
from restore.source.detect import open_image
from restore.source.raw import RawImage
from tests.restore.engine import asr, failed, nbdkit, succeeded
from tests.serving import run, serving
from tests.support import assert_same_bytes, loop_device, small_filesystem

MIB = 1 << 20


def make_disk(path: Path, size: int = 12 * MIB) -> bytes:
    """A disk of random data, with a MiB of zeroes and one of holes."""
    data = bytearray(random.Random(1).randbytes(size).replace(b"\0", b"\1"))
    data[3 * MIB : 4 * MIB] = bytes(MIB)
    data[5 * MIB + 100 : 5 * MIB + 300_000] = bytes(300_000 - 100)
    path.write_bytes(data)
    return bytes(data)


def captured(
    source: Source | str | Path,
    target: Path,
    used: Iterable[Extent] | None = None,
    settings: CaptureSettings | None = None,
    reread: Reread | None = None,
) -> str:
    """Capture; what was printed."""
    out = io.StringIO()
    opened = open_image(str(source)).source if isinstance(source, str | Path) else source
    with closing(opened):
        work = capture(opened, target, used, settings or CaptureSettings(), TextReport(out, out), reread=reread)
        asyncio.run(work)
    return out.getvalue()


def check_bmap(image: Path, data: bytes) -> None:
    bmap = load(image)
    assert bmap is not None
    assert bmap.image_size == len(data)
    for found in bmap:
        assert blake3(data[found.start : found.end]).digest() == found.blake3


def test_disk(tmp_path: Path) -> None:
    data = make_disk(tmp_path / "disk")
    target = tmp_path / "disk.img"
    with loop_device(tmp_path / "disk") as device:
        printed = captured(device, target)
    assert_same_bytes(target.read_bytes(), data)
    check_bmap(target, data)
    assert target.stat().st_blocks * 512 < len(data) - MIB
    assert read_map(map_path(target), len(data)) is None
    progress, summary = printed.splitlines()
    assert progress == "  Capturing  ....10....20....30....40....50....60....70....80....90....100"
    assert summary.startswith("  Captured 12.0 MiB of 12.0 MiB in ")
    run("bmaptool", "copy", target, tmp_path / "copy")
    assert_same_bytes((tmp_path / "copy").read_bytes(), data)
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


def test_odd_size(tmp_path: Path) -> None:
    data = make_disk(tmp_path / "disk", 4 * MIB + 777)
    captured(tmp_path / "disk", tmp_path / "disk.img")
    assert_same_bytes((tmp_path / "disk.img").read_bytes(), data)
    check_bmap(tmp_path / "disk.img", data)


def test_used_blocks_only(tmp_path: Path) -> None:
    data = make_disk(tmp_path / "disk")
    used = [Extent(2 * MIB, hole=False, zero=False), Extent(8 * MIB + 8192, hole=True, zero=True)]
    used.append(Extent(12 * MIB - sum(extent.length for extent in used), hole=False, zero=False))
    target = tmp_path / "disk.img"
    captured(tmp_path / "disk", target, used)
    want = data[: 2 * MIB] + bytes(8 * MIB + 8192) + data[10 * MIB + 8192 :]
    assert_same_bytes(target.read_bytes(), want)
    bmap = load(target)
    assert bmap is not None
    assert bmap.mapped == 4 * MIB - 8192
    check_bmap(target, want)


def test_export(tmp_path: Path) -> None:
    data = make_disk(tmp_path / "disk")
    with nbdkit("file", tmp_path / "disk", directory=tmp_path) as uri, closing(Client(NBDURI.parse(uri))) as client:
        captured(ChunkedSource(RawImage(Export(client), len(data))), tmp_path / "disk.img")
    assert_same_bytes((tmp_path / "disk.img").read_bytes(), data)


class Export:
    """An NBD export as it is: a `Storage`."""

    name = "export"
    seekable = True

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self.size = client.export.size

    def read(self, offset: int, length: int) -> bytes:
        with self._lock:
            return self._client.read(offset, length)

    def stream(self) -> Iterator[bytes]:
        raise NotImplementedError

    def plain(self, offset: int, length: int) -> None:
        return None

    def check_unchanged(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_bad_sectors_of_an_export(tmp_path: Path) -> None:
    """Of which nbdkit's error filter makes one, for as long as it is there."""
    data = make_disk(tmp_path / "disk")
    bad = [(MIB + 1024, 512), (6 * MIB, 4096)]
    script = tmp_path / "script"
    checks = " || ".join(f"([ $4 -lt {at + length} ] && [ $(($4 + $3)) -gt {at} ])" for at, length in bad)
    script.write_text(
        f'#!/bin/sh\ncase "$1" in\nget_size) echo {len(data)} ;;\n'
        f'pread) if {checks}; then echo "EIO bad sector" >&2; exit 1; fi\n'
        f"dd if={tmp_path}/disk iflag=skip_bytes,count_bytes skip=$4 count=$3 bs=1M status=none ;;\n"
        "*) exit 2 ;;\nesac\n"
    )
    script.chmod(0o755)
    target = tmp_path / "disk.img"
    with nbdkit("sh", script, directory=tmp_path) as uri, closing(Client(NBDURI.parse(uri))) as client:
        export = Export(client)
        printed = captured(ChunkedSource(RawImage(export, len(data))), target, reread=export.read)
    want = bytearray(data)
    for offset, length in bad:
        want[offset : offset + length] = bytes(length)
    assert_same_bytes(target.read_bytes(), want)
    check_bmap(target, bytes(want))
    assert read_map(map_path(target), len(data)) == bad
    line = f"  4.5 KiB could not be read and are zeroes in the image; {target}.map says where"
    assert line in printed.splitlines()


@contextmanager
def failing_disk(path: Path, length: int) -> Iterator[Path]:
    """A loop device whose file ends earlier than it did."""
    with loop_device(path) as device:
        os.truncate(path, length)
        try:
            yield device
        finally:
            os.truncate(path, 12 * MIB)


def test_bad_sectors_of_a_disk(tmp_path: Path) -> None:
    data = make_disk(tmp_path / "disk")
    target = tmp_path / "disk.img"
    length = 11 * MIB + 512 * 77
    with failing_disk(tmp_path / "disk", length) as device:
        captured(device, target)
    assert_same_bytes(target.read_bytes(), data[:length] + bytes(12 * MIB - length))
    assert read_map(map_path(target), len(data)) == [(length, 12 * MIB - length)]
    listed = run("ddrescuelog", "--list-blocks=-", "--block-size=512", map_path(target))
    assert [int(line, 0) for line in listed.out.split()] == list(range(length // 512, 12 * MIB // 512))
    with pytest.raises(Refused, match=r"is not whole: 985\.5 KiB of it could not be read when it was made"):
        check_damage(target, len(data), allow_bad=False)
    captured(tmp_path / "disk", target, settings=CaptureSettings(overwrite=True))
    assert not map_path(target).exists()  # it is whole now


def test_sectors_that_can_be_read_at_last(tmp_path: Path) -> None:
    """Are not bad."""
    data = make_disk(tmp_path / "disk", 2 * MIB)
    tried: dict[int, int] = {}

    class Weak(Export):
        def __init__(self) -> None:
            self.size = len(data)

        def read(self, offset: int, length: int) -> bytes:
            for sector in (MIB + 512, MIB + 4096):
                if offset <= sector < offset + length:
                    tried[sector] = tried.get(sector, 0) + (length == 512)
                    if length > 512 or tried[sector] < (3 if sector == MIB + 512 else 9):
                        raise OSError(errno.EIO, "bad")
            return data[offset : offset + length]

    target = tmp_path / "disk.img"
    weak = Weak()
    captured(ChunkedSource(RawImage(weak, len(data))), target, reread=weak.read)
    assert tried == {MIB + 512: 3, MIB + 4096: 4}
    assert read_map(map_path(target), len(data)) == [(MIB + 4096, 512)]


def test_a_disk_that_is_gone(tmp_path: Path) -> None:
    """Is not an image of zeroes."""
    make_disk(tmp_path / "disk")
    with failing_disk(tmp_path / "disk", 0) as device, pytest.raises(RestoreError) as caught:
        captured(device, tmp_path / "disk.img")
    assert str(caught.value) == f"nothing of {device} could be read"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk"]


def test_a_server_that_is_gone(tmp_path: Path) -> None:
    """Is not a bad sector, whatever the network calls it."""
    data = make_disk(tmp_path / "disk", 4 * MIB)

    class Gone(Export):
        def __init__(self) -> None:
            self.size = len(data)

        def read(self, offset: int, length: int) -> bytes:
            if offset < 2 * MIB:
                return data[offset : offset + length]
            try:
                raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")
            except OSError:
                raise ConnectionLost("nbd://there: Connection timed out") from None

    gone = Gone()
    with pytest.raises(ConnectionLost):
        captured(ChunkedSource(RawImage(gone, len(data))), tmp_path / "disk.img", reread=gone.read)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk"]


def test_existing_image(tmp_path: Path) -> None:
    make_disk(tmp_path / "disk")
    target = tmp_path / "disk.img"
    target.write_bytes(b"old")
    with pytest.raises(Refused) as caught:
        captured(tmp_path / "disk", target)
    assert str(caught.value) == f"{target} exists; with --overwrite it is replaced"
    assert target.read_bytes() == b"old"


def test_overwrite(tmp_path: Path) -> None:
    """And nothing of the old one stays beside it."""
    data = make_disk(tmp_path / "disk")
    target = tmp_path / "disk.img"
    for path in (target, bmap_path(target), Path(f"{target}.bmap.sshsig"), map_path(target)):
        path.write_bytes(b"old")
    captured(tmp_path / "disk", target, settings=CaptureSettings(overwrite=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "disk.img", "disk.img.bmap"]
    check_bmap(target, data)


def refused(source: str | Path, target: str | Path, *options: str) -> str:
    """What `asr capture` says; what lies where the image would be is as it was."""
    path = Path(target)
    before = (path.read_bytes(), path.stat().st_ino) if path.is_file() else None
    message = failed(asr("capture", "--source", source, "--target", target, "--overwrite", *options))
    assert before == ((path.read_bytes(), path.stat().st_ino) if path.is_file() else None)
    return message


def test_overwrite_the_source(tmp_path: Path) -> None:
    """By whatever name."""
    disk, link = tmp_path / "disk", tmp_path / "link"
    make_disk(disk, MIB)
    os.link(disk, link)
    own = "the image needs a file of its own"
    assert refused(disk, disk) == f"{disk} is both source and target; {own}"
    assert refused(disk, link) == f"{link} is both source and target (as {disk}); {own}"
    with loop_device(disk) as device:
        assert refused(device, disk) == f"{disk} is the backing file of {device}; free it first: losetup -d {device}"
    with serving(disk, errors=tmp_path / "errors") as server:
        assert refused(server.uri(), disk).startswith(f"{disk} is locked by ")
    parts = [tmp_path / "split.aa", tmp_path / "split.ab"]
    for part in parts:
        make_disk(part, 6 * MIB)
    assert refused(parts[0], parts[1]).startswith(f"{parts[1]} is locked by ")
    assert not list(tmp_path.glob("*.bmap"))


def test_overwrite_what_is_in_use(tmp_path: Path) -> None:
    """Before the source is even looked for; and what is not in use any more may be replaced."""
    disk, target = tmp_path / "disk", tmp_path / "disk.img"
    make_disk(disk, MIB)
    make_disk(target, MIB)
    gone = tmp_path / "gone"
    with loop_device(target) as device:
        line = f"{target} is the backing file of {device}; free it first: losetup -d {device}"
        assert refused(gone, target) == line
        assert refused(disk, target) == line
    with serving(target, errors=tmp_path / "errors") as server:
        assert server.exports
        assert refused(gone, target).startswith(f"{target} is locked by ")
    with serving(target, options=("--listen", "127.0.0.1:0", "--control", "off", "--read-only"), errors=tmp_path / "e"):
        assert refused(disk, target).startswith(f"{target} is locked by ")
    succeeded(asr("capture", "--source", disk, "--target", target, "--overwrite"))
    assert_same_bytes(target.read_bytes(), disk.read_bytes())


def test_overwrite_an_empty_file(tmp_path: Path) -> None:
    """Which nobody has anything on, and locks all the same."""
    disk, target = tmp_path / "disk", tmp_path / "disk.img"
    data = make_disk(disk, MIB)
    with target.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert refused(disk, target).startswith(f"{target} is locked by ")
    captured(disk, target, settings=CaptureSettings(overwrite=True))
    assert_same_bytes(target.read_bytes(), data)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nbd://10.0.0.11/sda", "nbd://10.0.0.11/sda"),
        ("nbd://me:secret@10.0.0.11/sda", "nbd://10.0.0.11/sda"),
        ("nbd+unix:///sda?socket=/run/x", "nbd+unix:///sda?socket=/run/x"),
        ("https://me:secret@server/lab.img?token=secret", "https://server/lab.img"),
        ("nbd://me:secret@/sda", "nbd:///sda"),
        ("https://me:secret@:x/lab.img", "https://:x/lab.img"),
        ("file:///srv/lab.img", "file:///srv/lab.img"),
    ],
)
def test_onto_a_url(url: str, shown: str, tmp_path: Path) -> None:
    writes = "capture writes an image file on this machine; asr restore writes to disks"
    assert refused(tmp_path / "disk", url) == f"{shown} is no target: {writes}"


def test_signed(tmp_path: Path) -> None:
    make_disk(tmp_path / "disk", MIB)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key")
    (tmp_path / "allowed").write_text("admin " + (tmp_path / "key.pub").read_text())
    target = tmp_path / "disk.img"
    captured(tmp_path / "disk", target, settings=CaptureSettings(sign=str(tmp_path / "key")))
    assert verify(bmap_path(target), str(tmp_path / "allowed")) == "admin"


def test_onto_a_device(tmp_path: Path) -> None:
    make_disk(tmp_path / "disk", MIB)
    with pytest.raises(Refused) as caught:
        captured(tmp_path / "disk", Path("/dev/null"))
    assert str(caught.value) == "/dev/null is not a file; asr restore writes to devices"


def test_no_directory(tmp_path: Path) -> None:
    make_disk(tmp_path / "disk", MIB)
    with pytest.raises(Refused) as caught:
        captured(tmp_path / "disk", tmp_path / "not" / "disk.img")
    assert str(caught.value) == f"{tmp_path}/not/disk.img cannot be written: {tmp_path}/not is no directory"


def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for a small file system")


def test_no_room(tmp_path: Path) -> None:
    needs_root()
    make_disk(tmp_path / "disk")
    with small_filesystem(tmp_path / "small", 12 * MIB) as small:
        with pytest.raises(Refused) as caught:
            captured(tmp_path / "disk", small / "disk.img")
        assert list(small.iterdir()) == []
    assert str(caught.value) == (
        f"{tmp_path}/small has no room for disk.img: up to 13.0 MiB are needed, and 12.0 MiB are free"
    )


def test_just_enough_room(tmp_path: Path) -> None:
    needs_root()
    data = make_disk(tmp_path / "disk")
    with small_filesystem(tmp_path / "small", 14 * MIB) as small:
        captured(tmp_path / "disk", small / "disk.img")
        assert_same_bytes((small / "disk.img").read_bytes(), data)
        check_bmap(small / "disk.img", data)


def test_room_for_the_scan_too(tmp_path: Path) -> None:
    """Of which many small ranges need more; a file system of its own, which keeps its own lists, has to hold it all."""
    needs_root()
    disk, used = tmp_path / "disk", []
    with disk.open("wb") as file:
        for _ in range(2048):
            file.write(b"x" * 4096)
            used += [Extent(4096, hole=False, zero=False), Extent(12288, hole=True, zero=True)]
            file.seek(12288, os.SEEK_CUR)
        file.truncate(32 * MIB)
    (tmp_path / "small").mkdir()
    run("mke2fs", "-q", "-t", "ext2", "-m", "0", "-O", "none", "-b", "4096", tmp_path / "ext2", "11M")
    run("mount", "-o", "loop", tmp_path / "ext2", tmp_path / "small")
    try:
        captured(disk, tmp_path / "small" / "disk.img", used)
        bmap = load(tmp_path / "small" / "disk.img")
    finally:
        run("umount", tmp_path / "small")
    assert bmap is not None
    assert (bmap.mapped, len(bmap)) == (8 * MIB, 2048)


def test_full_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_root()
    make_disk(tmp_path / "disk")
    monkeypatch.setattr(capture_module, "_RESERVE", -(1 << 40))  # as if others had not filled it yet
    with small_filesystem(tmp_path / "small", 8 * MIB) as small:
        with pytest.raises(RestoreError) as caught:
            captured(tmp_path / "disk", small / "disk.img")
        assert list(small.iterdir()) == []
    assert str(caught.value) == f"{tmp_path}/small is full (No space left on device); nothing is left of the image"


def test_source_written_meanwhile(tmp_path: Path) -> None:
    make_disk(tmp_path / "disk")
    source = open_image(str(tmp_path / "disk")).source
    os.utime(tmp_path / "disk", ns=(0, 5))
    with pytest.raises(RestoreError, match="was changed meanwhile; stop what writes it first"):
        captured(source, tmp_path / "disk.img")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk"]


def test_interrupted(tmp_path: Path) -> None:
    make_disk(tmp_path / "disk")

    async def interrupt() -> None:
        with closing(open_image(str(tmp_path / "disk")).source) as source:
            report = TextReport(io.StringIO())
            work = asyncio.create_task(capture(source, tmp_path / "disk.img", None, CaptureSettings(), report))
            await asyncio.sleep(0)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work

    asyncio.run(interrupt())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk"]


def test_a_file_system(tmp_path: Path) -> None:
    """Used blocks, as partclone tells them, make a file system that fsck finds whole."""
    disk = tmp_path / "disk"
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(random.Random(1).randbytes(3 * MIB))
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, disk, "40M"], check=True, capture_output=True)
    captured(disk, tmp_path / "disk.img")
    run("e2fsck", "-f", "-n", tmp_path / "disk.img")
