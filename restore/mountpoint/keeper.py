"""A process that mounts a volume again when the one that had it unmounted is done with it, however that ends.

It holds the device open, so that a loop device which clears itself stays. On standard input come its plans as a line of
JSON, then one word: `again` mounts as it was, `changed` does so for what is on the device then, `leave` does not. The
end of the input is `again`, which is what is left of a process that was killed. It answers with a line of JSON:
what went wrong.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final, Literal

from restore import tools
from restore.errors import RestoreError
from restore.mountpoint.again import Plan, mount_again

_PATIENCE: Final = 10.0  # seconds until whoever had the device has to have closed it


class Keeper:
    """That process, seen from the one that unmounts."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        """Start it.

        Raises:
            RestoreError: it does not start.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", "restore.mountpoint.keeper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**tools.environment(), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        try:
            self._say(json.dumps([asdict(plan) for plan in plans]))
            if self._out.readline() != b"ready\n":
                raise RestoreError("the process that mounts a volume again does not start")
        except OSError as error:
            raise RestoreError(f"the process that mounts a volume again does not start: {error.strerror}") from None

    def end(self, word: Literal["again", "changed", "leave"]) -> list[str]:
        """Have it do that, and end; a line for each failure."""
        try:
            self._say(word)
            self._in.close()
            answer = self._out.read()
            self._process.wait()
        except OSError:
            answer = b""
        self._out.close()
        try:
            return [str(line) for line in json.loads(answer)]
        except ValueError:
            return [] if word == "leave" else ["the process that mounts a volume again has ended before that"]

    def _say(self, line: str) -> None:
        self._in.write(line.encode() + b"\n")
        self._in.flush()


def main() -> int:
    """The process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    plans = [Plan(**{**plan, "daemon": tuple(plan["daemon"])}) for plan in json.loads(sys.stdin.readline() or "[]")]
    held = {os.open(plan.device, os.O_RDONLY | os.O_CLOEXEC) for plan in plans[:1]}
    _answer("ready")
    word = sys.stdin.readline().strip()
    failures: list[str] = []
    if word != "leave":
        deadline = time.monotonic() + _PATIENCE
        while failures := mount_again(plans, changed=word == "changed"):
            # Without a word we were left behind: the other process may not have closed the device yet.
            if time.monotonic() > deadline or word:
                break
            time.sleep(0.1)
    for fd in held:
        os.close(fd)
    _answer(json.dumps(failures))
    return 0


def _answer(line: str) -> None:
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except OSError:
        os._exit(0)  # nobody listens, and all is done


if __name__ == "__main__":
    sys.exit(main())
