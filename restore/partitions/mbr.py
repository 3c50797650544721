"""Changing a Master Boot Record (UEFI 2.10 section 5.2)."""

from __future__ import annotations

import secrets
from typing import Final

from restore.errors import RestoreError
from restore.partitions import Medium
from targetmode.disks import mbr

_RECORDS: Final = 446
_RECORD_SIZE: Final = 16
_MOST: Final = 0xFFFFFFFF  # sectors that a record can tell of
_HEADS: Final = 255
_SECTORS: Final = 63


class MBRError(RestoreError):
    """A table that is left as it is; says why."""


def chs(lba: int) -> bytes:
    """An address as cylinder, head and sector; all ones where it is beyond what that can say (section 5.2.3)."""
    cylinder, rest = divmod(lba, _HEADS * _SECTORS)
    head, sector = divmod(rest, _SECTORS)
    if cylinder > 1023:
        return b"\xff\xff\xff"
    return bytes((head, (sector + 1) | (cylinder >> 8) << 6, cylinder & 0xFF))


def fit_protective(sector: bytes, last_lba: int) -> bytes:
    """A protective MBR made to cover a disk up to `last_lba`; a hybrid MBR stays as it is (section 5.2.3)."""
    used = [at for at in range(4) if any(_record(sector, at))]
    if len(used) != 1 or _record(sector, used[0])[4] != mbr.GPT_PROTECTIVE:
        return sector
    at = _RECORDS + used[0] * _RECORD_SIZE
    record = _record(sector, used[0])
    fitted = record[:5] + chs(last_lba) + record[8:12] + min(last_lba, _MOST).to_bytes(4, "little")
    return sector[:at] + fitted + sector[at + _RECORD_SIZE :]


def set_end(medium: Medium, number: int, end: int) -> int:
    """Have a primary partition end at most at byte `end` of the disk, on a whole MiB where it began on one.

    Returns:
        Its new length in bytes; never less than before.

    Raises:
        MBRError: it cannot be made larger.
        OSError, NBDError: the disk cannot be read or written.
    """
    sector, unit = medium.get(0, 512), medium.sector_size
    if number > 4:
        raise MBRError(f"partition {number} is a logical one, which is not made larger")
    record = _record(sector, number - 1)
    start, length = int.from_bytes(record[8:12], "little"), int.from_bytes(record[12:16], "little")
    if not length:
        raise MBRError(f"there is no partition {number}")
    step = (1 << 20) // unit if start * unit % (1 << 20) == 0 else 1
    last = max(min(end // unit, medium.size // unit, start + _MOST) // step * step, start + length)
    for other in range(4):
        begin = int.from_bytes(_record(sector, other)[8:12], "little")
        if other != number - 1 and any(_record(sector, other)) and start + length <= begin < last:
            raise MBRError(f"partition {number} cannot grow over partition {other + 1}")
    if last > start + length:
        at = _RECORDS + (number - 1) * _RECORD_SIZE
        grown = record[:5] + chs(last - 1) + record[8:12] + (last - start).to_bytes(4, "little")
        medium.put(sector[:at] + grown + sector[at + _RECORD_SIZE :], 0)
        medium.flush()
    return (last - start) * unit


def cut_after(medium: Medium, number: int, end: int) -> int:
    """Have the last partition, a primary one, end at byte `end` of the disk, earlier than it did.

    Returns:
        The size, a whole MiB, that the disk may be cut to.

    Raises:
        MBRError: it is none of those.
        OSError, NBDError: the disk cannot be read or written.
    """
    sector, unit = medium.get(0, 512), medium.sector_size
    if number > 4:
        raise MBRError(f"partition {number} is a logical one, which is not made smaller")
    record = _record(sector, number - 1)
    start, length = int.from_bytes(record[8:12], "little"), int.from_bytes(record[12:16], "little")
    for other in range(4):
        found = _record(sector, other)
        stop = int.from_bytes(found[8:12], "little") + int.from_bytes(found[12:16], "little")
        if other != number - 1 and any(found[12:16]) and stop > start:
            raise MBRError(f"partition {number} is not behind partition {other + 1}")
    if not start * unit < end <= (start + length) * unit or end % unit:
        raise MBRError(f"partition {number} cannot end at byte {end}")
    size = min(-(-end // (1 << 20)) << 20, medium.size)
    if size < medium.size:
        at = _RECORDS + (number - 1) * _RECORD_SIZE
        last = end // unit
        smaller = record[:5] + chs(last - 1) + record[8:12] + (last - start).to_bytes(4, "little")
        medium.put(sector[:at] + smaller + sector[at + _RECORD_SIZE :], 0)
        medium.flush()
    return size


def renew(medium: Medium) -> tuple[str, str]:
    """Give the disk a new random identifier; the old one and the new one, as eight hexadecimal digits.

    Raises:
        OSError, NBDError: the disk cannot be read or written.
    """
    sector = medium.get(0, 512)
    new = secrets.randbelow(_MOST) + 1
    medium.put(sector[:440] + new.to_bytes(4, "little") + sector[444:], 0)
    medium.flush()
    return f"{int.from_bytes(sector[440:444], 'little'):08x}", f"{new:08x}"


def _record(sector: bytes, index: int) -> bytes:
    at = _RECORDS + index * _RECORD_SIZE
    return sector[at : at + _RECORD_SIZE]
