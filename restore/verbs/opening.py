"""An image and a target, opened as the options say."""

from __future__ import annotations

import argparse
import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import Final

from nbd.errors import URIError
from nbd.uri import NBDURI
from restore.errors import Refused
from restore.exports import SCHEMES
from restore.report import Report
from restore.source import Image, SourceSettings
from restore.source.detect import open_image
from restore.target import Target
from targetmode.disks.text import format_size

STREAM: Final = "asr:"
_ANY_SIZE: Final = 1 << 62  # bytes, of an image whose size is not known yet
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def source_settings(options: argparse.Namespace, report: Report) -> SourceSettings:
    """How the options want sources to be opened."""
    chosen = vars(options)
    return SourceSettings(
        format=chosen.get("format"),
        all_blocks=chosen.get("all_blocks", False),
        allow_backing=chosen.get("allow_backing", False),
        connections=chosen.get("connections"),
        timeout=chosen.get("timeout") or 60.0,
        notify=report.note,
    )


def open_prepared(place: str, options: argparse.Namespace, report: Report) -> Image:
    """Open an image, and check by its scan what is read of it, where it has one.

    Raises:
        Refused: it may not be used, or is not what the options insist on.
        SourceError: it is damaged.
        OSError: it cannot be read.
    """
    if place.startswith(STREAM):
        from restore.multicast.client.opening import open_stream

        return open_stream(place, options, report)
    settings = source_settings(options, report)
    chosen = vars(options)
    image = open_image(place, settings)
    try:
        if _is_alone(image, place) and chosen.get("verify_signature") is None:
            _check_unscanned(image, place, options)
            return image
        from restore.manifest.beside import beside, find
        from restore.manifest.checked import Prepared
        from restore.manifest.damage import check_damage

        with beside(image, place, settings) as path:
            bmap = find(path, image, chosen.get("verify_signature"))
            if bmap is not None and bmap.signer is not None:
                report.note(f"The scan of {place} is signed by {bmap.signer}")
            size = image.source.size if bmap is None else bmap.image_size
            if path is not None:
                bad = check_damage(path, _ANY_SIZE if size is None else size, allow_bad=chosen.get("allow_bad", True))
                if bad:
                    lost = format_size(sum(length for _, length in bad))
                    report.note(f"{place}: {lost} could not be read when it was captured, and are zeroes")
        if bmap is None:
            _check_unscanned(image, place, options)
            return image
        if chosen.get("sha256") and not (bmap.checksum_type == "sha256" and bmap.has_checksums):
            what = "its scan has no SHA-256 checksums of all of it, which --SHA256 insists on"
            raise Refused(f"{place}: {what}; {_scan_it(image, place)}")
        keep = chosen.get("keep_unmapped", False)
        prepared = Prepared(image.source, bmap, keep_unmapped=keep, notify=report.note)
    except BaseException:
        image.source.close()
        raise
    return replace(image, source=prepared)


def _is_alone(image: Image, place: str) -> bool:
    """Whether nothing lies beside an image; what would look at that takes long to load."""
    if image.path is None:
        return not _URL.match(place) or place.startswith(SCHEMES)
    return not any(Path(f"{image.path}{suffix}").exists() for suffix in (".bmap", ".map"))


def _check_unscanned(image: Image, place: str, options: argparse.Namespace) -> None:
    chosen = vars(options)
    if chosen.get("sha256"):
        raise Refused(
            f"{place}: could not find any scan information. The source image needs to be imagescanned before it can be "
            f"restored with --SHA256: {_scan_it(image, place)}"
        )
    if chosen.get("keep_unmapped"):
        raise Refused(f"{place} has no scan that says what is mapped, for --keep-unmapped; {_scan_it(image, place)}")


def _scan_it(image: Image, place: str) -> str:
    """How an image gets a scan, which only an image file can have."""
    if image.path is not None:
        return f"asr imagescan {place}"
    if _URL.match(place) and not is_export(place):
        return "scan it where its file is: asr imagescan FILE"
    return "only an image file can have a scan, and asr capture makes one of it"


def open_target(place: str, options: argparse.Namespace, report: Report, *, read_only: bool = False) -> Target:
    """Open a target.

    Raises:
        Refused: there is none, or it may not be used.
    """
    if is_export(place):
        from restore.target.remote import RemoteTarget

        try:
            uri = NBDURI.parse(place)
        except URIError as error:
            raise Refused(str(error)) from None
        return RemoteTarget(
            uri,
            connections=options.connections,
            timeout=options.timeout,
            notify=report.note,
            read_only=read_only,
        )
    if _URL.match(place):
        raise Refused(f"{place} is no target; it may be nbd://HOST/EXPORT, a block device, or an image file")
    from restore.target.local import LocalTarget

    return LocalTarget(place, read_only=read_only)


def same_place(first: str, second: str) -> bool:
    """Whether two paths are one file or block device, by whatever names; False where either is not there."""
    found = []
    for place in (first, second):
        if is_export(place):
            return False
        try:
            status = Path(place).stat()
        except (OSError, ValueError):
            return False
        is_device = stat.S_ISBLK(status.st_mode)
        found.append((is_device, status.st_rdev) if is_device else (is_device, status.st_dev, status.st_ino))
    return found[0] == found[1]


def is_export(place: str) -> bool:
    """Whether a place is an NBD URI."""
    return place.startswith(SCHEMES)
