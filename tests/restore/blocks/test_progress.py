from __future__ import annotations

import io

from restore.blocks.progress import Progress
from restore.report import RESTORING
from restore.report.text import TextReport


def test_a_dot_before_which_something_was_missed_is_an_x() -> None:
    """Whenever more was missed than before; the count begins anew with another run of a server."""
    out = io.StringIO()
    counts = iter((0, 3, 3, 0, 1, 1))
    progress = Progress(TextReport(out, io.StringIO()), {RESTORING: lambda: 100}, missed=lambda: next(counts))
    for _ in range(6):
        progress.add(RESTORING, 2)
        progress.show()
    assert out.getvalue() == "  Restoring  .x..10x"
