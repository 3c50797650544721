"""asr's lines with bars, for people who look on."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from restore.report.text import TextReport


class TerminalReport(TextReport):
    """The same, with bars that show rate and time left."""

    def __init__(self, out: TextIO = sys.stdout, errors: TextIO = sys.stderr) -> None:
        super().__init__(out, errors)
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}

    def progress(self, phase: str, done: int, total: int) -> None:
        if self._bars is None:
            self._end_line()
            self._bars = make_bars(self._out)
            self._bars.start()
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(phase, total=total)
        self._bars.update(self._tasks[phase], completed=done, total=total)

    def _end_line(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks = {}
        super()._end_line()

    def note(self, text: str) -> None:
        if self._bars is not None:
            self._bars.console.print(f"  {text}", markup=False, highlight=False)
        else:
            super().note(text)


def make_bars(out: TextIO) -> Any:
    """Bars with rate and time left, of rich's making; they are drawn once they are started."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    columns = (TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    return Progress(
        *columns, DownloadColumn(binary_units=True), Speed(), TimeRemainingColumn(), console=Console(file=out)
    )
