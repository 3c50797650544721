"""A disk, image or export as a local block device, for as long as a context lasts.

    local disk or image  ─ claim ──────────────────────┐
    export, kernel nbd   ─ nbd-client ─ /dev/nbdN ──────┼─ loop device with an offset
    export, no such      ─ nbdfuse ─ a file in FUSE ────┤
    qcow2, vmdk …        ─ qemu-nbd ─ nbdfuse ──────────┘

The loop device clears itself when nobody has it open any more, so that it does not outlive this process. To be used in
a process of `restore.private.process`, where nbdfuse's mount is seen by nobody, and ends with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nbd.errors import URIError
from nbd.uri import NBDURI
from restore import tools
from restore.errors import Refused, RestoreError
from restore.exports import SCHEMES
from targetmode.disks.machine import block_size_of
from targetmode.disks.preflight import PreflightError, claim

_LOOP_CTL_GET_FREE: Final = 0x4C82  # Linux include/uapi/linux/loop.h
_LOOP_CONFIGURE: Final = 0x4C0A
_LOOP_CLR_FD: Final = 0x4C01
_READ_ONLY, _AUTOCLEAR = 1, 4
_BLKSSZGET: Final = 0x1268
_START: Final = 20.0  # seconds until a server or a mount has to be there
_END: Final = 20.0  # seconds until a loop device has to be gone; udev may be looking at it
_TRIES: Final = 50  # others may take the free loop device before us

FORMS: Final = ("raw", "qcow2", "vmdk", "vhdx", "vdi", "vpc")
"""Formats of images that can be attached as they lie."""


class _LoopInfo64(ctypes.Structure):
    _fields_ = (
        ("lo_device", ctypes.c_uint64),
        ("lo_inode", ctypes.c_uint64),
        ("lo_rdevice", ctypes.c_uint64),
        ("lo_offset", ctypes.c_uint64),
        ("lo_sizelimit", ctypes.c_uint64),
        ("lo_number", ctypes.c_uint32),
        ("lo_encrypt_type", ctypes.c_uint32),
        ("lo_encrypt_key_size", ctypes.c_uint32),
        ("lo_flags", ctypes.c_uint32),
        ("lo_file_name", ctypes.c_uint8 * 64),
        ("lo_crypt_name", ctypes.c_uint8 * 64),
        ("lo_encrypt_key", ctypes.c_uint8 * 32),
        ("lo_init", ctypes.c_uint64 * 2),
    )


class _LoopConfig(ctypes.Structure):
    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", _LoopInfo64),
        ("reserved", ctypes.c_uint64 * 8),
    )


@dataclass(frozen=True, slots=True)
class Opened:
    """Something that loop devices can be made over.

    Attributes:
        name: for people.
        fd: open file descriptor of a file or block device.
        size: bytes.
        sector_size: logical sector size, in bytes; of a file 512.
        read_only: whether `fd` is.
    """

    name: str
    fd: int
    size: int
    sector_size: int
    read_only: bool


@contextmanager
def opened(where: str, *, read_only: bool, form: str = "raw") -> Iterator[Opened]:
    """Open a disk, an image, or an export, so that nobody else writes it.

    Args:
        where: a path, or an NBD URI; a connection of ours that writes that export has to be closed before.
        read_only: it is not written.
        form: `raw`, or another that `qemu-nbd --format` takes.

    Raises:
        Refused: it is not there, in use, or a program is missing; one line.
        RestoreError: what was written could not be brought to it.
    """
    with ExitStack() as stack:
        if form != "raw":
            fd = stack.enter_context(_qemu(where, form, read_only=read_only))
        elif where.startswith(SCHEMES):
            fd = stack.enter_context(_export(where, read_only=read_only))
        else:
            try:
                claimed = stack.enter_context(claim(where, read_only=read_only))
            except PreflightError as error:
                raise Refused(str(error)) from None
            fd = claimed.fd
        size = os.lseek(fd, 0, os.SEEK_END)
        yield Opened(where, fd, size, _sector_size(fd), read_only)


@contextmanager
def loop(of: Opened, offset: int = 0, length: int | None = None, *, sector_size: int | None = None) -> Iterator[Path]:
    """A loop device over all or a part of it.

    Args:
        of: what is under it.
        offset: bytes, a multiple of 512.
        length: bytes; None for all the rest.
        sector_size: logical sector size of the device, in bytes; by default that of what is under it.

    Raises:
        RestoreError: there is no free loop device, or what was written could not be brought to what is under it.
    """
    config = _LoopConfig(fd=of.fd, block_size=sector_size or of.sector_size)
    config.info.lo_offset = offset
    config.info.lo_sizelimit = length or 0
    config.info.lo_flags = _AUTOCLEAR | (_READ_ONLY if of.read_only else 0)
    device, fd = _configure(config, read_only=of.read_only)
    try:
        yield device
        if not of.read_only:
            _sync(fd, of)
    finally:
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, _LOOP_CLR_FD)
        os.close(fd)
        _wait_detached(device)


@contextmanager
def attached(
    where: str, offset: int = 0, length: int | None = None, *, read_only: bool, form: str = "raw"
) -> Iterator[Path]:
    """Both of these: a block device of a part of a disk, image or export."""
    with opened(where, read_only=read_only, form=form) as found, loop(found, offset, length) as device:
        yield device


def _sync(fd: int, of: Opened) -> None:
    try:
        os.fsync(fd)
        os.fsync(of.fd)
    except OSError as error:
        raise RestoreError(f"{of.name}: what was written could not be brought to it: {error.strerror}") from None


def _configure(config: _LoopConfig, *, read_only: bool) -> tuple[Path, int]:
    for _ in range(_TRIES):
        try:
            control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise Refused(f"loop devices cannot be made: /dev/loop-control: {error.strerror}") from None
        try:
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
        finally:
            os.close(control)
        device = Path(f"/dev/loop{number}")
        try:
            fd = os.open(device, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        except OSError as error:
            raise Refused(f"{device}: {error.strerror}") from None
        try:
            fcntl.ioctl(fd, _LOOP_CONFIGURE, bytes(config))
            return device, fd
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EBUSY:
                raise RestoreError(f"{device} cannot be attached: {error.strerror}") from None
        except BaseException:
            os.close(fd)
            raise
        time.sleep(0.02)
    raise RestoreError("no loop device stays free long enough to be taken")


def _wait_detached(device: Path) -> None:
    """Wait until whoever looks at the device, as udev does, has let go of it."""
    backing = Path("/sys/block") / device.name / "loop" / "backing_file"
    deadline = time.monotonic() + _END
    while backing.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def _sector_size(fd: int) -> int:
    try:
        found = fcntl.ioctl(fd, _BLKSSZGET, bytes(4))
    except OSError:
        return 512
    return max(int.from_bytes(found, "little"), 512)


@contextmanager
def _export(where: str, *, read_only: bool) -> Iterator[int]:
    """An export as a block device of the kernel's nbd where there is that, else as a file of nbdfuse."""
    try:
        uri = NBDURI.parse(where)
    except URIError as error:
        raise Refused(str(error)) from None
    with ExitStack() as stack:
        device = None
        if Path("/sys/block/nbd0").exists() and not uri.tls:
            with contextlib.suppress(Refused):
                device = stack.enter_context(_kernel_nbd(uri, read_only=read_only))
        yield device if device is not None else stack.enter_context(_nbdfuse(str(uri), read_only=read_only))


@contextmanager
def _kernel_nbd(uri: NBDURI, *, read_only: bool) -> Iterator[int]:
    """nbd-client stays in the foreground: the kernel lets go of the device when it ends."""
    program = tools.find("nbd-client")
    free = [path for path in sorted(Path("/sys/block").glob("nbd*")) if not (path / "pid").exists()]
    for block in free:
        device = Path("/dev") / block.name
        server = ["-unix", uri.socket] if uri.socket is not None else [uri.host, str(uri.port)]
        options = ["-N", uri.export, "-nonetlink", "-nofork", *(["-readonly"] if read_only else [])]
        command = [program, *server, str(device), *options]

        def ready(block: Path = block) -> bool:
            return (block / "pid").exists() and (block / "size").read_text().strip() != "0"

        with _serving(command, "nbd-client", ready):
            fd = os.open(device, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
            try:
                if block_size_of(fd):
                    yield fd
                    if not read_only:
                        os.fsync(fd)
                    return
            finally:
                os.close(fd)
                subprocess.run([program, "-d", str(device)], capture_output=True, check=False)
    raise Refused("the kernel has no free nbd device")


@contextmanager
def _nbdfuse(uri: str, *, read_only: bool) -> Iterator[int]:
    program = tools.find("nbdfuse")
    if not Path("/dev/fuse").exists():
        raise Refused("there is no /dev/fuse, which nbdfuse needs; modprobe fuse, apt install fuse3")
    with tempfile.TemporaryDirectory(prefix="nbd-") as directory:
        file = Path(directory) / "nbd"
        # One connection: a target takes one writer at a time.
        options = ["-C", "1", *(["-r"] if read_only else [])]
        command = [program, *options, str(file), uri]
        with _serving(command, uri, file.exists):
            fd = os.open(file, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
            try:
                yield fd
                if not read_only:
                    _fsync(fd, uri)
            finally:
                os.close(fd)


def _fsync(fd: int, name: str) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        raise RestoreError(f"{name}: what was written could not be brought to it: {error.strerror}") from None


@contextmanager
def _qemu(path: str, form: str, *, read_only: bool) -> Iterator[int]:
    """An image that qemu knows, decoded."""
    program = tools.find("qemu-nbd")
    try:
        claimed = claim(path, read_only=read_only)
    except PreflightError as error:
        raise Refused(str(error)) from None
    with claimed, tempfile.TemporaryDirectory(prefix="qemu-") as directory:
        socket = Path(directory) / "socket"
        options = ["--persistent", "--shared=4", f"--format={form}", f"--socket={socket}"]
        options += ["--read-only"] if read_only else []
        serving = _serving([program, *options, path], path, socket.exists)
        with serving, _nbdfuse(str(NBDURI(socket=str(socket))), read_only=read_only) as fd:
            yield fd


@contextmanager
def _serving(command: Sequence[str], name: str, ready: Callable[[], object]) -> Iterator[None]:
    """A program that serves until the context ends.

    Raises:
        Refused: it does not come to serve; says what it said.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            env=tools.environment(),
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + _START
            while not ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    status = process.wait()
                    errors.seek(0)
                    said = errors.read(1 << 16).decode("utf-8", "replace")
                    raise Refused(f"{name}: {Path(command[0]).name}: {tools.complaint(said, '', status)}")
                time.sleep(0.01)
            yield
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it, by force if it does not go."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
