"""How a command that failed says so: one line, whatever it was, and no traceback that nobody asked for."""

from __future__ import annotations

import sys
import traceback

from restore.errors import Differences, RestoreError, say
from restore.report import Report, put
from restore.report.shown import without_secrets


def tell(error: Exception, report: Report, *, debug: bool) -> int:
    """Tell the report.

    Args:
        error: what ended the command; anything that is neither expected nor the system's is a bug.
        report: is told.
        debug: of a bug, print also where it was.

    Returns:
        The exit status.
    """
    match error:
        case Differences():
            report.failed(str(error), error.ranges)
            return error.status
        case RestoreError():
            report.failed(str(error))
            return error.status
        case OSError():
            report.failed(f"{error.filename}: {say(error)}" if error.filename else say(error))
            return RestoreError.status
    if debug:
        put(sys.stderr, without_secrets("".join(traceback.format_exception(error))))
    words = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")
    what = "report it with the lines above" if debug else "run the same command with --debug, and report what it prints"
    report.failed(f"this is a bug in asr ({words}); {what}")
    return RestoreError.status
