"""Images behind URLs: which scheme is whose, and what lies beside an image there."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Final

from restore.errors import Refused
from restore.source import SourceSettings
from restore.source.storage import Missing, Storage
from restore.source.storage.address import Address, scheme_of
from targetmode.disks.text import format_size

WEB: Final = ("http", "https")
REMOTE: Final = ("s3", "sftp", "smb")
_OTHERS: Final = "a source may be a path or one of http://, https://, s3://, sftp://, smb://"


def is_url(place: str) -> bool:
    """Whether a source is named by a URL, of whatever scheme, rather than by a path."""
    return scheme_of(place) is not None


def open_url(place: str, settings: SourceSettings) -> Storage:
    """The bytes behind a URL.

    Raises:
        Refused: it is not there, may not be read, or is of a kind that is not.
        RestoreError: its server went away meanwhile.
    """
    scheme = scheme_of(place)
    if scheme not in (*WEB, *REMOTE):
        raise _unknown(scheme)
    return _open(Address.parse(place), settings)


def fetch_beside(place: str, suffix: str, limit: int, settings: SourceSettings) -> bytes | None:
    """A small file that has the name of an image and something behind it, such as its scan.

    Args:
        place: the image's URL.
        suffix: such as `.bmap`.
        limit: the most bytes that it may have.
        settings: how to get it.

    Returns:
        All of it; None where there is none. One that may not be read counts as none, which `settings.notify` is told:
        an object store says that of what it does not have.

    Raises:
        Refused: it cannot be had, or is larger.
        RestoreError: its server went away meanwhile.
    """
    address = Address.parse(place).beside(suffix)
    too_large = f"{address} is larger than {format_size(limit)}, which is too large for a file of its kind"
    try:
        storage = _open(address, replace(settings, connections=1))
    except Missing as error:
        if error.forbidden:
            settings.notify(f"{address} may not be read (403 Forbidden), which is taken as its not being there")
        return None
    with closing(storage):
        if (storage.size or 0) > limit:
            raise Refused(too_large)
        found = bytearray()
        for piece in storage.stream():
            found += piece
            if len(found) > limit:
                raise Refused(too_large)
    return bytes(found)


def _open(address: Address, settings: SourceSettings) -> Storage:
    if address.scheme in WEB:
        from restore.source.storage.http import HTTPStorage

        return HTTPStorage(address, settings)
    from restore.source.storage.remote import RemoteStorage

    return RemoteStorage(address, settings)


def _unknown(scheme: str | None) -> Refused:
    match scheme:
        case "asr":
            return Refused("asr://: a multicast stream can only be restored, onto a target by blocks")
        case "ftp" | "ftps" | "tftp":
            return Refused(f"{scheme}://: that is not spoken here; download it first, or have it served over http")
        case "file":
            return Refused("file://: name the path itself")
        case "nfs" | "cifs":
            return Refused(f"{scheme}://: mount that share, and name the path there")
    return Refused(f"{scheme}://: there is no such kind of source; {_OTHERS}")
