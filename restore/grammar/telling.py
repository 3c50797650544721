"""The verbs that only tell: help, version, completion, manual."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final

from restore import __version__
from restore.grammar import values
from restore.grammar.usage import Parser
from restore.grammar.verbs import OLD

SHELLS: Final = ("bash", "zsh", "fish")
PUPPETSTRINGS: Final = "puppetstrings"
STATUS: Final = "Exit status: 0 done, 1 failed, 2 wrong usage, 3 verification found differences."
EPILOG: Final = (
    "Old spellings are taken too: -source for --source; -source X -target Y, -imagescan IMAGE without a verb.\n\n"
    f"{STATUS}"
)
_FILES: Final = frozenset(
    {"SOURCE", "TARGET", "IMAGE", "DISK", "FILE", "PATH", "KEY", "ALLOWED_SIGNERS"}
)  # metavars of what a shell completes from the file system


def add_telling(parser: Parser) -> None:
    """Add them all."""
    topics = (*parser.verbs, "help", "version", "completion", "manual", PUPPETSTRINGS)
    about = parser.add_verb("help", "show this, or what there is to know of a topic", synopsis="[TOPIC]")
    about.add_argument(
        "topic", nargs="?", type=values.one_of(*topics), choices=topics, metavar="TOPIC",
        help=f"a verb, or {PUPPETSTRINGS}",
    )  # fmt: skip
    parser.add_verb("version", "show the version", synopsis="")
    add_completion(parser)
    add_manual(parser)


def add_completion(parser: Parser) -> None:
    """Add the verb that writes a shell's completions."""
    name = parser.prog
    verb = parser.add_verb(
        "completion",
        "write completions for a shell",
        synopsis="SHELL",
        description=f"Writes what has {name}'s verbs and options completed by a shell, to standard output.",
        examples=(
            ("have bash complete it", f"completion bash > ~/.local/share/bash-completion/completions/{name}"),
            ("have zsh do so, that directory being in fpath before compinit", f"completion zsh > ~/.zfunc/_{name}"),
            ("have fish do so", f"completion fish > ~/.config/fish/completions/{name}.fish"),
        ),
    )
    verb.add_argument(
        "shell", type=values.one_of(*SHELLS), choices=SHELLS, metavar="SHELL", help=f"one of {', '.join(SHELLS)}"
    )


def add_manual(parser: Parser) -> None:
    """Add the verb that writes the man page."""
    parser.add_verb(
        "manual",
        "write the man page",
        synopsis="",
        description="Writes the man page to standard output, as man(7) has it.",
        examples=(("read it", "manual | man -l -"),),
    )


def tell(options: argparse.Namespace, program: str = "asr") -> str | None:
    """What one of asr's telling verbs says, lines with their ends; None if the verb is another."""
    from restore.grammar import make_parser

    if options.command == "version":
        return f"asr {__version__}\n"
    if options.command not in ("help", "completion", "manual"):
        return None
    parser = make_parser(program)
    if options.command == "help":
        if options.topic == PUPPETSTRINGS:
            from restore.report.puppet import HELP

            return HELP
        return (parser.verbs[options.topic] if options.topic else parser).format_help()
    return tell_of(parser, options, _page)


def tell_of(parser: Parser, options: argparse.Namespace, page: Callable[[Parser], str]) -> str | None:
    """What `completion` or `manual` says of a program; None if the verb is another.

    Args:
        parser: the program's.
        options: what is asked for.
        page: makes the man page.
    """
    match options.command:
        case "completion":
            return completion(parser, options.shell)
        case "manual":
            return page(parser)
        case _:
            return None


def _page(parser: Parser) -> str:
    from restore.grammar.pages import asr_page

    return asr_page(parser)


def completion(parser: Parser, shell: str) -> str:
    """A shell's completions for a program: what its verbs and options are, and file names where files are named."""
    import shtab

    for verb in parser.verbs.values():
        verb.description = verb.brief
        for group in verb._action_groups:
            for action in group._group_actions:
                if group.title == OLD:
                    action.help = argparse.SUPPRESS
                elif action.metavar in _FILES:
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell)).rstrip("\n") + "\n"
