"""The `asr` command, also reached as `targetmode restore` and `targetmode verify`."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

from restore.errors import RestoreError
from restore.grammar import parse
from restore.grammar.telling import tell
from restore.report import Report, answer, make_report
from targetmode.disks.streams import prepare_streams

INTERRUPTED: Final = "interrupted; nothing was touched"


def main(arguments: Sequence[str] | None = None, *, program: str = "asr") -> int:
    """Run the command; its exit status: 0 done, 1 failed, 2 wrong usage, 3 differences found."""
    prepare_streams()
    options = parse(sys.argv[1:] if arguments is None else arguments, program)
    if (text := tell(options, program)) is not None:
        return answer(text, program)
    report = make_report(as_json=options.json, puppetstrings=options.puppetstrings, timed=options.debug)
    try:
        import asyncio

        return asyncio.run(_run_until_interrupted(options, report))
    except Exception as error:
        from restore.failing import tell as tell_failure

        return tell_failure(error, report, debug=options.debug)
    except KeyboardInterrupt:
        report.failed(INTERRUPTED)
        return 1


async def _run_until_interrupted(options: argparse.Namespace, report: Report) -> int:
    """Run the command; SIGINT, SIGTERM or SIGHUP ends it, and the process, once the target is in a known state."""
    import asyncio

    task = asyncio.current_task()
    assert task is not None
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        if not interrupted:  # what is under way then is short, and must not be cut off by impatience
            interrupted = True
            task.cancel()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as it is under nohup(1)
        numbers.append(signal.SIGHUP)
    for number in numbers:
        asyncio.get_running_loop().add_signal_handler(number, interrupt)
    try:
        return await _run(options, report)
    except asyncio.CancelledError:
        message = INTERRUPTED
    except RestoreError as error:
        if not interrupted:
            raise
        message = str(error)
    report.failed(message)
    # A thread may still wait for a terminal or a server; it must not hold up the end.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(1)


async def _run(options: argparse.Namespace, report: Report) -> int:
    match options.command:
        case "restore" if options.file is not None:
            from restore.verbs.saving import save as verb
        case "restore" if options.erase:
            from restore.verbs.restoring import restore_blocks as verb
        case "restore":
            from restore.verbs.copying import copy as verb
        case "verify":
            from restore.verbs.restoring import verify_blocks as verb
        case "imagescan":
            from restore.verbs.preparing import scan as verb
        case "info":
            from restore.verbs.preparing import info as verb
        case "capture":
            from restore.verbs.preparing import capture as verb
        case "discover":
            from restore.verbs.discovering import tell_found as verb
        case "server":
            from restore.verbs.serving import serve as verb
        case other:
            raise AssertionError(other)
    return await verb(options, report)


if __name__ == "__main__":
    sys.exit(main())
