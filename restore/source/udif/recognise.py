"""Is it a UDIF image? And its relatives, which cannot be restored from and would else be taken for raw disks."""

from __future__ import annotations

import plistlib
from pathlib import Path
from typing import Final

from restore.errors import Refused
from restore.source.storage import Storage

KOLY_SIGNATURE: Final = b"koly"
KOLY_VERSION: Final = 4
KOLY_SIZE: Final = 512  # bytes

_ENCRYPTED: Final = b"encrcdsa"  # the first bytes, and of an older kind `cdsaencr`, the last ones
_ENCRYPTED_AT_END: Final = b"cdsaencr"
_SPARSE_IMAGE: Final = b"sprs"
_MAX_INFO: Final = 64 << 10  # bytes of a bundle's Info.plist
_CONVERT: Final = "make an image of it on a Mac with hdiutil convert -format UDZO"


def find_koly(storage: Storage) -> bytes | None:
    """The trailer, which some old images have in front; None where there is none: it is no UDIF image.

    Raises:
        SourceError, OSError: it cannot be read.
    """
    size = storage.size or 0
    if size < KOLY_SIZE:
        return None
    last = storage.read(size - KOLY_SIZE, KOLY_SIZE)
    if last.startswith(KOLY_SIGNATURE):
        return last
    first = storage.read(0, KOLY_SIZE)
    beginning = KOLY_SIGNATURE + KOLY_VERSION.to_bytes(4) + KOLY_SIZE.to_bytes(4)
    return first if first.startswith(beginning) else None


def is_udif(storage: Storage) -> bool:
    """Whether a seekable storage of known size holds a UDIF image, damaged or not.

    Raises:
        Refused: it holds another kind of the Mac's disk images; says which, and what to do.
        SourceError, OSError: it cannot be read.
    """
    if find_koly(storage) is not None:
        return True
    size = storage.size or 0
    head = storage.read(0, 128)
    if head.startswith(_ENCRYPTED) or storage.read(max(size - 8, 0), 8) == _ENCRYPTED_AT_END:
        raise Refused(f"{storage.name} is an encrypted disk image; {_CONVERT}, which asks for the password")
    if head.startswith(_SPARSE_IMAGE):
        raise Refused(f"{storage.name} is a sparse disk image (.sparseimage); {_CONVERT}")
    # In MacBinary: 0, a name's length, the name, at 65 type and creator. NDIF has no sign of its own but those.
    if head[:1] == b"\0" and 0 < head[1:2][0] < 64 and head[69:73] in (b"ddsk", b"dCpy") and head[74] == 0:
        raise Refused(f"{storage.name} is an image of Disk Copy (NDIF), older than UDIF; {_CONVERT}")
    return False


def refuse_bundle(directory: Path) -> None:
    """See to it that a directory is not a sparse bundle.

    Raises:
        Refused: it is; says what to do.
    """
    try:
        with (directory / "Info.plist").open("rb") as file:
            info = plistlib.loads(file.read(_MAX_INFO))
    except Exception:  # there is none, or it is not one: of many kinds
        return
    if isinstance(info, dict) and info.get("diskimage-bundle-type") == "com.apple.diskimage.sparsebundle":
        raise Refused(f"{directory} is a sparse disk image (.sparsebundle); {_CONVERT}")
