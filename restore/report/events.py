"""One JSON object a line: `phase`, `progress`, `note`, `error`, `done`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any, Final, TextIO

from restore.report import put

_INTERVAL: Final = 0.25  # seconds between two progress events of one phase


class JSONReport:
    """One object a line: `phase`, `progress`, `note`, `error`, `done`."""

    def __init__(self, out: TextIO = sys.stdout, target: str | None = None) -> None:
        self._out = out
        self._always = {} if target is None else {"target": target}
        self._phase = ""
        self._last: dict[str, tuple[float, int]] = {}

    def begin(self, phase: str) -> None:
        self._phase = phase
        self._event("phase", phase=phase, state="begin")

    def done(self) -> None:
        self._event("phase", phase=self._phase, state="done")

    def progress(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        last, before = self._last.get(phase, (0.0, -1))
        if done != before and (now - last >= _INTERVAL or done >= total):
            self._last[phase] = (now, done)
            percent = 100.0 if total == 0 else round(done * 100 / total, 1)
            self._event("progress", phase=phase, bytes=done, total=total, percent=percent)

    def missed(self) -> None:
        pass

    def note(self, text: str) -> None:
        self._event("note", message=text)

    def failed(self, message: str, ranges: Sequence[tuple[int, int]] = ()) -> None:
        self._event("error", message=message, ranges=[list(pair) for pair in ranges])

    def finished(self, summary: str, **facts: Any) -> None:
        self._event("done", message=summary, **facts)

    def _event(self, event: str, **values: Any) -> None:
        put(self._out, json.dumps({"event": event, **self._always, **values}) + "\n")
