"""The scan beside an image, `IMAGE.bmap`: read once, checked against the image's file and its signature."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from restore.errors import Refused
from restore.exports import SCHEMES
from restore.manifest import ManifestError, signature
from restore.manifest.bmap import Bmap
from restore.manifest.damage import map_path
from restore.manifest.parsing import FILE_LIMIT, parse
from restore.source import Image, SourceSettings
from restore.source.storage.url import fetch_beside, is_url
from targetmode.disks.text import format_size

_FETCHED: Final = 256 << 20  # bytes of what lies beside a URL, at most


def bmap_path(image: str | Path) -> Path:
    """Where the scan of an image is."""
    return Path(f"{image}.bmap")


def load(image: str | Path, allowed_signers: str | None = None) -> Bmap | None:
    """The scan beside an image; None if there is none.

    It is copied first, so that what was found to be signed is what is used, whoever can write where the image is.

    Args:
        image: path of the image's file.
        allowed_signers: path of a file as `ssh-keygen -Y verify` takes; the scan has to be signed by one of those.

    Raises:
        ManifestError: it is damaged, is not the image's or is older, or the signature is not what it has to be; also
            where there is no scan and it had to be signed.
        OSError: it cannot be read.
    """
    path = bmap_path(image)
    try:
        file = _open(path)
    except FileNotFoundError:
        if allowed_signers is not None:
            raise ManifestError(f"{image} has no scan that could be signed; {_scan_it(image, sign=True)}") from None
        return None
    with file, tempfile.TemporaryFile() as copy:
        status = os.fstat(file.fileno())
        if status.st_size > FILE_LIMIT:
            raise ManifestError(f"{path} is not a valid block map: it is larger than {FILE_LIMIT >> 30} GiB")
        shutil.copyfileobj(file, copy, 1 << 20)
        signer = None
        if allowed_signers is not None:
            copy.seek(0)
            signer = signature.verify(path, allowed_signers, copy)
        copy.seek(0)
        bmap = parse(copy, str(path))
        bmap.signer = signer
    if allowed_signers is not None and not bmap.complete:
        raise ManifestError(f"{path} has ranges without a checksum, which no signature covers; {_scan_it(image)}")
    check_file(bmap, image, status.st_mtime_ns)
    return bmap


def find(path: Path | None, image: Image, allowed_signers: str | None) -> Bmap | None:
    """The scan of an image that is open, found to be of its size; None if it has none.

    Args:
        path: what it lies beside, as `beside` gave it; None where nothing can lie beside the image.
        image: it.
        allowed_signers: as for `load`.

    Raises:
        ManifestError: as `load`, and where the sizes differ.
        OSError: it cannot be read.
    """
    if path is None:
        if allowed_signers is not None:
            raise ManifestError(f"{image.source.name} has no scan that could be signed; capture it first")
        return None
    bmap = load(path, allowed_signers)
    if bmap is not None and image.source.size is not None:
        check_size(bmap, path, image.source.size)
    return bmap


@contextmanager
def beside(image: Image, place: str, settings: SourceSettings) -> Iterator[Path | None]:
    """The path that scan, signature and map of an image lie beside: its own, or for one behind a URL that of copies.

    Args:
        image: it.
        place: where it was found.
        settings: how it was opened.

    Raises:
        RestoreError: what lies beside a URL cannot be had; also what is raised within the context, with the URL in
            place of the copies' path.
    """
    if image.path is not None or place.startswith(SCHEMES) or not is_url(place):
        yield image.path
        return
    with tempfile.TemporaryDirectory(prefix="asr-") as directory:
        path = Path(directory) / "image"
        for found in (bmap_path(path), signature.signature_path(bmap_path(path)), map_path(path)):
            data = fetch_beside(place, found.name.removeprefix(path.name), _FETCHED, settings)
            if data is not None:
                found.write_bytes(data)
        try:
            yield path
        except ManifestError as error:
            raise ManifestError(_far(error, path, image.source.name)) from None
        except Refused as error:
            raise Refused(_far(error, path, image.source.name)) from None


def _far(error: Refused, path: Path, name: str) -> str:
    """What an error says of the copies, said of the image behind a URL, which can only be scanned where its file is."""
    text = str(error)
    for command in ("asr imagescan", "asr imagescan --sign KEY"):
        text = text.replace(f"{command} {path}", f"{command} FILE, where its file is")
    return text.replace(str(path), name)


def check_file(bmap: Bmap, image: str | Path, scanned_ns: int) -> None:
    """See whether a scan can be the one of the image's file as that is now.

    A file that still has the time of change that the scan noted is the one that was scanned. One with another time may
    be a copy of it, so it is refused only if it is newer than the scan: then either it was changed or only copied
    later. That it is the same in content shows as it is read.

    Args:
        bmap: the scan.
        image: path of the image's file.
        scanned_ns: when the scan's file was last changed, in nanoseconds since 1970.

    Raises:
        ManifestError: it cannot.
    """
    try:
        status = Path(image).stat()
    except FileNotFoundError:  # it is behind a URL
        return
    if not stat.S_ISREG(status.st_mode):
        return
    then = bmap.image_file
    if then is not None and then.size != status.st_size:
        raise ManifestError(
            f"{bmap_path(image)} does not match: {image} had {then.size} bytes when it was scanned, and has "
            f"{status.st_size}; {_scan_it(image)}"
        )
    if (then is None or then.mtime_ns != status.st_mtime_ns) and status.st_mtime_ns > scanned_ns:
        raise ManifestError(
            f"{bmap_path(image)} is older than {image}; {_scan_it(image)}, "
            f"or if the image was only copied: touch {bmap_path(image)}"
        )


def check_size(bmap: Bmap, image: str | Path, size: int) -> None:
    """See whether a scan is of an image of `size` bytes.

    Raises:
        ManifestError: it is not.
    """
    if bmap.image_size != size:
        raise ManifestError(
            f"{bmap_path(image)} does not match: it is of an image of {format_size(bmap.image_size)} "
            f"({bmap.image_size} bytes), and {image} has {format_size(size)} ({size} bytes); {_scan_it(image)}"
        )


def _open(path: Path) -> IO[bytes]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for ever
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ManifestError(f"{path} is not a file")
    return os.fdopen(fd, "rb")


def _scan_it(image: str | Path, *, sign: bool = False) -> str:
    return f"scan it again: asr imagescan {image}" if not sign else f"scan it: asr imagescan --sign KEY {image}"
