"""What is asked for after a restore, done on the target in private: --grow, --new-ids, --hostname."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from restore import tools
from restore.errors import Refused
from restore.finish.grow import grow as grow_target
from restore.finish.hostname import check_hostname, set_hostname
from restore.finish.identity import renew
from restore.private.attach import opened
from restore.private.process import in_private
from restore.report import Report

_TOOLS: Final = {"grow": ("resize2fs", "e2fsck"), "new_ids": ("tune2fs", "e2fsck", "swaplabel")}  # that each disk takes


def check(*, grow: bool, new_ids: bool, hostname: str | None) -> None:
    """See that what is asked for can be done here, before anything is written.

    Raises:
        Refused: a host name that is none, no root, a missing program.
    """
    if hostname is not None:
        check_hostname(hostname)
    if os.geteuid() != 0:
        raise Refused("--grow, --new-ids and --hostname mount the target's file systems, which needs root")
    for option, asked in (("grow", grow), ("new_ids", new_ids)):
        for program in _TOOLS[option] if asked else ():
            tools.find(program)


async def finish(
    where: str, report: Report, *, grow: bool = False, new_ids: bool = False, hostname: str | None = None
) -> None:
    """Do what was asked for; every change is a note.

    Args:
        where: the target: a path of a disk, partition or image, or an NBD URI; nothing of ours may have it open.
        report: is told.
        grow: `--grow`.
        new_ids: `--new-ids`.
        hostname: `--hostname`.

    Raises:
        Refused: a host name that is none, a missing program, a target in use.
        RestoreError: something could not be done; what was done before is noted.
    """
    if hostname is not None:
        check_hostname(hostname)
    if grow or new_ids or hostname is not None:
        arguments = {"where": where, "grow": grow, "new_ids": new_ids, "hostname": hostname}
        await in_private("restore.finish.steps:finish_in_private", arguments, report)


def finish_in_private(
    report: Report, directory: Path, *, where: str, grow: bool, new_ids: bool, hostname: str | None
) -> None:
    """What `finish` does, in the private process."""
    with opened(where, read_only=False) as under:
        if new_ids:
            for line in renew(under, directory):
                report.note(line)
        if grow:
            for line in grow_target(under, directory):
                report.note(line)
        if hostname is not None:
            for line in set_hostname(under, directory, hostname):
                report.note(line)
