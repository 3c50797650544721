"""The `asr` command, also reached as `targetmode restore` and `targetmode verify`."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from restore.errors import Differences, Refused, RestoreError
from restore.grammar import parse, usage_error
from restore.grammar.telling import tell
from restore.report import Report, make_report, put
from targetmode.disks.streams import prepare_streams

if TYPE_CHECKING:
    from restore.source import Source
    from restore.target import Target

INTERRUPTED: Final = "interrupted; nothing was touched"


def main(arguments: Sequence[str] | None = None, *, program: str = "asr") -> int:
    """Run the command; its exit status: 0 done, 1 failed, 2 wrong usage, 3 differences found."""
    prepare_streams()
    options = parse(sys.argv[1:] if arguments is None else arguments, program)
    if (text := tell(options, program)) is not None:
        put(sys.stdout, text)
        return 0
    if options.command not in ("restore", "verify"):
        usage_error(options, f"{options.command} is not there yet")
    if options.command == "restore" and not options.erase:
        usage_error(
            options,
            "restore without --erase, a file copy, is not there yet; --erase replaces all that is on the target",
        )
    report = make_report(as_json=options.json, puppetstrings=options.puppetstrings)
    try:
        import asyncio

        return asyncio.run(_run_until_interrupted(options, report))
    except Differences as error:
        report.failed(str(error), error.ranges)
        return error.status
    except RestoreError as error:
        report.failed(str(error))
        return error.status
    except KeyboardInterrupt:
        report.failed(INTERRUPTED)
        return 1


async def _run_until_interrupted(options: argparse.Namespace, report: Report) -> int:
    """Run the command; SIGINT and SIGTERM end it, and the process with it, once the target is in a known state."""
    import asyncio

    task = asyncio.current_task()
    assert task is not None
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        if not interrupted:  # what is under way then is short, and must not be cut off by impatience
            interrupted = True
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
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
    from restore.job import Settings, restore, verify

    def open_source() -> Source:
        from restore.source import SourceSettings
        from restore.source.detect import open_image

        return open_image(options.source, SourceSettings(notify=report.note)).source

    if options.command == "verify":
        await verify(lambda: _open_target(options.target, options, report, read_only=True), open_source, report)
        return 0
    confirm = None if options.noprompt else _confirm
    asking = sys.stdin and sys.stdin.isatty() and not options.json and not options.puppetstrings
    if confirm is not None and not asking:
        raise Refused("standard input is not a terminal to ask before erasing; say --noprompt if that is meant")
    settings = Settings(verify=not options.noverify, delta=options.delta, max_rate=options.max_rate, confirm=confirm)
    if len(options.target) == 1:
        (target,) = options.target
        await restore(lambda: _open_target(target, options, report), open_source, settings, report)
        return 0
    from restore.fanout import restore_all
    from restore.report.members import make_members

    if len(set(options.target)) < len(options.target):
        raise Refused("the same target is named twice")

    def opener(target: str) -> Callable[[Report], Target]:
        return lambda report: _open_target(target, options, report)

    members = make_members(as_json=options.json, puppetstrings=options.puppetstrings)
    return await restore_all([(target, opener(target)) for target in options.target], open_source, settings, members)


def _open_target(target: str, options: argparse.Namespace, report: Report, *, read_only: bool = False) -> Target:
    if target.startswith(("nbd:", "nbds:", "nbd+", "nbds+")):
        from nbd.errors import URIError
        from nbd.uri import NBDURI
        from restore.target.remote import RemoteTarget

        try:
            uri = NBDURI.parse(target)
        except URIError as error:
            raise Refused(str(error)) from None
        return RemoteTarget(
            uri,
            connections=options.connections,
            timeout=options.timeout,
            notify=report.note,
            read_only=read_only,
        )
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", target):
        raise Refused(f"{target} is no target; it may be nbd://HOST/EXPORT, a block device, or an image file")
    from restore.target.local import LocalTarget

    return LocalTarget(target, read_only=read_only)


def _confirm(question: str) -> bool:
    """Ask on the terminal; asr's own form of the question."""
    try:
        return input(f"  {question} [ny]: ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


if __name__ == "__main__":
    sys.exit(main())
