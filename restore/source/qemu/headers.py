"""What the header of a virtual machine's disk image says: its format, and which other files hold a part of it.

Read here and not by qemu, which opens whatever an image names while it looks at it.

Specifications: qcow2 is `docs/interop/qcow2.txt` of qemu; vmdk VMware's "Virtual Disk Format 5.0"; vhdx [MS-VHDX]; vhd
Microsoft's "Virtual Hard Disk Image Format Specification"; vdi VirtualBox's `VDICore.h`.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from restore.errors import Refused
from restore.source import SourceError
from targetmode.disks.text import decode

FORMATS: Final = ("qcow2", "vmdk", "vhdx", "vdi", "vpc")
"""The formats that qemu reads for us, by its names; `vpc` is VHD."""

_DESCRIPTOR: Final = re.compile(rb"\s*# *Disk *DescriptorFile", re.IGNORECASE)
_DESCRIPTOR_LIMIT: Final = 1 << 20  # bytes; qemu reads no more of one either
_VDI_MAGIC: Final = b"\x7f\x10\xda\xbe"
_FOOTER: Final = 512  # bytes of a VHD's, at its end

Read = Callable[[int, int], bytes]

_NAMELESS: Final = ""


@dataclass(frozen=True, slots=True)
class Part:
    """A file with data of an image.

    Attributes:
        name: as the image names it, relative to where it lies itself.
        least: bytes that it has to have at least.
    """

    name: str
    least: int = 0


@dataclass(frozen=True, slots=True)
class Others:
    """Other files that hold a part of an image, as it names them.

    Attributes:
        backing: what lies under it, which holds what it does not; None where nothing does, empty where it has no name
            that qemu could use.
        backing_format: the format of that, as qemu names it; None where the image does not tell.
        data: where its own data are.
    """

    backing: str | None = None
    backing_format: str | None = None
    data: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Header:
    """What is looked at of an image.

    Attributes:
        name: for people.
        form: its format.
        read: (offset, length) of its file; fewer bytes at the end.
        size: of the file, in bytes.
    """

    name: str
    form: str
    read: Read
    size: int

    def bytes(self, offset: int, length: int) -> bytes:
        """Exactly so many bytes; raises `SourceError` where they are not there."""
        data = self.read(offset, length) if offset + length <= self.size else b""
        if len(data) != length:
            raise self.damaged(f"it ends before byte {offset + length}")
        return data

    def unpack(self, shape: str, offset: int) -> tuple[Any, ...]:
        """A `struct` that begins there; raises as `bytes`."""
        return struct.unpack(shape, self.bytes(offset, struct.calcsize(shape)))

    def damaged(self, why: str) -> SourceError:
        """The error that says why it is."""
        return SourceError(f"{self.name} is no {self.form} image, or is damaged: {why}")


def sniff(read: Read, size: int) -> str | None:
    """Which of `FORMATS` a file of `size` bytes is, by its magic; None for anything else.

    Args:
        read: (offset, length) of it; fewer bytes at its end.
        size: of it, in bytes.

    Raises:
        OSError: it cannot be read.
    """
    start = read(0, 512)
    if start.startswith(b"QFI\xfb"):
        return "qcow2"
    if start.startswith(b"KDMV") or _DESCRIPTOR.match(start):
        return "vmdk"
    if start.startswith(b"vhdxfile"):
        return "vhdx"
    if start[0x40:0x44] == _VDI_MAGIC:
        return "vdi"
    return "vpc" if vhd_footer(read, size) is not None else None


def others(header: Header) -> Others:
    """Which other files an image names.

    Raises:
        Refused: it is encrypted.
        SourceError: it is damaged, or not of that format.
        OSError: it cannot be read.
    """
    return _READERS[header.form](header)


# --- qcow2 ---

_QCOW2_CORRUPT: Final = 2  # incompatible features
_QCOW2_EXTERNAL: Final = 4
_QCOW2_ENCRYPTION: Final = {1: "AES", 2: "LUKS"}
_EXTENSION_BACKING: Final = 0xE2792ACA
_EXTENSION_DATA: Final = 0x44415441


def _qcow2(header: Header) -> Others:
    magic, version, backing_at, backing_length = header.unpack(">4sIQI", 0)
    if magic != b"QFI\xfb" or version not in (2, 3):
        raise header.damaged("it does not begin as one of version 2 or 3")
    (crypt,) = header.unpack(">I", 32)
    if crypt:
        kind = _QCOW2_ENCRYPTION.get(crypt, f"method {crypt}")
        raise Refused(f"{header.name} is encrypted ({kind}); decrypt it first, with qemu-img convert")
    features, length = 0, 72
    if version == 3:
        (features,) = header.unpack(">Q", 72)
        (length,) = header.unpack(">I", 100)
    if features & _QCOW2_CORRUPT:
        raise SourceError(f"{header.name} is marked as corrupt; mend a copy of it first: qemu-img check -r all FILE")
    extensions = _extensions(header, length, backing_at)
    data: tuple[Part, ...] = ()
    if features & _QCOW2_EXTERNAL:
        data = (Part(_text(extensions.get(_EXTENSION_DATA, b""))),)
    if not backing_at:
        return Others(data=data)
    if not 0 < backing_length <= 1023:
        raise header.damaged(f"the name of its backing file has {backing_length} bytes")
    backing = header.bytes(backing_at, backing_length)
    form = extensions.get(_EXTENSION_BACKING)
    return Others(_text(backing), decode(form) if form else None, data)


def _extensions(header: Header, offset: int, backing_at: int) -> dict[int, bytes]:
    """The header extensions by type; they end where the backing file's name or the first cluster does."""
    (cluster_bits,) = header.unpack(">I", 20)
    if not 9 <= cluster_bits <= 21:
        raise header.damaged(f"clusters of 2^{cluster_bits} bytes")
    end = min(backing_at or 1 << cluster_bits, 1 << cluster_bits, header.size)
    found: dict[int, bytes] = {}
    while offset + 8 <= end:
        kind, length = header.unpack(">II", offset)
        if not kind:
            break
        if length > end - offset - 8:
            raise header.damaged(f"the header extension at byte {offset} has {length} bytes")
        if kind in (_EXTENSION_BACKING, _EXTENSION_DATA):
            found[kind] = header.bytes(offset + 8, length)
        offset += 8 + -(-length // 8) * 8
    return found


# --- vmdk ---

# As forgiving as qemu, and more: what it takes for the name of a file has to be found here too.
_VMDK_PARENT: Final = re.compile(rb'parentFileNameHint\s*=?\s*"?([^"\r\n]*)', re.IGNORECASE)
_VMDK_CID: Final = re.compile(rb"parentCID\s*=\s*([0-9a-f]+)", re.IGNORECASE)
_VMDK_EXTENT: Final = re.compile(rb'^\s*RW\b[^"]*"', re.MULTILINE)
_VMDK_EXTENT_LINE: Final = re.compile(
    rb'^[ \t]*RW[ \t]+(\d{1,15})[ \t]+(FLAT|SPARSE|VMFS|VMFSSPARSE|SESPARSE)[ \t]+"([^"\r\n]{1,511})"'
    rb"(?:[ \t]+(\d{1,15}))?[ \t]*\r?$",
    re.MULTILINE,
)
_NO_PARENT: Final = 0xFFFFFFFF


def _vmdk(header: Header) -> Others:
    start = header.read(0, 512)
    if start.startswith(b"KDMV"):
        # magic, version, flags, capacity, grain size, descriptor's offset and size, the latter three in sectors
        _, _, capacity, _, at, sectors = header.unpack("<IIQQQQ", 4)
        if not capacity:
            raise header.damaged("it has no capacity")
        text = b""
        if at:
            text = header.read(at * 512, min(sectors * 512, _DESCRIPTOR_LIMIT)) if at * 512 < header.size else b""
        return Others(_vmdk_parent(text), "vmdk")
    if not _DESCRIPTOR.match(start):
        raise header.damaged("it begins neither as a sparse extent nor as a descriptor")
    if header.size > _DESCRIPTOR_LIMIT:
        raise header.damaged(f"a descriptor of {header.size} bytes")
    text = header.read(0, _DESCRIPTOR_LIMIT)
    lines = list(_VMDK_EXTENT_LINE.finditer(text))
    if not lines or len(lines) != len(_VMDK_EXTENT.findall(text)):
        raise header.damaged("its list of extents cannot be understood")
    return Others(_vmdk_parent(text), "vmdk", tuple(_vmdk_part(line) for line in lines))


def _vmdk_part(line: re.Match[bytes]) -> Part:
    sectors, kind, name, offset = line.groups()
    flat = kind in (b"FLAT", b"VMFS")
    return Part(_text(name), (int(sectors) + int(offset or 0)) * 512 if flat else 0)


def _vmdk_parent(text: bytes) -> str | None:
    text = text.partition(b"\0")[0]
    hint, cid = _VMDK_PARENT.search(text), _VMDK_CID.search(text)
    if hint is not None and hint[1]:
        return _text(hint[1])
    if cid is not None and int(cid[1][:16], 16) != _NO_PARENT:
        return _NAMELESS
    return None


# --- vhdx, vdi, vhd: what has a parent is a difference to it, which qemu cannot read at all ---

_VHDX_REGIONS: Final = (192 << 10, 256 << 10)
_VHDX_METADATA: Final = bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e")
_VHDX_FILE_PARAMETERS: Final = bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b")
_VHDX_HAS_PARENT: Final = 2
_VHDX_MOST: Final = 2047  # entries of a table
_VDI_TYPES: Final = {1: None, 2: None, 3: "an undo image", 4: "a differencing image"}
_VHD_DIFFERENCING: Final = 4


def _vhdx(header: Header) -> Others:
    if header.bytes(0, 8) != b"vhdxfile":
        raise header.damaged("it does not begin as one")
    found = False
    for table in _VHDX_REGIONS:
        if header.read(table, 4) != b"regi":
            continue
        (entries,) = header.unpack("<I", table + 8)
        for index in range(min(entries, _VHDX_MOST)):
            guid, offset, _ = header.unpack("<16sQQ", table + 16 + 32 * index)
            if guid == _VHDX_METADATA:
                found = True
                if _vhdx_has_parent(header, offset):
                    return Others(_NAMELESS)
    if not found:
        raise header.damaged("it has no metadata")
    return Others()


def _vhdx_has_parent(header: Header, metadata: int) -> bool:
    signature, _, entries = header.unpack("<8sHH", metadata)
    if signature != b"metadata":
        raise header.damaged(f"there is no metadata table at byte {metadata}")
    for index in range(min(entries, _VHDX_MOST)):
        guid, offset = header.unpack("<16sI", metadata + 32 + 32 * index)
        if guid == _VHDX_FILE_PARAMETERS:
            _, bits = header.unpack("<II", metadata + offset)
            return bool(bits & _VHDX_HAS_PARENT)
    raise header.damaged(f"the metadata table at byte {metadata} has no file parameters")


def _vdi(header: Header) -> Others:
    if header.bytes(0x40, 4) != _VDI_MAGIC:
        raise header.damaged("it does not begin as one")
    (kind,) = header.unpack("<I", 0x4C)
    if kind not in _VDI_TYPES:
        raise header.damaged(f"an image of the type {kind}")
    # The UUIDs of the image, of its last snapshot, of what it is linked to, and of its parent.
    linked = header.bytes(0x1A8, 32)
    return Others(_NAMELESS if _VDI_TYPES[kind] or any(linked) else None)


def _vhd(header: Header) -> Others:
    footer = vhd_footer(header.read, header.size)
    if footer is None:
        raise header.damaged("it has no footer")
    (kind,) = struct.unpack_from(">I", footer, 60)
    return Others(_NAMELESS if kind == _VHD_DIFFERENCING else None)


def vhd_footer(read: Read, size: int) -> bytes | None:
    """The footer of a VHD, or the copy of it at the start; None where there is none. Raises as `sniff`."""
    for offset in (0, size - _FOOTER):
        if offset >= 0 and _is_footer(footer := read(offset, _FOOTER)):
            return footer
    return None


def _is_footer(data: bytes) -> bool:
    """Whether it is a VHD's footer: cookie and checksum."""
    if len(data) < _FOOTER or not data.startswith(b"conectix"):
        return False
    total = sum(data[:64]) + sum(data[68:_FOOTER])
    return int.from_bytes(data[64:68], "big") == ~total & 0xFFFFFFFF


def _text(raw: bytes) -> str:
    return os.fsdecode(raw.partition(b"\0")[0])


_READERS: Final[dict[str, Callable[[Header], Others]]] = {
    "qcow2": _qcow2,
    "vmdk": _vmdk,
    "vhdx": _vhdx,
    "vdi": _vdi,
    "vpc": _vhd,
}
