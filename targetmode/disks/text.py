"""Text that comes from a disk, made safe to show, and sizes as people read them."""

from __future__ import annotations

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def printable(text: str) -> str:
    """Replaces everything that could steer a terminal (control, format and bidirectional characters) in `text`."""
    return "".join(character if character.isprintable() else _REPLACEMENT for character in text)


def decode(raw: bytes, encoding: str = "utf-8") -> str:
    """Decodes a fixed-width name field: up to the first NUL, without padding, safe to print; never raises."""
    return printable(raw.decode(encoding, "replace").partition("\0")[0].rstrip())


def format_size(size: int) -> str:
    """Formats `size` bytes with a binary unit and one decimal, such as `64.0 MiB`; below 1 KiB as `512 bytes`."""
    if size < 1024:
        return f"{size} bytes"
    power = 1
    while round(size / 1024**power, 1) >= 1024 and power < len(_UNITS):
        power += 1
    return f"{size / 1024**power:.1f} {_UNITS[power - 1]}"
