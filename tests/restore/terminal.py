"""A program on a terminal: what it shows, and what is typed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.serving import ROOT

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """The one who sits before it."""

    def __init__(self, process: subprocess.Popen[bytes], fd: int) -> None:
        self.process = process
        self._fd = fd
        self._shown = b""

    @property
    def shown(self) -> str:
        """All that has been shown so far, without the cursor's movements."""
        return _ESCAPES.sub("", self._shown.decode(errors="replace")).replace("\r\n", "\n").replace("\r", "\n")

    @property
    def raw(self) -> str:
        """All that has been shown so far, as it came."""
        return self._shown.decode(errors="replace")

    def wait_for(self, text: str, seconds: float = 15) -> None:
        """Until a text has been shown."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < deadline, f"no {text!r} in {self.shown!r}"
            assert self._receive(deadline), f"it ended without {text!r}: {self.shown!r}"

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._fd, keys.encode())

    def end(self, seconds: float = 15) -> int:
        """Its exit status, once it has ended by itself."""
        deadline = time.monotonic() + seconds
        while self._receive(deadline):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def _receive(self, deadline: float) -> bool:
        """Take what is shown next; False at the end, or when the time is up."""
        ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
        data = b""
        if ready:
            with contextlib.suppress(OSError):  # EIO: nobody has the other side open any more
                data = os.read(self._fd, 65536)
        self._shown += data
        return bool(data)


@contextmanager
def on_terminal(*command: str | Path, columns: int = 120, stdin: Sequence[int] = ()) -> Iterator[Terminal]:
    """Run a command with a terminal of its own, which is also its controlling one: Ctrl-C there reaches it."""
    near, far = pty.openpty()
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *(str(word) for word in command)],
        stdin=far,
        stdout=far,
        stderr=far,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        | {"TERM": "xterm", "LC_ALL": "C.UTF-8"},
    )
    os.close(far)
    try:
        yield Terminal(process, near)
    finally:
        os.close(near)  # hangs up
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
