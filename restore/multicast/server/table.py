"""The table of a room on a terminal, live, with lines that scroll above it."""

from __future__ import annotations

from typing import Any, Final, TextIO

from restore.multicast.server.view import COLUMNS, Row, State, View, cells
from restore.report import put

_WIDE: Final = {"Targets": 120, "Address": 100, "Loss": 72, "Verified": 64, "Written": 56}  # columns of a terminal
_LEAST: Final = {"Client": 12, "Targets": 12, "State": 10, "Rate": 10, "Left": 5}  # so that they do not move about
_AROUND: Final = 5  # lines of a table that are not a client: two above it, its head, "and N more", the cursor
_STYLES: Final = {State.SILENT: "red", State.FAILED: "red", State.DONE: "green", State.WAITING: "dim"}


class Lines:
    """Whole lines, for a log."""

    live: Final = False

    def __init__(self, out: TextIO) -> None:
        """Print to a file."""
        self._out = out

    def line(self, text: str) -> None:
        """Print a line."""
        put(self._out, f"{text}\n")

    def show(self, view: View) -> None:
        """Nothing: a table is for a terminal."""

    def close(self) -> None:
        """Nothing was begun."""


class Table:
    """Lines, and below them the table, as long as it is shown."""

    live: Final = True

    def __init__(self, out: TextIO) -> None:
        """Draw on a terminal, from the first `show` on until `close`."""
        from rich.console import Console
        from rich.live import Live

        self._out = out
        self._console = Console(file=out)
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._gone = False

    def line(self, text: str) -> None:
        """Print a line above the table."""
        self._try(lambda: self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True))

    def show(self, view: View) -> None:
        """Draw the table as it is now."""

        def draw() -> None:
            self._live.start()
            self._live.update(table(view, *self._console.size), refresh=True)

        self._try(draw)

    def close(self) -> None:
        """Have the lines stay only, and the terminal as it was."""
        self._try(self._live.stop)

    def _try(self, draw: Any) -> None:
        """A server does not end because nobody looks any more."""
        if self._gone:
            return
        try:
            draw()
        except OSError:
            self._gone = True
            put(self._out, "")


def table(view: View, width: int, height: int) -> Any:
    """What fits on a terminal, of rich's making; where it is too small, who needs attention."""
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    lines = [
        Text(text, no_wrap=True, overflow="ellipsis", style="bold")
        for text in (f"{view.image}: {view.stream}", view.summary)
    ]
    most = height - _AROUND
    if not view.rows or most < 1:
        return Group(*lines[: max(height - 1, 1)])
    shown = [at for at, title in enumerate(COLUMNS) if width >= _WIDE.get(title, 0)]
    space = 2 if width >= _WIDE["Address"] else 1
    found = RichTable(box=None, pad_edge=False, padding=(0, space, 0, 0), width=width, header_style="dim")
    for title in (COLUMNS[at] for at in shown):
        left = title in ("Client", "Address", "Targets", "State")
        found.add_column(
            title, no_wrap=True, overflow="ellipsis", justify="left" if left else "right",
            ratio=1 if title in ("Client", "Targets") else None, min_width=_LEAST.get(title),
        )  # fmt: skip
    rows = view.pressing(most)
    for row in rows:
        values = cells(row)
        found.add_row(*(Text(values[at]) for at in shown), style=_style(row))
    more = len(view.rows) - len(rows)
    return Group(*lines, found, *([Text(f"and {more} more", style="dim")] if more else []))


def _style(row: Row) -> str:
    return "yellow" if row.straggler and row.state is not State.SILENT else _STYLES.get(row.state, "")
