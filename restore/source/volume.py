"""A mounted volume as a source: unmounted while it is copied, and mounted again afterwards, however the copy ends.

One that is in use is made read-only instead. A process of its own mounts it again (`restore.mountpoint.keeper`), so
that this happens also when the copy is killed; only a power cut, or the death of both, leaves it unmounted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from restore.errors import Refused, RestoreError
from restore.mountpoint import Unmounted, Volume, volume_at
from restore.source import SourceSettings
from restore.source.device import DeviceImage
from restore.source.storage.device import BlockDevice
from targetmode.disks.machine import block_size_of
from targetmode.disks.preflight import Claim, InUse, PreflightError, claim

_PATIENCE: Final = 5.0  # seconds; udev looks at a device that was unmounted, and who has namespaces may end soon
_PASSING: Final = ("exclusive", "lock", "mount")
_HEAD: Final = 256 << 10  # bytes from the start on that tell whether a file system was written to


def open_volume(place: str, settings: SourceSettings) -> DeviceImage | None:
    """The volume that is mounted at a mount point, or a block device that is mounted.

    Args:
        place: which.
        settings: as for any source.

    Returns:
        Its `Chunks`, or None where it is neither.

    Raises:
        Refused: it may not be unmounted, or is in use; it is mounted as it was.
        RestoreError: likewise, and it could not be mounted again everywhere.
        OSError: it cannot be read.
    """
    volume = volume_at(place, devices=True)
    if volume is None:
        return None
    return DeviceImage(MountedDevice(volume, settings.notify), settings)


class MountedDevice(BlockDevice):
    """The block device of a volume that was mounted, and is again when this is closed."""

    def __init__(self, volume: Volume, notify: Callable[[str], None]) -> None:
        """Unmount it, or make it read-only, and claim its device; raises as `open_volume`."""
        self._notify = notify
        self._taken = Unmounted(volume, or_read_only=True)
        self._head = b""
        try:
            claimed = _open_mounted(self._taken.device) if self._taken.read_only else _claim(self._taken.device)
            super().__init__(self._taken.device, claimed)
            self._head = self.read(0, _HEAD)
        except BaseException:
            self._put_back()
            raise
        if self._taken.read_only:
            notify(f"{volume.name} is in use, so it is read-only until it is copied")

    def check_unchanged(self) -> None:
        """Where it is still mounted, it has to be read-only, and to have been so all the time."""
        if self._taken.read_only:
            self.forget()
            if not self._taken.is_read_only() or self.read(0, _HEAD) != self._head:
                raise RestoreError(f"{self._taken.volume.name} was made writable meanwhile; stop what does that first")

    def close(self) -> None:
        """Give the device up, and have it mounted again."""
        super().close()
        self._put_back()

    def _put_back(self) -> None:
        for failure in self._taken.close():
            self._notify(failure)


def _claim(device: str) -> Claim:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return claim(device, read_only=True)
        except InUse as error:
            if any(use.kind not in _PASSING for use in error.uses) or time.monotonic() > deadline:
                raise Refused(str(error)) from None
        except PreflightError as error:
            raise Refused(str(error)) from None
        time.sleep(0.05)


def _open_mounted(device: str) -> Claim:
    """A device that cannot be claimed, since a file system is mounted from it."""
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        return Claim(Path(device), fd, block_size_of(fd), read_only=True, is_block=True)
    except OSError as error:
        raise Refused(f"{device} cannot be opened: {error.strerror}") from None
