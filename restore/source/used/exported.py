"""The used blocks of an export: it is attached in private, where its file systems' own tools look at it."""

from __future__ import annotations

import os
from pathlib import Path

from restore.errors import Refused
from restore.private.attach import opened
from restore.private.process import in_private
from restore.report import Report
from restore.source.used import UsedBlocks, used_blocks
from restore.source.used.runs import Runs


async def used_blocks_of_export(uri: str, report: Report) -> UsedBlocks | None:
    """The used blocks of an export; as `used_blocks`.

    Raises:
        RestoreError: it cannot be read.
    """
    if os.geteuid() != 0:
        report.note(f"{uri}: only root can find out which blocks its file systems use, so all of it counts as used")
        return None
    try:
        found = await in_private("restore.source.used.exported:find_in_private", {"uri": uri}, report)
    except Refused as error:
        report.note(f"{error}; as it is, all of {uri} counts as used")
        return None
    return None if found is None else UsedBlocks(found["size"], Runs(tuple(run) for run in found["unused"]))


def find_in_private(report: Report, directory: Path, *, uri: str) -> dict[str, object] | None:
    """What `used_blocks_of_export` does, in the private process."""
    with opened(uri, read_only=True) as under:
        used = used_blocks(under, report.note)
    return None if used is None else {"size": used.size, "unused": list(used.unused)}
