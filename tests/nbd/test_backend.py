"""Files and block devices as exports: what is written, zeroed, trimmed, flushed, and told of holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from nbd import backend as backend_module
from nbd.backend import Extent, FileBackend, measure
from tests.nbd.peers import random_bytes
from tests.support import assert_same_bytes, loop_device, small_filesystem

MIB = 1 << 20
KIB = 1 << 10
Open = Callable[..., FileBackend]


def opened(path: Path, *, start: int = 0, size: int | None = None) -> closing[FileBackend]:
    return closing(FileBackend(os.open(path, os.O_RDWR), read_only=False, start=start, size=size))


@pytest.fixture
def open_backend() -> Iterator[Open]:
    with ExitStack() as cleanup:
        yield lambda path, **window: cleanup.enter_context(opened(path, **window))


@pytest.fixture(params=["file", "tmpfs", "loop 512", "loop 4096"])
def target(request: pytest.FixtureRequest, tmp_path: Path, requires_root: None) -> Iterator[Path]:
    """2 MiB of random bytes in a file, in memory, or behind a loop device."""
    with ExitStack() as cleanup:
        directory = tmp_path
        if request.param == "tmpfs":
            directory = cleanup.enter_context(small_filesystem(tmp_path / "tmpfs", 8 * MIB))
        path = directory / "disk.img"
        path.write_bytes(random_bytes(2 * MIB))
        if request.param.startswith("loop"):
            path = cleanup.enter_context(loop_device(path, sector=int(request.param.split()[1])))
        yield path


def contents(backend: FileBackend) -> bytes:
    data = bytearray(backend.size)
    backend.read_into(memoryview(data), 0)
    return bytes(data)


def sparse(path: Path, *data: tuple[int, int], size: int = MIB) -> Path:
    """A file with data of so many bytes at these offsets, and holes elsewhere."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, length in data:
            file.seek(offset)
            file.write(b"\xaa" * length)
    return path


# --- Geometry ---


def test_geometry_of_a_file(tmp_path: Path, open_backend: Open) -> None:
    geometry = open_backend(sparse(tmp_path / "a", size=12345)).geometry
    assert (geometry.size, geometry.is_device, geometry.logical_sector) == (12345, False, 1)
    assert geometry.preferred == 4096
    assert not geometry.rotational


@pytest.mark.parametrize("sector", [512, 4096])
def test_geometry_of_a_device(tmp_path: Path, sector: int, requires_root: None) -> None:
    with loop_device(sparse(tmp_path / "a", size=MIB), sector=sector) as device, opened(device) as backend:
        assert (backend.size, backend.geometry.is_device, backend.geometry.logical_sector) == (MIB, True, sector)
        assert backend.geometry.preferred >= 4096
        rotational = Path(f"/sys/block/{device.name}/queue/rotational").read_text().strip() == "1"
        assert backend.geometry.rotational == rotational


@pytest.mark.parametrize("path", ["/", "/dev/null"])
def test_neither_file_nor_block_device(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="neither") as caught:
            measure(fd)
        assert caught.value.errno == errno.EINVAL
    finally:
        os.close(fd)


# --- Contents ---


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 2 * MIB), (0, 4096), (1, 1), (511, 2), (4095, 4098), (1000, 3), (MIB - 7, MIB), (2 * MIB - 1, 1), (512, 512)],
)
@pytest.mark.parametrize("may_trim", [True, False])
def test_zero_touches_its_range_alone(
    target: Path, open_backend: Open, offset: int, length: int, may_trim: bool
) -> None:
    backend = open_backend(target)
    expected = bytearray(contents(backend))
    backend.zero(offset, length, may_trim=may_trim)
    expected[offset : offset + length] = bytes(length)
    assert_same_bytes(contents(backend), expected)


def test_a_fast_zero_is_done_or_refused_and_then_nothing_has_changed(target: Path, open_backend: Open) -> None:
    backend = open_backend(target)
    expected = bytearray(contents(backend))
    for offset, length in [(0, 4096), (8192, 65536), (1, 100), (4000, 8192), (MIB, MIB)]:
        for may_trim in (True, False):
            try:
                backend.zero(offset, length, may_trim=may_trim, fast=True)
            except OSError as error:
                assert error.errno == errno.ENOTSUP
            else:
                expected[offset : offset + length] = bytes(length)
            assert_same_bytes(contents(backend), expected)


def test_trim_touches_its_range_alone(target: Path, open_backend: Open) -> None:
    backend = open_backend(target)
    before = contents(backend)
    for offset, length in [(0, 4096), (5000, 1), (10_001, 20_003), (MIB + 1, 4094)]:
        backend.trim(offset, length)
        before = before[:offset] + contents(backend)[offset : offset + length] + before[offset + length :]
        assert_same_bytes(contents(backend), before)


def test_no_hole_leaves_no_hole(tmp_path: Path, open_backend: Open) -> None:
    path = sparse(tmp_path / "a", size=MIB)
    backend = open_backend(path)
    backend.zero(0, MIB, may_trim=False)
    assert path.stat().st_blocks * 512 >= MIB
    backend.zero(0, MIB, may_trim=True)
    assert path.stat().st_blocks == 0


def test_zeroing_an_exclusively_claimed_device_with_dirty_pages(
    tmp_path: Path, open_backend: Open, requires_root: None
) -> None:
    """The kernel refuses to punch a hole into such a range: the claim is another opener's, as that of a server is."""
    image = tmp_path / "disk.img"
    image.write_bytes(random_bytes(MIB))
    with loop_device(image) as device:
        claim = os.open(device, os.O_RDWR | os.O_EXCL)
        fd = os.open(f"/proc/self/fd/{claim}", os.O_RDWR)
        try:
            backend = FileBackend(fd, read_only=False)
            for may_trim in (True, False):
                backend.write(b"x" * 65536, 0)
                backend.zero(4096, 8192, may_trim=may_trim)
                assert contents(backend)[:65536] == b"x" * 4096 + bytes(8192) + b"x" * 53248
            backend.write(b"x" * 65536, 0)
            backend.trim(4096, 8192)
            assert set(contents(backend)[:65536]) <= {0, ord("x")}
            assert contents(backend)[12288:65536] == b"x" * 53248
        finally:
            os.close(fd)
            os.close(claim)


@pytest.mark.parametrize("fallocate_fails_with", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBUSY])
def test_zero_without_fallocate(
    tmp_path: Path, open_backend: Open, monkeypatch: pytest.MonkeyPatch, fallocate_fails_with: int
) -> None:
    def fallocate(*_: int) -> None:
        raise OSError(fallocate_fails_with, "no")

    monkeypatch.setattr(backend_module, "_fallocate", fallocate)
    backend = open_backend(sparse(tmp_path / "a", (0, 3 * MIB), size=3 * MIB))
    backend.zero(1000, 2 * MIB, may_trim=True)
    expected = b"\xaa" * 1000 + bytes(2 * MIB) + b"\xaa" * (MIB - 1000)
    assert_same_bytes(contents(backend), expected)
    backend.trim(0, MIB)
    assert_same_bytes(contents(backend), expected)
    with pytest.raises(OSError, match="fast") as caught:
        backend.zero(0, MIB, may_trim=True, fast=True)
    assert caught.value.errno == errno.ENOTSUP


def test_other_errors_of_fallocate_are_told(
    tmp_path: Path, open_backend: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fallocate(*_: int) -> None:
        raise OSError(errno.EIO, "a bad disk")

    monkeypatch.setattr(backend_module, "_fallocate", fallocate)
    backend = open_backend(sparse(tmp_path / "a"))
    with pytest.raises(OSError, match="a bad disk"):
        backend.zero(0, 4096, may_trim=True)
    with pytest.raises(OSError, match="a bad disk"):
        backend.trim(0, 4096)


# --- A window ---


@pytest.mark.parametrize("loop", [False, True])
def test_a_window_never_reaches_outside(tmp_path: Path, loop: bool, requires_root: None) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(random_bytes(MIB))
    with ExitStack() as cleanup:
        path = cleanup.enter_context(loop_device(image, sector=4096)) if loop else image
        start, size = 256 * KIB, 512 * KIB
        whole, window = cleanup.enter_context(opened(path)), cleanup.enter_context(opened(path, start=start, size=size))
        before = contents(whole)
        assert_same_bytes(contents(window), before[start : start + size])
        window.write(b"x" * size, 0)
        window.zero(0, size, may_trim=True)
        window.write(b"y" * 1000, size - 1000, fua=True)
        window.zero(1, size - 2, may_trim=False)
        window.trim(0, size, fua=True)
        window.cache(0, size)
        assert sum(extent.length for extent in window.extents(0, size)) == size
        after = contents(whole)
        assert_same_bytes(after[:start], before[:start])
        assert_same_bytes(after[start + size :], before[start + size :])


# --- Extents ---


def runs(backend: FileBackend, offset: int, length: int) -> list[tuple[int, bool]]:
    extents = list(backend.extents(offset, length))
    assert all(extent.hole == extent.zero for extent in extents)
    return [(extent.length, extent.zero) for extent in extents]


def test_extents_of_a_sparse_file(tmp_path: Path, open_backend: Open) -> None:
    path = sparse(tmp_path / "a", (64 * KIB, 64 * KIB), (256 * KIB, 4 * KIB))
    backend = open_backend(path)
    assert runs(backend, 0, MIB) == [
        (64 * KIB, True),
        (64 * KIB, False),
        (128 * KIB, True),
        (4 * KIB, False),
        (764 * KIB, True),
    ]
    assert runs(backend, 65 * KIB, KIB) == [(KIB, False)]
    assert runs(backend, 63 * KIB + 1, 2 * KIB) == [(KIB - 1, True), (KIB + 1, False)]
    assert runs(backend, MIB - 1, 1) == [(1, True)]
    assert runs(open_backend(path, start=128 * KIB, size=128 * KIB + 1), 0, 128 * KIB + 1) == [
        (128 * KIB, True),
        (1, False),
    ]


def test_extents_without_holes(target: Path, open_backend: Open) -> None:
    assert list(open_backend(target).extents(0, 2 * MIB)) == [Extent(2 * MIB, hole=False, zero=False)]


def test_extents_where_the_file_system_does_not_tell(
    tmp_path: Path, open_backend: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lseek(fd: int, position: int, whence: int) -> int:
        raise OSError(errno.EINVAL, "no SEEK_DATA here")

    backend = open_backend(sparse(tmp_path / "a"))
    monkeypatch.setattr(os, "lseek", lseek)
    assert list(backend.extents(5, 100)) == [Extent(100, hole=False, zero=False)]


def test_extents_of_a_file_that_shrank_are_no_zeroes(tmp_path: Path, open_backend: Open) -> None:
    path = sparse(tmp_path / "a", (0, MIB))
    backend = open_backend(path)
    os.truncate(path, 4096)
    with pytest.raises(OSError, match="No such device or address"):
        list(backend.extents(8192, 4096))


# --- Errors and stable storage ---


def test_read_past_a_new_end_is_an_error(tmp_path: Path, open_backend: Open) -> None:
    path = sparse(tmp_path / "a", (0, MIB))
    backend = open_backend(path)
    os.truncate(path, 4096)
    with pytest.raises(OSError, match="the end came early") as caught:
        backend.read_into(memoryview(bytearray(8192)), 0)
    assert caught.value.errno == errno.EIO


def test_writes_to_a_full_file_system(tmp_path: Path, requires_root: None) -> None:
    with small_filesystem(tmp_path / "small", 256 * KIB) as directory, opened(sparse(directory / "a")) as backend:
        with pytest.raises(OSError, match="No space") as caught:
            backend.write(b"x" * MIB, 0)
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(OSError, match="No space"):
            backend.zero(0, MIB, may_trim=False)
        backend.zero(0, MIB, may_trim=True)
        assert_same_bytes(contents(backend), bytes(MIB))


def test_fua_reaches_stable_storage(tmp_path: Path, open_backend: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    pwritev, fdatasync = os.pwritev, os.fdatasync

    def noting_pwritev(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        calls.append(f"pwritev {len(buffers[0])} {'DSYNC' if flags & os.RWF_DSYNC else ''}")
        return pwritev(fd, buffers, offset, flags)

    def noting_fdatasync(fd: int) -> None:
        calls.append("fdatasync")
        fdatasync(fd)

    monkeypatch.setattr(os, "pwritev", noting_pwritev)
    monkeypatch.setattr(os, "fdatasync", noting_fdatasync)
    backend = open_backend(sparse(tmp_path / "a"))
    backend.write(b"x" * 100, 0)
    backend.zero(0, 100, may_trim=True)
    backend.trim(0, 100)
    assert calls == []
    backend.write(b"x" * 100, 0, fua=True)
    backend.zero(0, 100, may_trim=True, fua=True)
    backend.trim(0, 100, fua=True)
    backend.flush()
    assert calls == ["pwritev 100 DSYNC", "fdatasync", "fdatasync", "fdatasync"]


def test_a_failed_flush_fails_every_later_flush(
    tmp_path: Path, open_backend: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of lost pages once; whoever asks again would get a success that is none."""
    failures = [OSError(errno.EIO, "lost pages")]

    def fdatasync(fd: int) -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    backend = open_backend(sparse(tmp_path / "a"))
    for _ in range(3):
        with pytest.raises(OSError, match="lost pages"):
            backend.flush()
    with pytest.raises(OSError, match="lost pages"):
        backend.zero(0, 100, may_trim=True, fua=True)


def test_short_writes_are_continued(tmp_path: Path, open_backend: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:7], offset))
    backend = open_backend(sparse(tmp_path / "a"))
    backend.write(bytes(range(100)), 50)
    assert contents(backend)[50:150] == bytes(range(100))
