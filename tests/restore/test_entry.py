"""The command before it is itself."""

from __future__ import annotations

import importlib.metadata
import sys
from types import ModuleType

import pytest


def test_interrupted_while_loading(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Loading(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "restore.cli", Loading("restore.cli"))
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="asr")
    assert command.load()() == 1
    assert capsys.readouterr().err == "asr: interrupted; nothing was touched\n"
