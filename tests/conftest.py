"""Of several pytest workers each has a temporary directory of its own: what is left in it is of its own tests."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None:
        directory = Path(tempfile.gettempdir()) / worker
        directory.mkdir(exist_ok=True)
        os.environ["TMPDIR"] = str(directory)
        tempfile.tempdir = None
