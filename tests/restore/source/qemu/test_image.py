"""Images of virtual machines' disks, made by qemu-img and decoded by a qemu-nbd of ours.

Debian packages: qemu-utils util-linux.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import pytest

from restore.errors import Refused, RestoreError
from restore.source import SourceError, SourceSettings
from restore.source.detect import open_image
from restore.source.export.image import ExportSource
from tests.restore.engine import MIB, failed, qemu_nbd, restore, started, succeeded
from tests.restore.source.exported import disk_with_holes, read_all
from tests.serving import alive, pattern, run
from tests.support import assert_same_bytes, wait_until

SIZE: Final = 13 * MIB
IMAGES: Final = {
    "qcow2": ("qcow2", ()),
    "old": ("qcow2", ("-o", "compat=0.10")),
    "zlib": ("qcow2", ("-c",)),
    "zstd": ("qcow2", ("-c", "-o", "compression_type=zstd")),
    "subclusters": ("qcow2", ("-o", "extended_l2=on,cluster_size=128k")),
    "vmdk": ("vmdk", ()),
    "flat": ("vmdk", ("-o", "subformat=monolithicFlat")),
    "split": ("vmdk", ("-o", "subformat=twoGbMaxExtentSparse")),
    "stream": ("vmdk", ("-o", "subformat=streamOptimized")),
    "vhdx": ("vhdx", ()),
    "vdi": ("vdi", ()),
    "vhd": ("vpc", ("-o", "force_size=on")),
    "fixed": ("vpc", ("-o", "subformat=fixed,force_size=on")),
}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "disk.raw"
    disk_with_holes(path)
    return path


def converted(disk: Path, path: Path, kind: str) -> Path:
    form, options = IMAGES[kind]
    run("qemu-img", "convert", "-f", "raw", "-O", form, *options, disk, path)
    return path


@pytest.fixture
def image(disk: Path, tmp_path: Path) -> Path:
    return converted(disk, tmp_path / "image", "qcow2")


def opened(path: Path, **settings: object) -> ExportSource:
    source = open_image(str(path), SourceSettings(**settings)).source  # type: ignore[arg-type]
    assert isinstance(source, ExportSource)
    return source


def refusal(path: Path, kind: type[RestoreError] = Refused, **settings: object) -> str:
    before = servers()
    with pytest.raises(RestoreError) as caught:
        opened(path, **settings).close()
    assert type(caught.value) is kind, caught.value
    assert servers() == before
    return str(caught.value)


def servers(pid: int | None = None) -> list[int]:
    """The qemu-nbd that we have begun, or another."""
    found = []
    for child in (c for task in Path(f"/proc/{pid or os.getpid()}/task").iterdir() for c in _children(task)):
        if alive(child) and b"qemu-nbd" in Path(f"/proc/{child}/cmdline").read_bytes():
            found.append(child)
    return found


def _children(task: Path) -> list[int]:
    try:
        return [int(word) for word in (task / "children").read_text().split()]
    except FileNotFoundError:
        return []


@pytest.mark.parametrize("kind", IMAGES)
def test_every_format(kind: str, disk: Path, tmp_path: Path) -> None:
    path = converted(disk, tmp_path / "image", kind)
    found = open_image(str(path))
    assert (found.format, found.path) == (IMAGES[kind][0], path)
    source = found.source
    with closing(source):
        assert (source.name, source.size) == (str(path), SIZE)
        data = disk.read_bytes()
        assert_same_bytes(read_all(source), data)
        position = 0
        for extent in source.extents():
            assert not extent.zero or not any(data[position : position + extent.length])
            position += extent.length
        assert position == SIZE
        holes = sum(extent.length for extent in source.extents() if extent.zero)
        assert holes >= {"vhdx": 0, "vhd": 2 * MIB}.get(
            kind, 5 * MIB
        )  # the one is not told of, the other has large blocks
        source.check_unchanged()
        assert len(servers()) == 1
    assert servers() == []


def test_snapshots_inside_do_not_matter(image: Path, disk: Path) -> None:
    run("qemu-img", "snapshot", "-c", "before", image)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", image)
    with closing(opened(image)) as source:
        assert_same_bytes(read_all(source), b"\7" * MIB + disk.read_bytes()[MIB:])


def test_the_format_is_as_it_is_told(image: Path, disk: Path) -> None:
    raw = open_image(str(image), SourceSettings(format="raw"))
    with closing(raw.source):
        assert raw.source.size == image.stat().st_size
    assert refusal(disk, SourceError, format="qcow2") == (
        f"{disk} is no qcow2 image, or is damaged: it does not begin as one of version 2 or 3"
    )


def test_a_disk_is_restored_from_one(image: Path, disk: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(pattern(SIZE, 5))
    assert "Restored 13.0 MiB" in succeeded(restore(image, target))
    assert_same_bytes(target.read_bytes(), disk.read_bytes())


# --- Other files ---


@pytest.mark.parametrize(
    "backing",
    ["/etc/passwd", 'json:{"driver":"nbd","host":"127.0.0.1"}', "nbd://127.0.0.1:1/x", "disk.raw", "fat:/etc"],
)
def test_backing_files_are_not_opened(backing: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", "raw", path, "13M")
    message = f"{path} has the backing file {backing}, which holds a part of it; --allow-backing reads that too"
    assert refusal(path) == message
    target = tmp_path / "target"
    target.write_bytes(pattern(SIZE))
    assert failed(restore(path, target)) == message
    assert target.read_bytes() == pattern(SIZE)


def test_a_backing_file_that_is_allowed(image: Path, disk: Path, tmp_path: Path) -> None:
    """And one of its own."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", image.name, "-F", "qcow2", tmp_path / "over")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "over", "-F", "qcow2", tmp_path / "top")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 9 1M 1M", tmp_path / "top")
    data = bytearray(disk.read_bytes())
    data[MIB : 2 * MIB] = b"\x09" * MIB
    with closing(opened(tmp_path / "top", allow_backing=True)) as source:
        assert_same_bytes(read_all(source), data)
        source.check_unchanged()
        os.utime(image, ns=(0, 5))
        with pytest.raises(RestoreError, match=r"image was changed meanwhile; stop what writes it first$"):
            source.check_unchanged()


def test_a_raw_backing_file_that_looks_like_another(image: Path, tmp_path: Path) -> None:
    """It is what the image says; qemu would look, and open what a guest has written there."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", image.name, "-F", "raw", tmp_path / "over", "13M")
    with closing(opened(tmp_path / "over", allow_backing=True)) as source:
        assert source.reread(0, 4) == b"QFI\xfb"


def test_a_backing_file_of_no_format(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "over"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", image.name, "-F", "qcow2", path)
    data = path.read_bytes()
    at = data.index(struct.pack(">I", 0xE2792ACA))
    path.write_bytes(data[:at] + b"\x01" + data[at + 1 :])
    assert refusal(path, allow_backing=True).startswith(
        f"{path} does not say in which format its backing file image is; tell it: qemu-img rebase -u "
    )


def test_a_backing_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "over"
    for backing, why in (
        ('json:{"driver":"null-co"}', 'names json:{"driver":"null-co"}, which is no file; qemu-img convert it first'),
        ("http://127.0.0.1:1/x", "names http://127.0.0.1:1/x, which is no file; qemu-img convert it first"),
    ):
        run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", "raw", path, "13M")
        assert refusal(path, allow_backing=True) == f"{path} {why}"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "over", "-F", "qcow2", path, "13M")
    assert refusal(path, allow_backing=True) == f"{path} lies on more than 32 other files, or on itself"


def test_an_export_as_backing_file(disk: Path, tmp_path: Path) -> None:
    with qemu_nbd(disk, directory=tmp_path) as uri:
        path = tmp_path / "over"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", uri, "-F", "raw", path, "13M")
        assert "has the backing file nbd+unix:" in refusal(path)
        with closing(opened(path, allow_backing=True)) as source:
            assert_same_bytes(read_all(source), disk.read_bytes())


def test_data_in_another_file(disk: Path, tmp_path: Path) -> None:
    path = tmp_path / "image"
    options = f"data_file={tmp_path}/data,data_file_raw=on"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", options, disk, path)
    assert refusal(path) == f"{path} keeps its data in {tmp_path}/data; --allow-backing reads that too"
    with closing(opened(path, allow_backing=True)) as source:
        assert_same_bytes(read_all(source), disk.read_bytes())


def test_extents_of_vmdk_lie_beside_it(disk: Path, tmp_path: Path) -> None:
    path = converted(disk, tmp_path / "image.vmdk", "flat")
    text = path.read_text()
    for name in ("/etc/passwd", "../etc/passwd", "nbd:127.0.0.1:1", "link"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to("/etc/passwd")
        path.write_text(text.replace("image-flat.vmdk", name))
        assert refusal(path) == f"{path} keeps its data in {name}; --allow-backing reads that too"
    path.write_text(text.replace("image-flat.vmdk", "gone"))
    assert refusal(path) == f"{tmp_path}/gone: No such file or directory"


def test_a_parent_of_a_vmdk(disk: Path, tmp_path: Path) -> None:
    parent = converted(disk, tmp_path / "parent.vmdk", "vmdk")
    path = tmp_path / "child.vmdk"
    run("qemu-img", "create", "-q", "-f", "vmdk", "-b", parent, "-F", "vmdk", path)
    assert (
        refusal(path)
        == f"{path} has the backing file {parent}, which holds a part of it; --allow-backing reads that too"
    )
    with closing(opened(path, allow_backing=True)) as source:
        assert_same_bytes(read_all(source), disk.read_bytes())


def test_a_difference_that_qemu_cannot_read(disk: Path, tmp_path: Path) -> None:
    path = converted(disk, tmp_path / "image", "vdi")
    with path.open("r+b") as file:
        file.seek(0x4C)
        file.write(b"\4")
    for allowed in (False, True):
        message = f"{path} is the difference to a parent image; merge the two first"
        assert refusal(path, allow_backing=allowed) == message


def test_encrypted(tmp_path: Path) -> None:
    path = tmp_path / "image"
    secret = ("--object", "secret,id=s,data=abc", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10")
    run("qemu-img", "create", "-q", "-f", "qcow2", *secret, path, "1M")
    assert refusal(path) == f"{path} is encrypted (LUKS); decrypt it first, with qemu-img convert"


# --- Damage ---


@pytest.mark.parametrize("kind", [kind for kind in IMAGES if kind not in ("fixed", "flat", "split")])
def test_cut_short(kind: str, disk: Path, tmp_path: Path) -> None:
    """What is missing would be zeroes, as qemu sees it."""
    path = converted(disk, tmp_path / "image", kind)
    size = path.stat().st_size
    # Of vhdx the last block is not used to its end; of qcow2 the last cluster may be short.
    for length in (size - (5 * MIB if kind == "vhdx" else 200_000), size // 2):
        os.truncate(path, length)
        try:
            with closing(opened(path)) as source:
                read_all(source)
        except SourceError as error:
            assert str(error).startswith(str(path))
            assert "\n" not in str(error)
        else:
            raise AssertionError(f"nobody has noticed that {kind} ends at {length}")
        assert servers() == []


@pytest.mark.parametrize("kind", ["flat", "split"])
def test_an_extent_that_is_cut_short(kind: str, disk: Path, tmp_path: Path) -> None:
    path = converted(disk, tmp_path / "image.vmdk", kind)
    part = tmp_path / ("image-flat.vmdk" if kind == "flat" else "image-s001.vmdk")
    size = part.stat().st_size
    os.truncate(part, size - 512)
    message = refusal(path, SourceError)
    assert message.startswith(f"{part} is cut short: it has {size - 512} bytes, and has to have ")


def test_tables_that_lead_nowhere(image: Path) -> None:
    with image.open("r+b") as file:
        (table,) = struct.unpack_from(">Q", file.read(104), 40)
        file.seek(table)
        file.write(struct.pack(">Q", 1 << 63 | 0x7FFF0000))
    assert refusal(image, SourceError).startswith(f"{image} is damaged: qemu-img check: ")


def test_marked_as_corrupt(image: Path) -> None:
    with image.open("r+b") as file:
        file.seek(79)
        file.write(b"\2")
    message = f"{image} is marked as corrupt; mend a copy of it first: qemu-img check -r all FILE"
    assert refusal(image, SourceError) == message


def test_words_of_qemu(disk: Path, tmp_path: Path) -> None:
    path = converted(disk, tmp_path / "image", "vhdx")
    os.truncate(path, path.stat().st_size // 2)
    assert refusal(path, SourceError).startswith(f"{path}: qemu-nbd: VHDX BAT entry ")


# --- The child, and the file ---


def test_in_use(image: Path) -> None:
    with image.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert refusal(image) == f"{image} is being written by another program; stop that first"


def test_used_by_a_virtual_machine(image: Path) -> None:
    """Which has locks of qemu's own kind."""
    command = ["qemu-io", "-f", "qcow2", str(image)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as user:
        assert user.stdin is not None
        assert user.stdout is not None
        user.stdin.write(b"length\n")
        user.stdin.flush()
        user.stdout.readline()
        for path, form in ((image, "qcow2"), (image, None)):
            assert refusal(path, format=form) == f"{image} is being written by another program; stop that first"
        user.stdin.close()


def test_changed_meanwhile(image: Path) -> None:
    with closing(opened(image)) as source:
        source.check_unchanged()
        os.utime(image, ns=(0, 5))
        with pytest.raises(RestoreError) as caught:
            source.check_unchanged()
    assert str(caught.value) == f"{image} was changed meanwhile; stop what writes it first"


def test_not_installed(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, path: None if name == "qemu-nbd" else real(name, path=path))
    assert refusal(image) == "qemu-nbd is needed and not installed; apt install qemu-utils"


def test_a_child_that_is_killed(image: Path) -> None:
    source = opened(image, timeout=30)
    (server,) = servers()
    os.kill(server, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(SourceError) as caught:
        source.reread(12 * MIB, 4096)
    assert time.monotonic() - began < 3
    source.close()
    assert str(caught.value).partition("; ")[0] == f"{image}: qemu-nbd failed: it was ended"


@contextmanager
def restoring(image: Path, target: Path) -> Iterator[int]:
    """A slow restore; its process."""
    words = ("--source", image, "--target", target, "--erase", "--noprompt", "--max-rate=1M")
    with started("restore", *words, directory=target.parent) as run:
        wait_until(lambda: "Restoring  " in run.out, "some blocks", 30)
        yield run.process.pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_when_we_are_killed(number: int, image: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(bytes(SIZE))
    with restoring(image, target) as pid:
        (server,) = servers(pid)
        os.kill(pid, number)
        wait_until(lambda: not alive(server), "the end of qemu-nbd")


def test_the_socket_is_nobody_elses(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And gone once we are connected to it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with closing(opened(image)):
        assert [path.name for path in tmp_path.iterdir()] == ["image"]
    assert [path.name for path in tmp_path.iterdir()] == ["image"]
