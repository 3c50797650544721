"""How far the phases of a restore are, on the way to the report."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from restore.report import RESTORING, VERIFYING, Report

_TICK: Final = 0.1  # seconds between two updates


class Progress:
    """Bytes done of each phase, on their way to the report."""

    def __init__(
        self,
        report: Report,
        totals: dict[str, Callable[[], int]],
        watch: Callable[[int, int], None] = lambda restored, verified: None,
    ) -> None:
        """Of phases with their totals; `watch` is told as `Arriving.progressed` is."""
        self._report = report
        self._watch = watch
        self.totals = totals  # of each phase, in bytes; of some sources they become known on the way
        self._done = dict.fromkeys(totals, 0)

    def add(self, phase: str, length: int) -> None:
        """Count bytes of a phase, if it is one that is shown; may be called from any thread."""
        if phase in self._done:
            self._done[phase] += length

    def complete(self, phase: str) -> None:
        """All of a phase is done."""
        self._done[phase] = self.totals[phase]()
        self.show()

    def show(self) -> None:
        """Report where every phase is."""
        for phase, total in self.totals.items():
            most = total()
            self._report.progress(phase, min(self._done[phase], most), most)
        self._watch(self._done.get(RESTORING, 0), self._done.get(VERIFYING, 0))


@contextmanager
def showing(progress: Progress) -> Iterator[None]:
    """While this context lasts, the progress is shown again and again."""

    async def show() -> None:
        while True:
            progress.show()
            await asyncio.sleep(_TICK)

    task = asyncio.create_task(show())
    try:
        yield
    finally:
        task.cancel()
