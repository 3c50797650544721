"""Every kind of source onto every kind of target: the table of README.md, a test for each cell.

Debian packages: e2fsprogs qemu-utils zstd gzip partclone fdisk nginx-light openssh-server openssh-client samba.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from scripts.dmg import build_dmg
from tests.restore.engine import asr, succeeded
from tests.restore.filesystems import checked, in_filesystem, make_filesystem
from tests.restore.source.storage.servers import moto, nginx, smbd, sshd
from tests.serving import run, serving
from tests.support import assert_same_bytes, loop_device

MIB = 1 << 20
SIZE = 8 * MIB

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for mounts and loop devices")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ext4 with files in it, as a raw image; what is not in use is zeroes."""
    image = make_filesystem(tmp_path_factory.mktemp("volume") / "volume.img", "ext4", SIZE, "-L", "matrix")
    in_filesystem(image, "ext4", "for n in 1 2 3; do dd if=/dev/urandom of=file$n bs=300K count=1 status=none; done")
    return image


# --- Sources, by their rows; each is made once ---

Make = Callable[[Path, Path, ExitStack], str]


def raw(volume: Path, directory: Path, stack: ExitStack) -> str:
    return str(volume)


def compressed(volume: Path, directory: Path, stack: ExitStack) -> str:
    run("zstd", "-q", volume, "-o", directory / "image")
    return str(directory / "image")


def dmg(volume: Path, directory: Path, stack: ExitStack) -> str:
    build_dmg(volume, directory / "image.dmg", "mixed")
    return str(directory / "image.dmg")


def virtual(volume: Path, directory: Path, stack: ExitStack) -> str:
    run("qemu-img", "convert", "-c", "-O", "qcow2", volume, directory / "image")
    return str(directory / "image")


def partclone(volume: Path, directory: Path, stack: ExitStack) -> str:
    run("partclone.ext4", "-c", "-s", volume, "-o", directory / "image", "-L", directory / "log")
    run("gzip", directory / "image")
    return str(directory / "image.gz")


def clonezilla(volume: Path, directory: Path, stack: ExitStack) -> str:
    """Of a partition alone, as `saveparts` has it."""
    saved = directory / "saved"
    saved.mkdir()
    (saved / "parts").write_text("sda1\n")
    table = f"label: dos\nunit: sectors\n\n/dev/sda1 : start=2048, size={SIZE // 512}, type=83\n"
    (saved / "sda-pt.sf").write_text(table)
    partclone(volume, saved, stack)
    (saved / "log").unlink()
    (saved / "image.gz").rename(saved / "sda1.ext4-ptcl-img.gz.aa")
    return str(saved)


def device(volume: Path, directory: Path, stack: ExitStack) -> str:
    return str(stack.enter_context(loop_device(volume)))


def mounted(volume: Path, directory: Path, stack: ExitStack) -> str:
    """Read-only, so that what is in it is the same after it was mounted again."""
    where = directory / "mounted"
    where.mkdir()
    run("mount", "-o", "ro", device(volume, directory, stack), where)
    stack.callback(run, "umount", where)
    return str(where)


def export(volume: Path, directory: Path, stack: ExitStack) -> str:
    server = stack.enter_context(serving(volume, errors=directory / "errors"))
    return str(server.ready["exports"][0]["uris"][0])


def http(volume: Path, directory: Path, stack: ExitStack) -> str:
    server = stack.enter_context(nginx(directory))
    (server.files / "image").write_bytes(volume.read_bytes())
    return server.url("image")


def sftp(volume: Path, directory: Path, stack: ExitStack) -> str:
    server = stack.enter_context(sshd(directory))
    (server.files / "image").write_bytes(volume.read_bytes())
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    patch.setenv("HOME", str(directory / "home"))
    patch.delenv("SSH_AUTH_SOCK", raising=False)
    return f"sftp://127.0.0.1:{server.port}{server.files}/image"


def smb(volume: Path, directory: Path, stack: ExitStack) -> str:
    user = getpass.getuser()
    server = stack.enter_context(smbd(directory, user, "secret"))
    (server.files / "image").write_bytes(volume.read_bytes())
    (directory / "login").write_text(f"username={user}\npassword=secret\n")
    stack.enter_context(pytest.MonkeyPatch.context()).setenv("SMB_CREDENTIALS", str(directory / "login"))
    return f"smb://127.0.0.1:{server.port}/images/image"


def s3(volume: Path, directory: Path, stack: ExitStack) -> str:
    port, put = stack.enter_context(moto(directory))
    put("image", volume.read_bytes())
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "testing")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return "s3://bucket/image"


SOURCES = (raw, compressed, dmg, virtual, partclone, clonezilla, device, mounted, export, http, sftp, smb, s3)


@pytest.fixture(scope="module", params=SOURCES, ids=lambda make: make.__name__)
def source(request: pytest.FixtureRequest, volume: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    make: Make = request.param
    with ExitStack() as stack:
        yield make(volume, tmp_path_factory.mktemp(make.__name__), stack)


# --- Targets, by their columns; each gives what asr is told, and the files that have the bytes then ---


def blank(path: Path) -> Path:
    path.write_bytes(b"\x55" * (SIZE + MIB))
    return path


@contextmanager
def file(directory: Path) -> Iterator[tuple[list[str], list[Path]]]:
    disk = blank(directory / "disk")
    yield [str(disk)], [disk]


@contextmanager
def block_device(directory: Path) -> Iterator[tuple[list[str], list[Path]]]:
    disk = blank(directory / "disk")
    with loop_device(disk) as found:
        yield [str(found)], [disk]


@contextmanager
def mount_point(directory: Path) -> Iterator[tuple[list[str], list[Path]]]:
    """It is mounted again, which changes what is on it: its files are compared."""
    disk, where = make_filesystem(directory / "disk", "ext4", SIZE + MIB), directory / "where"
    where.mkdir()
    with loop_device(disk) as found:
        run("mount", found, where)
        try:
            yield [str(where)], []
            assert {path.name for path in where.iterdir()} == {"lost+found", "file1", "file2", "file3"}
        finally:
            run("umount", where)
        checked(found, "ext4")


@contextmanager
def exported(directory: Path) -> Iterator[tuple[list[str], list[Path]]]:
    disk = blank(directory / "exported")
    control = ("--listen", "127.0.0.1:0", "--control", "127.0.0.1:0")
    with serving(disk, options=control, errors=directory / "errors") as server:
        yield [str(server.ready["exports"][0]["uris"][0])], [disk]


@contextmanager
def several(directory: Path) -> Iterator[tuple[list[str], list[Path]]]:
    with file(directory) as (names, disks), exported(directory) as (others, more):
        yield names + others, disks + more


@pytest.mark.parametrize("target", [file, block_device, mount_point, exported, several], ids=lambda make: make.__name__)
def test_restore(source: str, volume: Path, tmp_path: Path, target: Callable[[Path], object]) -> None:
    with target(tmp_path) as (names, disks):  # type: ignore[attr-defined]
        words = [word for name in names for word in ("--target", name)]
        out = succeeded(asr("restore", "--source", source, *words, "--erase", "--noprompt"))
        assert out.count("verified") == len(names)
        for disk in disks:
            assert_same_bytes(disk.read_bytes(), volume.read_bytes() + b"\x55" * MIB)


def test_file_copy(source: str, tmp_path: Path) -> None:
    """Without --erase: into a volume whose other files stay."""
    goal = make_filesystem(tmp_path / "goal", "ext4", 2 * SIZE)
    in_filesystem(goal, "ext4", "echo mine > mine; echo old > file1")
    assert succeeded(asr("restore", "--source", source, "--target", goal)).endswith(", verified\n")
    there = in_filesystem(goal, "ext4", "ls; wc -c < file1").split()
    assert there == ["file1", "file2", "file3", "lost+found", "mine", "307200"]
