"""Comparing two trees of files: every item of one with its namesake in the other, content and metadata."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Final

import xxhash

from restore.files.profile import Profile

_PIECE: Final = 1 << 20
_WINDOW: Final = 64  # files that are read, or wait for it
_XATTRS: Final = ("user.", "security.", "trusted.", "system.posix_acl_")
_DOUBLES: Final = "trusted.SGI_ACL_"  # XFS's own names for the ACLs
_ACL: Final = "system.posix_acl_"
KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFBLK: "block device",
    stat.S_IFCHR: "character device",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
}
"""What the types of files are called."""

LOST_AND_FOUND: Final = b"lost+found"
"""At the root of an ext file system, made by and for it: neither copied nor compared."""


@dataclass(frozen=True, slots=True)
class Item:
    """A file of any type.

    Attributes:
        path: from the root of its tree; empty for the root itself.
        status: as lstat tells.
    """

    path: bytes
    status: os.stat_result


def under(root: bytes, path: bytes) -> bytes:
    """The path of an item, from the root of its tree, as a path to open."""
    return root + b"/" + path if path else root


def walk(root: bytes, *, skipped: bytes | None = None) -> Iterator[Item]:
    """Every item of a tree, directories before what is in them; nothing that is mounted is expected in it.

    Args:
        root: of the tree.
        skipped: an item at its root that is left out.

    Raises:
        OSError: one cannot be looked at.
    """
    waiting = [b""]
    yield Item(b"", os.lstat(root))
    while waiting:
        directory = waiting.pop()
        with os.scandir(under(root, directory)) as entries:
            for entry in entries:
                path = under(directory, entry.name) if directory else entry.name
                if path == skipped:
                    continue
                status = entry.stat(follow_symlinks=False)
                yield Item(path, status)
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(path)


def is_kept(item: Item, keeps: Profile) -> bool:
    """Whether a target's file system can have this item at all."""
    if stat.S_ISREG(item.status.st_mode) or stat.S_ISDIR(item.status.st_mode):
        return True
    return keeps.symlinks if stat.S_ISLNK(item.status.st_mode) else keeps.devices


@dataclass(slots=True)
class Comparison:
    """One run of it.

    Attributes:
        source, target: roots of the trees.
        keeps: what the target's file system keeps.
        skipped: as `walk` takes it.
        progress: told of bytes compared since it was last told.
        differences: lines, each `path: what differs`.
    """

    source: bytes
    target: bytes
    keeps: Profile
    skipped: bytes | None = None
    progress: Callable[[int], None] = lambda _: None
    differences: list[str] = field(default_factory=list)
    _links: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    _linked_back: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)

    def run(self) -> list[str]:
        """Compare everything, contents in several threads; the differences, in the order of their paths.

        Raises:
            OSError: the source cannot be read.
        """
        pending: set[Future[Any]] = set()
        with ThreadPoolExecutor(min(8, max(2, os.cpu_count() or 2))) as pool:
            try:
                for item in walk(self.source, skipped=self.skipped):
                    if is_kept(item, self.keeps) and self._metadata(item):
                        pending.add(pool.submit(self._content, item))
                    if len(pending) >= _WINDOW:
                        pending = self._collect(pending)
                while pending:
                    pending = self._collect(pending)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return sorted(self.differences)

    def _collect(self, pending: set[Future[Any]]) -> set[Future[Any]]:
        done, left = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
        return set(left)

    def _differs(self, path: bytes, what: str) -> None:
        name = os.fsdecode(path) or "."
        self.differences.append(f"{name.encode('utf-8', 'backslashreplace').decode()}: {what}")

    def _metadata(self, item: Item) -> bool:
        """Compare all but content; whether that is left to be compared."""
        have, path = item.status, item.path
        try:
            found = os.lstat(under(self.target, path))
        except OSError as error:
            self._differs(path, "missing" if error.errno == errno.ENOENT else os.strerror(error.errno or 0))
            return False
        kind = stat.S_IFMT(have.st_mode)
        if stat.S_IFMT(found.st_mode) != kind:
            there = KINDS.get(stat.S_IFMT(found.st_mode), "?")
            self._differs(path, f"a {there}, not a {KINDS.get(kind, '?')}")
            return False
        for name, value, wanted in self._attributes(have, found):
            if value != wanted:
                self._differs(path, f"{name} is {value}, not {wanted}")
        if stat.S_ISLNK(kind):
            self._compare(path, "target of the link", os.readlink)
        if self.keeps.xattrs:
            self._compare(path, "extended attributes", self._xattrs)
        if self.keeps.links and not stat.S_ISDIR(kind):
            self._compare_links(path, have, found)
        return stat.S_ISREG(kind) and found.st_size == have.st_size

    def _attributes(self, have: os.stat_result, found: os.stat_result) -> Iterator[tuple[str, object, object]]:
        kind = stat.S_IFMT(have.st_mode)
        if self.keeps.owners:
            yield "owner", f"{found.st_uid}:{found.st_gid}", f"{have.st_uid}:{have.st_gid}"
            if kind != stat.S_IFLNK:
                yield "mode", f"{stat.S_IMODE(found.st_mode):04o}", f"{stat.S_IMODE(have.st_mode):04o}"
        if kind in (stat.S_IFREG, stat.S_IFDIR) and abs(found.st_mtime_ns - have.st_mtime_ns) >= self.keeps.time:
            yield "time", found.st_mtime_ns, have.st_mtime_ns
        if kind == stat.S_IFREG:
            yield "size", found.st_size, have.st_size
        if kind in (stat.S_IFBLK, stat.S_IFCHR):
            yield "device number", _device(found), _device(have)

    def _compare(self, path: bytes, what: str, look: Callable[[bytes], object]) -> None:
        wanted = look(under(self.source, path))
        try:
            same = look(under(self.target, path)) == wanted
        except OSError as error:
            self._differs(path, f"{what}: {error.strerror}")
            return
        if not same:
            self._differs(path, f"{what} differ" if what.endswith("s") else f"{what} differs")

    def _xattrs(self, path: bytes) -> dict[str, bytes]:
        try:
            names = os.listxattr(path, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
            return {}
        return {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in names
            if name.startswith(_XATTRS)
            and not name.startswith(_DOUBLES)
            and (self.keeps.acls or not name.startswith(_ACL))
        }

    def _compare_links(self, path: bytes, have: os.stat_result, found: os.stat_result) -> None:
        """What is one file with several names in the source has to be that in the target, and only that."""
        ours, theirs = (have.st_dev, have.st_ino), (found.st_dev, found.st_ino)
        if self._links.setdefault(ours, theirs) != theirs or self._linked_back.setdefault(theirs, ours) != ours:
            self._differs(path, "hard links differ")

    def _content(self, item: Item) -> None:
        wanted = self._digest(under(self.source, item.path))
        try:
            same = self._digest(under(self.target, item.path)) == wanted
        except OSError as error:
            self._differs(item.path, f"content: {error.strerror}")
            return
        if not same:
            self._differs(item.path, "content differs")
        self.progress(item.status.st_size)

    def _digest(self, path: bytes) -> bytes:
        digest = xxhash.xxh3_128()
        buffer = memoryview(bytearray(_PIECE))
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # what was written is to be read from the media
            while count := os.readv(fd, [buffer]):
                digest.update(buffer[:count])
        finally:
            os.close(fd)
        return digest.digest()


def _device(status: os.stat_result) -> str:
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
