"""Standard streams that no disk can take the place of."""

from __future__ import annotations

import io
import os
import sys


def prepare_streams() -> None:
    """Have somewhere to print, without fail; to be called before anything else is opened.

    Where a program is started with a standard stream closed, the next file that it opens gets that stream's number: a
    disk would be written what is meant for people, by a child process at the latest.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process lasts
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be anything
