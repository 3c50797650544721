"""`asr info`: what there is to tell of an image without reading it all; as text, as a property list, as JSON."""

from __future__ import annotations

import json
import plistlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from restore.errors import Refused, RestoreError
from restore.manifest import ManifestError, damage, signature
from restore.manifest.beside import bmap_path, check_size, load
from restore.manifest.bmap import Bmap
from restore.report.shown import without_secrets
from restore.source import Source
from restore.source.contents import contents_of
from targetmode.disks.contents import Contents
from targetmode.disks.signatures import Signature
from targetmode.disks.text import escaped, format_size


@dataclass(frozen=True, slots=True)
class FileSystemInfo:
    """What a disk or partition holds.

    Attributes:
        kind: such as `ext4`, `vfat`, `LUKS`.
        label: empty if it has none.
        uuid: empty if it has none.
    """

    kind: str
    label: str
    uuid: str


@dataclass(frozen=True, slots=True)
class PartitionInfo:
    """A partition.

    Attributes:
        number: from 1.
        start: bytes.
        size: bytes.
        type: GPT type GUID, or MBR type such as `0x83`.
        name: empty if it has none.
        file_system: None when it is not known.
    """

    number: int
    start: int
    size: int
    type: str
    name: str
    file_system: FileSystemInfo | None


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What there is to tell of an image.

    Attributes:
        name: of the image, as it was given, but without what a URL has for a password and a query.
        format: such as `raw`.
        size: bytes of the image; None where only decoding it all would tell.
        stored: bytes of its file; None if it is none.
        mapped: bytes of it that are mapped, by its scan or else its holes; None where that is not known.
        scheme: of its partition table, `gpt` or `mbr`; empty if there is none.
        partitions: by number.
        file_system: of the whole, where there is one.
        scan: `matches`, `none`, or `refused`.
        scan_problem: why the scan is refused, and what to do; else empty.
        scan_ranges: how many it has; None without one.
        signature: `none`, `unchecked`, `valid`, or `refused`.
        signer: who signed it, where it is valid; why it is refused, where it is.
        unreadable: bytes that could not be read when it was captured; None where its map cannot be understood.
    """

    name: str
    format: str
    size: int | None
    stored: int | None
    mapped: int | None
    scheme: str
    partitions: tuple[PartitionInfo, ...]
    file_system: FileSystemInfo | None
    scan: str
    scan_problem: str
    scan_ranges: int | None
    signature: str
    signer: str
    unreadable: int | None

    def as_text(self) -> str:
        """For people, a fact a line."""
        return "\n".join(f"{title + ':':<13} {escaped(value)}" for title, value in self._lines())

    def as_dictionary(self) -> dict[str, Any]:
        """For programs; what is not known is left out."""
        return {key: _without_none(value) for key, value in asdict(self).items() if value is not None}

    def as_json(self) -> str:
        """One object."""
        return json.dumps(self.as_dictionary(), indent=2)

    def as_plist(self) -> str:
        """An XML property list; what XML cannot hold is escaped."""
        return plistlib.dumps(_escaped(self.as_dictionary()), sort_keys=False).decode()

    def _lines(self) -> list[tuple[str, str]]:
        lines = [("Image", self.name), ("Format", self.format)]
        size = (
            "known when it has been decoded" if self.size is None else f"{format_size(self.size)} ({self.size} bytes)"
        )
        lines.append(("Size", size))
        if self.stored is not None and self.stored != self.size:
            lines.append(("File", f"{format_size(self.stored)} ({self.stored} bytes)"))
        if self.mapped is not None:
            lines.append(("Mapped", f"{format_size(self.mapped)} ({self.mapped} bytes)"))
        if self.file_system is not None:
            lines.append(("File system", _said(self.file_system)))
        if self.scheme:
            lines.append(("Partitions", f"{len(self.partitions)}, {self.scheme}"))
        for found in self.partitions:
            name = f', "{found.name}"' if found.name else ""
            held = "unknown" if found.file_system is None else _said(found.file_system)
            lines.append((f"  {found.number}", f"{held}, {format_size(found.size)} at byte {found.start}{name}"))
        scan = {"matches": f"matches, {self.scan_ranges} ranges", "none": "none"}.get(self.scan, self.scan_problem)
        lines.append(("Scan", scan))
        signed = {"none": "none", "unchecked": "there is one, not checked", "valid": f"valid, by {self.signer}"}
        lines.append(("Signature", signed.get(self.signature, self.signer)))
        if self.unreadable != 0:
            lost = "unknown" if self.unreadable is None else format_size(self.unreadable)
            lines.append(("Unreadable", f"{lost} when it was captured; see {damage.map_path(self.name)}"))
        return lines


def describe(
    source: Source,
    path: str | Path,
    image_format: str,
    allowed_signers: str | None = None,
    name: str | None = None,
) -> ImageInfo:
    """Look at an image and what lies beside it.

    Args:
        source: the image, open.
        path: of its file or device, or whatever else it was called; what is beside it is looked for there.
        image_format: what it was found to be.
        allowed_signers: of its scan's signature, which is only checked with these.
        name: what it is called, where that is not its path.

    Raises:
        OSError: what is beside it cannot be read.
    """
    bmap, problem = _scan(source, path)
    signed, signer = _signature(path, allowed_signers)
    name = str(path) if name is None else name
    size = source.size if source.size is not None else bmap.image_size if bmap is not None else None
    contents = contents_of(source, size)
    return ImageInfo(
        name=without_secrets(name),
        format=image_format,
        size=size,
        stored=_stored(path),
        mapped=bmap.mapped if bmap is not None else _mapped(source),
        scheme=contents.table.scheme if contents is not None and contents.table is not None else "",
        partitions=_partitions(contents),
        file_system=_file_system(contents.signature) if contents is not None else None,
        scan="refused" if problem else "none" if bmap is None else "matches",
        scan_problem=without_secrets(problem.replace(str(path), name)),
        scan_ranges=None if bmap is None else len(bmap),
        signature=signed,
        signer=without_secrets(signer.replace(str(path), name)),
        unreadable=_unreadable(path, size),
    )


def _scan(source: Source, path: str | Path) -> tuple[Bmap | None, str]:
    try:
        bmap = load(path)
        if bmap is not None and source.size is not None:
            check_size(bmap, path, source.size)
        return bmap, ""
    except ManifestError as error:
        return None, str(error)


def _signature(path: str | Path, allowed_signers: str | None) -> tuple[str, str]:
    where = bmap_path(path)
    if not signature.signature_path(where).exists() or not where.exists():
        return "none", ""
    if allowed_signers is None:
        return "unchecked", ""
    try:
        return "valid", signature.verify(where, allowed_signers)
    except RestoreError as error:
        return "refused", str(error)


def _stored(path: str | Path) -> int | None:
    where = Path(path)
    return where.stat().st_size if where.is_file() else None


def _mapped(source: Source) -> int | None:
    if source.sequential:
        return None
    return sum(extent.length for extent in source.extents() if not extent.hole)


def _unreadable(path: str | Path, size: int | None) -> int | None:
    try:
        bad = damage.read_map(damage.map_path(path), size or 0)
    except Refused:
        return None
    return sum(length for _, length in bad or [])


def _partitions(contents: Contents | None) -> tuple[PartitionInfo, ...]:
    if contents is None:
        return ()
    return tuple(
        PartitionInfo(
            number=found.partition.number,
            start=found.partition.start,
            size=found.partition.length,
            type=found.partition.type,
            name=found.partition.name,
            file_system=_file_system(found.signature),
        )
        for found in contents.partitions
    )


def _file_system(found: Signature | None) -> FileSystemInfo | None:
    return None if found is None else FileSystemInfo(found.kind, found.label, found.uuid)


def _said(found: FileSystemInfo) -> str:
    return f'{found.kind} "{found.label}"' if found.label else found.kind


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return escaped(value) if isinstance(value, str) else value


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
