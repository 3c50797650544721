"""May this disk be offered or overwritten? The checks, and the claim that keeps the answer true."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from pathlib import Path
from types import TracebackType

from targetmode.disks.machine import HERE, Device, Machine, block_size_of, is_write_protected
from targetmode.disks.mounts import identity_of
from targetmode.disks.uses import Survey, Use, uses

__all__ = ["CannotOpen", "Claim", "InUse", "NotADisk", "PreflightError", "Use", "claim", "uses"]

LOCK_PATIENCE = 2.0
"""How long a lock on a block device is waited for, in seconds: udev holds one while it looks at a device."""

_LOCK_INTERVAL = 0.05
_LISTED_USES = 3
_ARTICLES = {"raid": "a ", "loop": "the "}


class PreflightError(Exception):
    """A disk or image that may not be offered or overwritten; `str()` is one line that says why and what to do.

    Attributes:
        path: Of the disk or image, as it was given.
    """

    def __init__(self, path: str | os.PathLike[str], message: str) -> None:
        self.path = os.fspath(path)
        super().__init__(f"{self.path} {message}")


class NotADisk(PreflightError):
    """What is at the path is neither a block device nor a regular file with something in it.

    Attributes:
        why: What it is instead.
    """

    def __init__(self, path: str | os.PathLike[str], why: str) -> None:
        self.why = why
        super().__init__(path, why)


class CannotOpen(PreflightError):
    """The disk may not be opened, or is write-protected.

    Attributes:
        errno: The system's error number.
    """

    def __init__(self, path: str | os.PathLike[str], message: str, number: int) -> None:
        self.errno = number
        super().__init__(path, message)


class InUse(PreflightError):
    """The disk or image is in use.

    Attributes:
        uses: By what, at least one.
    """

    def __init__(self, path: str | os.PathLike[str], found: tuple[Use, ...]) -> None:
        self.uses = found
        first = found[0]
        if len(found) == 1 and not first.where:
            message = f"is {_ARTICLES.get(first.kind, '')}{first.detail}"
        else:
            message = f"is in use: {', '.join(str(use) for use in found[:_LISTED_USES])}"
            if len(found) > _LISTED_USES:
                message += f" and {len(found) - _LISTED_USES} more"
        super().__init__(path, message + _advice(found))


def _advice(found: tuple[Use, ...]) -> str:
    """Says what ends the uses: commands where every one of them has some."""
    if not all(use.remedies for use in found):
        if any(use.kind == "mount" and use.detail == "mounted on /" for use in found):
            return "; it holds the running system"
        return "; stop what uses it first"
    commands = tuple(dict.fromkeys(command for use in found for command in use.remedies))
    verb = "unmount it first" if all(command.startswith("umount ") for command in commands) else "free it first"
    return f"; {verb}: {' && '.join(commands)}"


class Claim:
    """A disk or image that is open, and closed to others until this is.

    A context manager that closes itself.

    Attributes:
        path: As resolved, without symbolic links.
        fd: Open file descriptor, not inherited by programs that are run.
        size: In bytes.
        read_only: Whether `fd` is.
        is_block: Whether it is a block device, not a regular file.
    """

    def __init__(self, path: Path, fd: int, size: int, *, read_only: bool, is_block: bool) -> None:
        self.path = path
        self.fd = fd
        self.size = size
        self.read_only = read_only
        self.is_block = is_block

    def close(self) -> None:
        """Gives the disk up; more than once does no harm. Copies of `fd` in forked processes keep the claim."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Claim:
        """Returns the claim itself."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Gives the disk up."""
        self.close()


def claim(path: str | os.PathLike[str], *, read_only: bool, machine: Machine = HERE) -> Claim:
    """Opens a disk or image that nothing else uses, and keeps others from using it.

    A block device is opened with O_EXCL, which neither a mount nor another exclusive opener of the device, its
    partitions or its whole disk can share, even when both only read. Then comes a `flock`, shared to read and
    exclusive to write, so that several may read one image file but a writer is alone. Nothing is read.

    Args:
        path: Of a block device, of an image file, or of a symbolic link to one.
        read_only: Whether to open it only to read.
        machine: Where the kernel tells about it.

    Raises:
        NotADisk: There is nothing at `path`, nothing in it, or something that is neither device nor image.
        InUse: It is in use.
        CannotOpen: It may not be opened, or not to write.
    """
    try:
        resolved = Path(path).resolve(strict=True)
        status = resolved.stat()
    except (OSError, RuntimeError) as error:
        raise _unopened(path, error, machine, read_only=read_only) from error
    is_block = stat.S_ISBLK(status.st_mode)
    _check_kind(path, status)
    _check_uses(path, machine)
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | (os.O_EXCL if is_block else 0)
    try:
        fd = os.open(resolved, flags)
    except OSError as error:
        raise _unopened(path, error, machine, read_only=read_only) from error
    try:
        opened = os.fstat(fd)
        if (opened.st_dev, opened.st_ino, opened.st_rdev) != (status.st_dev, status.st_ino, status.st_rdev):
            raise NotADisk(path, "was replaced while it was being opened; try again")
        size = block_size_of(fd) if is_block else opened.st_size
        if size == 0:
            raise NotADisk(path, "has no medium" if is_block else "is an empty file")
        if is_block and not read_only and is_write_protected(fd):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        _check_uses(path, machine)
        _lock(path, fd, machine, shared=read_only, patience=LOCK_PATIENCE if is_block else 0.0)
    except OSError as error:
        os.close(fd)
        raise _unopened(path, error, machine, read_only=read_only) from error
    except BaseException:
        os.close(fd)
        raise
    return Claim(resolved, fd, size, read_only=read_only, is_block=is_block)


def _check_kind(path: str | os.PathLike[str], status: os.stat_result) -> None:
    """Refuses what is neither a block device nor a regular file with something in it."""
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFCHR: "a character device",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
    }
    kind = kinds.get(stat.S_IFMT(status.st_mode))
    if kind is not None:
        raise NotADisk(path, f"is {kind}, not a block device or an image file")
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        raise NotADisk(path, "is an empty file")


def _check_uses(path: str | os.PathLike[str], machine: Machine) -> None:
    """Refuses what is in use."""
    try:
        found = Survey(machine).of_path(path)
    except OSError as error:
        raise _unopened(path, error, machine, read_only=True) from error
    if found:
        raise InUse(path, found)


def _lock(path: str | os.PathLike[str], fd: int, machine: Machine, *, shared: bool, patience: float) -> None:
    """Takes a `flock`; waits for it up to `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                holders = ", ".join(Survey(machine).locked_by(os.fstat(fd))) or "another program"
                raise InUse(path, (Use("lock", f"locked by {holders}"),)) from error
        time.sleep(_LOCK_INTERVAL)


def _unopened(
    path: str | os.PathLike[str], error: OSError | RuntimeError, machine: Machine, *, read_only: bool
) -> PreflightError:
    """Says in one line why a disk could not be opened."""
    number = getattr(error, "errno", None) or errno.ELOOP
    if number in (errno.ENOENT, errno.ENOTDIR):
        return NotADisk(path, "does not exist")
    if number == errno.ELOOP:
        return NotADisk(path, "is a symbolic link that leads nowhere")
    if number in (errno.ENOMEDIUM, errno.ENXIO, errno.ENODEV):
        return NotADisk(path, "has no medium or driver")
    if number == errno.EBUSY:
        return InUse(path, (_exclusive_use(path, machine),))
    if number == errno.EROFS:
        return CannotOpen(path, "is write-protected; it can only be read", number)
    if number in (errno.EACCES, errno.EPERM) and os.geteuid() != 0:
        return CannotOpen(path, f"may not be opened to {'read' if read_only else 'write'}; this needs root", number)
    return CannotOpen(path, f"cannot be opened: {os.strerror(number)}", number)


def _device_name(path: str | os.PathLike[str], machine: Machine) -> str | None:
    """Finds the kernel's name of the block device at a path; None for anything else."""
    try:
        device = identity_of(Path(path).stat()).device
    except OSError:
        return None
    return None if device is None else machine.name(device)


def _exclusive_use(path: str | os.PathLike[str], machine: Machine) -> Use:
    """Says who has a block device open, when that can be found out."""
    detail = "opened exclusively by another program"
    name = _device_name(path, machine)
    if name is None:
        return Use("exclusive", detail)
    related = [name, *machine.partitions(name), machine.parent(name) or name]
    devices = {found for found in map(machine.device, related) if found is not None}
    processes = [machine.process(pid) for pid in machine.process_ids() if _has_open(machine, pid, devices)]
    return Use("exclusive", f"{detail} ({', '.join(processes)})" if processes else detail)


def _has_open(machine: Machine, pid: int, devices: set[Device]) -> bool:
    """Tells whether a process has one of `devices` open, as far as it may be looked into."""
    try:
        descriptors = list((machine.proc / str(pid) / "fd").iterdir())
    except OSError:
        return False
    for descriptor in descriptors:
        try:
            status = descriptor.stat()
        except OSError:
            continue
        if identity_of(status).device in devices:
            return True
    return False
