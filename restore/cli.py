"""The `asr` command, also reached as `targetmode restore` and `targetmode verify`."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

from restore.errors import Differences, RestoreError, say
from restore.grammar import parse
from restore.grammar.telling import tell
from restore.report import Report, make_report, put
from targetmode.disks.streams import prepare_streams

INTERRUPTED: Final = "interrupted; nothing was touched"


def main(arguments: Sequence[str] | None = None, *, program: str = "asr") -> int:
    """Run the command; its exit status: 0 done, 1 failed, 2 wrong usage, 3 differences found."""
    prepare_streams()
    options = parse(sys.argv[1:] if arguments is None else arguments, program)
    if (text := tell(options, program)) is not None:
        put(sys.stdout, text)
        return 0
    report = make_report(as_json=options.json, puppetstrings=getattr(options, "puppetstrings", False))
    try:
        import asyncio

        return asyncio.run(_run_until_interrupted(options, report))
    except Differences as error:
        report.failed(str(error), error.ranges)
        return error.status
    except RestoreError as error:
        report.failed(str(error))
        return error.status
    except OSError as error:
        report.failed(f"{error.filename}: {say(error)}" if error.filename else say(error))
        return 1
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
    match options.command:
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
        case other:
            raise AssertionError(other)
    return await verb(options, report)


<<<<<<< HEAD
=======
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
    for flag in (
        "--all-blocks",
        "--allow-backing",
        "--allow-bad",
        "--grow",
        "--new-ids",
        "--keep-table",
        "--keep-unmapped",
    ):
        restore.add_argument(flag, action="store_true")
    restore.add_argument("--SHA256", dest="sha256", action="store_true")
    for flag in ("--hostname", "--verify-signature", "--format"):
        restore.add_argument(flag)
    for flag in ("--source-partition", "--target-partition"):
        restore.add_argument(flag, type=int)
    scan = commands.add_parser("imagescan", allow_abbrev=False)
    info = commands.add_parser("info", allow_abbrev=False)
    capture = commands.add_parser("capture", allow_abbrev=False)
    for each in (scan, info):
        each.add_argument("image")
    for each in (scan, info, capture):
        each.add_argument("--json", action="store_true")
        each.add_argument("--format")
    info.add_argument("--plist", action="store_true")
    info.add_argument("--verify-signature")
    scan.add_argument("--sign")
    scan.add_argument("--minimize")
    capture.add_argument("--sign")
    capture.add_argument("--source")
    capture.add_argument("--target")
    capture.add_argument("--compress", default="none")
    capture.add_argument("--overwrite", action="store_true")
    capture.add_argument("--retries", type=int, default=3)
    _add_common(restore)
    verify = commands.add_parser("verify", help="compare a disk with an image", allow_abbrev=False)
    _add_places(verify)
    verify.add_argument("--keep-table", action="store_true")
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


>>>>>>> prepared
if __name__ == "__main__":
    sys.exit(main())
