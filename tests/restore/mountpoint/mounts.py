"""Volumes that are mounted where everyone sees them, below a test's own directory; unmounted whatever happens."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from restore.mountpoint.table import Row, rows
from tests.serving import run


@contextmanager
def mounted(what: str | Path, where: Path, *options: str, kind: str = "") -> Iterator[Path]:
    """Mount something on a new directory."""
    where.mkdir(exist_ok=True)
    words = [*(("-t", kind) if kind else ()), *(("-o", ",".join(options)) if options else ())]
    run("mount", *words, what, where)
    try:
        yield where
    finally:
        while any(row.mount_point == str(where) for row in rows()):
            subprocess.run(["umount", "--lazy", str(where)], check=True)


def row_of(where: Path) -> Row:
    """How a volume is mounted there, once."""
    (found,) = (row for row in rows() if row.mount_point == str(where))
    return found


def same_mount(one: Row, other: Row) -> bool:
    """Whether both are the same but for their numbers."""
    return [getattr(one, name) for name in _KEPT] == [getattr(other, name) for name in _KEPT]


_KEPT = ("root", "mount_point", "options", "shared", "kind", "source", "super_options")
