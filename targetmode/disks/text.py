"""Text that comes from a disk, made safe to show, and sizes as people read them."""

from __future__ import annotations

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def printable(text: str) -> str:
    """Replaces everything that could steer a terminal (control, format and bidirectional characters) in `text`."""
    return "".join(character if character.isprintable() else _REPLACEMENT for character in text)


def escaped(text: str) -> str:
    r"""The same in one line: what could steer a terminal, and bytes that are not UTF-8, as `\n`, `\x1b`, `\xff`."""
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def _escape(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte that is not UTF-8, as os.fsdecode has it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


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
