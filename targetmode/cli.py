"""The `targetmode` command."""

from __future__ import annotations

import argparse
import json
import socket
import sys
from collections.abc import Callable, Sequence

from restore.grammar import spellings, values
from restore.grammar.telling import add_completion, add_manual, tell_of
from restore.grammar.usage import Parser
from restore.grammar.verbs import SHARED, add_verbs
from restore.report import answer
from targetmode.disks.streams import prepare_streams


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status: 0 done, 1 failed, 2 wrong usage."""
    prepare_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in (*SHARED, *spellings.REFUSED_VERBS):
        from restore.cli import main as asr

        return asr(given, program="targetmode")
    parser = make_parser()
    options = _parse(parser, given)
    if (text := tell_of(parser, options, _page)) is not None:
        return answer(text, "targetmode")
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except KeyboardInterrupt:
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def _parse(parser: Parser, given: Sequence[str]) -> argparse.Namespace:
    words = [spellings.modern_word(word) for word in given]
    if not words:
        parser.error(f"a verb is missing: {', '.join(parser.verbs)}")
    if words[0] in spellings.HELP:
        parser.print_help()
        raise SystemExit(0)
    if words[0] not in parser.verbs:
        parser.error(parser.unknown("option" if words[0].startswith("-") else "verb", given[0], parser.verbs))
    return parser.verbs[words[0]].parse(words[1:], given)


def _page(parser: Parser) -> str:
    from targetmode.manual import targetmode_page

    return targetmode_page(parser)


def make_parser() -> Parser:
    """The parser of the whole command line, asr's verbs included."""
    parser = Parser(
        prog="targetmode",
        description="Target disk mode over the network: offer this machine's disks, and put images on others'.",
    )
    parser.add_verbs("VERB")
    _add_serve(parser)
    disks = parser.add_verb("disks", "list this machine's disks and which may be offered", synopsis="[--json]")
    disks.add_argument("--json", action="store_true", help="print one JSON object")
    disks.set_defaults(run=_disks)
    add_verbs(parser)
    add_completion(parser)
    add_manual(parser)
    return parser


def _add_serve(parser: Parser) -> None:
    serve = parser.add_verb(
        "serve",
        "offer disks over the network",
        synopsis="DISK... [options]",
        description=(
            "Offers disks, and the partitions on them, to NBD clients until Ctrl-C. A disk that is in use in any way "
            "is refused before a byte of it is read: mounted, swap, part of LVM, RAID or LUKS, behind a loop device, "
            "open elsewhere."
        ),
        examples=(
            ("try it on this machine alone", "serve disk.img"),
            ("offer a disk to the machines of a network that is trusted, since there is no TLS yet",
             "serve /dev/sda --listen 10.0.0.11 --insecure"),
        ),
    )  # fmt: skip
    what = serve.add_argument_group("what to offer")
    what.add_argument("disks", nargs="+", metavar="DISK", help="block device, or image file")
    what.add_argument("--read-only", action="store_true", help="let nobody write")
    what.add_argument("--name", default=socket.gethostname(), metavar="NAME", help="what this machine calls itself")
    where = serve.add_argument_group("to whom")
    where.add_argument(
        "--listen",
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        help="address to listen on; again for more of them (loopback, port 10809)",
    )
    where.add_argument("--socket", metavar="PATH", help="listen on a Unix socket")
    where.add_argument(
        "--control", default="default", metavar="HOST:PORT|off", help="the control API (port 10810 of --listen)"
    )
    where.add_argument("--insecure", action="store_true", help="allow addresses that other machines can reach")
    where.add_argument(
        "--max-connections",
        type=values.number("a number", 1, 4096),
        default=64,
        metavar="N",
        help="most clients at once (64)",
    )
    how = serve.add_argument_group("how")
    how.add_argument("--once", action="store_true", help="end when the last client has gone")
    how.add_argument(
        "--engine",
        type=values.one_of("builtin", "nbdkit"),
        choices=("builtin", "nbdkit"),
        default="builtin",
        metavar="ENGINE",
        help="what speaks NBD: builtin, or nbdkit (builtin)",
    )
    how.add_argument("--json", action="store_true", help="print events, one JSON object a line")
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
