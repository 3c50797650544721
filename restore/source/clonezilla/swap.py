"""Swap space made anew, of which an image keeps only UUID and label (Linux include/linux/swap.h, util-linux mkswap)."""

from __future__ import annotations

import re
import uuid
from typing import Final

from restore.errors import Refused

PAGE: Final = 4096  # bytes
MIN_PAGES: Final = 10
LINUX_SWAP: Final = ("0x82", "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f")
"""Types of a partition of swap space, in an MBR and in a GPT."""

_UUID: Final = re.compile(r'^UUID="([^"]*)"', re.MULTILINE)
_LABEL: Final = re.compile(r'^LABEL="([^"]*)"', re.MULTILINE)
_MOST_PAGES: Final = 0xFFFFFFFF


def swap_header(info: str, size: int, name: str) -> bytes:
    """The first page of swap space.

    Args:
        info: what `swappt-PARTITION.info` says; nothing makes swap space without UUID and label.
        size: of the partition, in bytes.
        name: of the file, for errors.

    Raises:
        Refused: it is damaged, or the partition too small.
    """
    identifier = match[1] if (match := _UUID.search(info)) else ""
    label = (match[1] if (match := _LABEL.search(info)) else "").encode()[:16]
    try:
        raw_uuid = uuid.UUID(identifier).bytes if identifier else bytes(16)
    except ValueError:
        raise Refused(f"{name}: {identifier!r} is no UUID") from None
    pages = min(size // PAGE, _MOST_PAGES)
    if pages < MIN_PAGES:
        raise Refused(f"{name}: a partition of {size} bytes is too small for swap space")
    fields = (1).to_bytes(4, "little") + (pages - 1).to_bytes(4, "little") + bytes(4) + raw_uuid
    return (bytes(1024) + fields + label).ljust(PAGE - 10, b"\0") + b"SWAPSPACE2"
