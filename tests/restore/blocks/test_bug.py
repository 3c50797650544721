"""A fault of the program itself leaves no target that looks right."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest

from restore.blocks.job import Settings, restore
from restore.blocks.plan import Piece
from restore.blocks.verify import Feed, Verification
from restore.report.text import TextReport
from restore.source.detect import open_image
from restore.target.local import LocalTarget
from tests.serving import pattern

MIB = 1 << 20


def test_a_bug_when_the_first_mib_is_written_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, disk, out = tmp_path / "image", tmp_path / "disk", io.StringIO()
    image.write_bytes(pattern(4 * MIB))
    disk.write_bytes(bytes(5 * MIB))
    compare = Verification.compare

    async def failing(self: Verification, feed: Feed) -> list[Piece]:
        found = await compare(self, feed)
        if any(disk.read_bytes()[:MIB]):
            raise RuntimeError("can't start new thread")
        return found

    monkeypatch.setattr(Verification, "compare", failing)
    with pytest.raises(RuntimeError):
        asyncio.run(
            restore(
                lambda: LocalTarget(str(disk)), lambda: open_image(str(image)).source, Settings(), TextReport(out, out)
            )
        )
    assert disk.read_bytes()[:MIB] == bytes(MIB)
    assert f"{disk} is left empty" in out.getvalue()
