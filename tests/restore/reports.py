"""A report that remembers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Remembered:
    """What a job told.

    Attributes:
        phases: that began.
        notes: lines.
        shares: of each phase with progress, the bytes done and in all, as they came.
    """

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.notes: list[str] = []
        self.shares: dict[str, list[tuple[int, int]]] = {}

    def begin(self, phase: str) -> None:
        self.phases.append(phase)

    def done(self) -> None:
        pass

    def progress(self, phase: str, done: int, total: int) -> None:
        self.shares.setdefault(phase, []).append((done, total))

    def missed(self) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)

    def failed(self, message: str, ranges: Sequence[tuple[int, int]] = ()) -> None:
        self.notes.append(message)

    def finished(self, summary: str, **facts: Any) -> None:
        self.notes.append(summary)
