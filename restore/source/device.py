"""A block device as an image: what its file systems use of it, or all of it."""

from __future__ import annotations

from collections.abc import Iterator

from nbd.backend import Extent
from restore.source import SourceSettings
from restore.source.raw import RawImage
from restore.source.storage.device import BlockDevice
from restore.source.used import UsedBlocks, used_blocks


class DeviceImage(RawImage):
    """The image that a block device is: `Chunks`. Its holes are what no file system on it uses."""

    def __init__(self, device: BlockDevice, settings: SourceSettings) -> None:
        """Take over `device`, and find out what of it is used, unless `settings.all_blocks`.

        Raises:
            OSError: it cannot be read.
        """
        super().__init__(device, device.size)
        self._used: UsedBlocks | None = None
        if not settings.all_blocks:
            try:
                self._used = used_blocks(device.opened(), settings.notify)
            except BaseException:
                device.close()
                raise

    def extents(self) -> Iterator[Extent]:
        """The runs in use as data, the others as holes; all data where nothing is known."""
        if self._used is None:
            yield Extent(self.size, hole=False, zero=False)
        else:
            yield from self._used
