from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving import pattern


@pytest.fixture(scope="module")
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source of the module's `IMAGE_SIZE`."""
    path = tmp_path_factory.mktemp("source") / "source.img"
    path.write_bytes(pattern(request.module.IMAGE_SIZE))
    return path


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """What is to be exported, of the module's `SIZE`, full of other data."""
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(request.module.SIZE, seed=2))
    return path
