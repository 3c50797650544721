"""What refers to disks, partitions and file systems by identifier in an installed system: found and changed."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from restore import tools
from restore.private.rooted import Rooted

FILES: Final = (
    "etc/fstab",
    "etc/crypttab",
    "etc/default/grub",
    "etc/kernel/cmdline",
    "etc/initramfs-tools/conf.d/resume",
    "etc/dracut.conf",
)
_BOOTS: Final = ("boot/", "", "efi/", "boot/efi/")  # /boot may be a volume of its own, and so may the ESP
_GRUBS: Final = ("grub/grub.cfg", "grub2/grub.cfg", "grub/grubenv", "grub2/grubenv")
_DIRECTORIES: Final = ("etc/default/grub.d/", "etc/kernel/cmdline.d/", "etc/dracut.conf.d/")
_LONG: Final = 36  # characters of a UUID, which is no other word
_GRUBENV: Final = 1024  # bytes, always
_ESP_DEPTH: Final = ("EFI/*/grub.cfg", "loader/entries/*.conf", "grub/grub.cfg", "grub2/grub.cfg")


def replace(text: bytes, changed: Mapping[str, str]) -> tuple[bytes, int]:
    """Replace identifiers where they stand as words of their own; how many were.

    A short one (a FAT serial number, an MBR identifier) only where it is said to be one: `UUID=`, `/dev/disk/by-…`,
    `--fs-uuid`.
    """
    count = 0
    for old, new in changed.items():
        word = re.escape(old.encode())
        if len(old) == _LONG:
            pattern = rb"(?<![0-9A-Za-z-])(" + word + rb")(?![0-9A-Za-z-])"
        else:
            before = rb"(?:UUID=[\"']?|by-(?:part)?uuid/|fs[-_]uuid\b[^\n]*?[ '\"]|--set=root[ '\"]+)"
            pattern = rb"(" + before + rb")(" + word + rb")(?![0-9A-Za-z-])"
        text, found = re.subn(pattern, partial(_as, new=new), text, flags=re.IGNORECASE)
        count += found
    return text, count


def _as(match: re.Match[bytes], *, new: str) -> bytes:
    """The new identifier in upper or lower case, as the old one was."""
    *before, old = match.groups()
    value = new.encode()
    has_upper, has_lower = old.upper() == old, old.lower() == old
    if has_upper and not has_lower:
        value = value.upper()
    elif has_lower and not has_upper:
        value = value.lower()
    return b"".join(before) + value


def follow_in_system(rooted: Rooted, prefix: str, changed: Mapping[str, str]) -> Iterator[str]:
    """Change the references in a root directory or a /boot; gives the path of each file that was changed.

    Raises:
        OSError: a file cannot be read or written.
    """
    for path in _paths(rooted, prefix):
        text = rooted.read(path)
        if text is None:
            continue
        new, count = replace(text, changed)
        if path.endswith("grubenv") and len(new) != _GRUBENV:
            continue
        if count and new != text:
            rooted.write(path, new)
            yield f"/{path}"


def _paths(rooted: Rooted, prefix: str) -> Iterator[str]:
    yield from (prefix + path for path in FILES)
    for directory in _DIRECTORIES:
        yield from (f"{prefix}{directory}{name}" for name in rooted.names(prefix + directory))
    for boot in _BOOTS:
        yield from (f"{prefix}{boot}{path}" for path in _GRUBS)
        entries = f"{prefix}{boot}loader/entries"
        yield from (f"{entries}/{name}" for name in rooted.names(entries) if name.endswith(".conf"))
        for name in rooted.names(f"{prefix}{boot}EFI"):
            yield f"{prefix}{boot}EFI/{name}/grub.cfg"


def follow_in_esp(device: Path, changed: Mapping[str, str]) -> Iterator[str]:
    """Change the references in a FAT file system, by mtools, which needs no mount; gives the paths that were changed.

    Raises:
        RestoreError: a file cannot be read or written.
    """
    for path in _fat_files(device):
        with tempfile.TemporaryDirectory() as directory:
            copy = Path(directory) / "file"
            tools.run(["mcopy", "-n", "-i", device, f"::/{path}", copy])
            text = copy.read_bytes()
            new, count = replace(text, changed)
            if count and new != text:
                copy.write_bytes(new)
                tools.run(["mcopy", "-o", "-i", device, copy, f"::/{path}"])
                yield f"/{path}"


def _fat_files(device: Path) -> Iterator[str]:
    for pattern in _ESP_DEPTH:
        found = tools.run(["mdir", "-b", "-i", device, f"::/{pattern}"], good=(0, 1))
        for line in found.out.splitlines():
            if line.startswith("::/") and not line.endswith("/"):
                yield line.removeprefix("::/")
