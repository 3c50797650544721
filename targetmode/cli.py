"""The `targetmode` command."""

from __future__ import annotations

import argparse
import json
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from targetmode.disks.streams import prepare_streams


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status: 0 done, 1 failed, 2 wrong usage."""
    prepare_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] in (["restore"], ["verify"]):
        from restore.cli import main as asr

        return asr(given, program="targetmode")
    options = _parser().parse_args(given)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except KeyboardInterrupt:
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="targetmode",
        description="Target disk mode over the network: offer this machine's disks, and put images on others'.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands)
    disks = commands.add_parser("disks", help="list this machine's disks and which may be offered", allow_abbrev=False)
    disks.add_argument("--json", action="store_true", help="one JSON object")
    disks.set_defaults(run=_disks)
    commands.add_parser("restore", help="put an image on a disk; the same as asr restore", add_help=False)
    commands.add_parser("verify", help="compare a disk with an image; the same as asr verify", add_help=False)
    return parser


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser(
        "serve",
        help="offer disks over the network",
        description="Offer disks, and the partitions on them, to NBD clients until Ctrl-C.",
        allow_abbrev=False,
    )
    serve.add_argument("disks", nargs="+", metavar="DISK", help="block device, or image file")
    serve.add_argument(
        "--listen",
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        help="address to listen on, may be repeated (default: loopback, port 10809)",
    )
    serve.add_argument("--socket", metavar="PATH", help="listen on a Unix socket")
    serve.add_argument(
        "--control", default="default", metavar="HOST:PORT|off", help="control API (default: port 10810 of --listen)"
    )
    serve.add_argument("--name", default=socket.gethostname(), help="what this machine calls itself")
    serve.add_argument("--read-only", action="store_true", help="let nobody write")
    serve.add_argument("--max-connections", type=int, default=64, metavar="N", help="most clients at once (64)")
    serve.add_argument("--once", action="store_true", help="end when the last client has gone")
    serve.add_argument("--insecure", action="store_true", help="allow addresses that other machines can reach")
    serve.add_argument("--engine", choices=("builtin", "nbdkit"), default="builtin", help="what speaks NBD (builtin)")
    serve.add_argument("--json", action="store_true", help="print events, one JSON object a line")
    serve.set_defaults(run=_serve, parser=serve)


def _serve(given: argparse.Namespace) -> int:
    from nbd.wire import DEFAULT_PORT
    from targetmode import api
    from targetmode.listening import parse_address
    from targetmode.serve import Options, serve

    try:
        listen = [parse_address(text, DEFAULT_PORT) for text in given.listen]
        control: tuple[str, int] | str | None = given.control
        if given.control == "off":
            control = None
        elif given.control != "default":
            control = parse_address(given.control, api.DEFAULT_PORT)
    except ValueError as error:
        given.parser.error(str(error))
    if not 0 < given.max_connections <= 4096:
        given.parser.error("--max-connections takes 1 to 4096")
    return serve(
        Options(
            disks=given.disks,
            listen=listen,
            socket=given.socket,
            control=control,
            name=given.name,
            read_only=given.read_only,
            max_connections=given.max_connections,
            once=given.once,
            insecure=given.insecure,
            nbdkit=given.engine == "nbdkit",
            json=given.json,
        )
    )


def _disks(given: argparse.Namespace) -> int:
    from targetmode.disks.inventory import list_disks
    from targetmode.disks.report import as_json, as_table

    disks = list_disks()
    print(json.dumps(as_json(disks), indent=2) if given.json else as_table(disks))
    return 0


if __name__ == "__main__":
    sys.exit(main())
