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
from restore.report import Report, make_report
from targetmode.disks.streams import prepare_streams

if TYPE_CHECKING:
    from restore.source import Source
    from restore.target import Target

INTERRUPTED: Final = "interrupted; nothing was touched"
_LEGACY = re.compile(r"-[A-Za-z][A-Za-z0-9-]+")  # asr(8) takes -source for --source
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def main(arguments: Sequence[str] | None = None, *, program: str = "asr") -> int:
    """Run the command; its exit status: 0 done, 1 failed, 2 wrong usage, 3 differences found."""
    prepare_streams()
    given = [_modern(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    parser = _parser(program)
    options = parser.parse_args(given)
    if options.command == "help":
        print(parser.format_help())
        return 0
    if options.command == "version":
        from importlib.metadata import version

        print(f"asr {version('targetmode')}")
        return 0
    if options.command == "restore" and not options.erase:
        parser.error(
            "restore without --erase, a file copy, is not there yet; --erase replaces all that is on the target"
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


def _modern(word: str) -> str:
    """`--source` for `-source`; a single letter, a number or a value is left alone."""
    return f"-{word}" if _LEGACY.fullmatch(word.partition("=")[0]) else word


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Apple Software Restore's way of putting disk images on disks, here and on other machines.",
        epilog="Exit status: 0 done, 1 failed, 2 wrong usage, 3 verification found differences.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="VERB")
    restore = commands.add_parser("restore", help="put an image on a disk", allow_abbrev=False)
    _add_places(restore, several=True)
    restore.add_argument("--erase", action="store_true", help="erase the target and copy every block")
    restore.add_argument("--noprompt", action="store_true", help="do not ask before erasing")
    restore.add_argument("--noverify", action="store_true", help="do not compare the target with the source")
    restore.add_argument(
        "--delta", action="store_true", help="send only what the target does not have; also to go on after a cut"
    )
    restore.add_argument(
        "--max-rate", type=_rate, metavar="BYTES", help="most bytes per second, such as 100M (M is 1,048,576)"
    )
    _add_common(restore)
    verify = commands.add_parser("verify", help="compare a disk with an image", allow_abbrev=False)
    _add_places(verify)
    _add_common(verify)
    commands.add_parser("help", help="show this")
    commands.add_parser("version", help="show the version")
    return parser


def _add_places(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    parser.add_argument("--source", required=True, metavar="IMAGE", help="raw image file, or block device")
    text = "nbd://HOST/EXPORT, a block device, or an image file"
    if several:
        parser.add_argument(
            "--target", required=True, action="append", metavar="TARGET", help=f"{text}; again for more of them"
        )
    else:
        parser.add_argument("--target", required=True, metavar="TARGET", help=text)


def _add_common(parser: argparse.ArgumentParser) -> None:
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print one JSON object a line")
    how.add_argument("--puppetstrings", action="store_true", help="print lines for another program to read")
    parser.add_argument(
        "--connections", type=_count, metavar="N", help="NBD connections, where the server allows it (what suits it)"
    )
    parser.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="N", help="give up after N seconds without movement (60)"
    )


def _checked(kind: str, low: float, high: float, convert: Callable[[str], float]) -> Callable[[str], float]:
    def check(text: str) -> float:
        try:
            value = convert(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {kind} from {low:g} to {high:g}")
        return value

    return check


_count = _checked("a number", 1, 64, int)
_seconds = _checked("a number of seconds", 0.1, 86400, float)


def _rate(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([KMGT]?)", text.upper().removesuffix("B").removesuffix("I"))
    value = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes per second, such as 100M")
    return value


if __name__ == "__main__":
    sys.exit(main())
