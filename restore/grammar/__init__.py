"""The command line of `asr`, which `targetmode` has too: from words to a namespace, or to one line that says why not.

    spellings.py   what admins and their scripts type: both dashes, forms without a verb, what only a Mac has
    verbs.py       every verb with its options; values.py is what their values may be
    usage.py       the parser: wrong usage is one line, and names what may have been meant
    telling.py     the verbs that only tell: help, version, completion, manual
    manual.py      a man page, built from parsers; pages.py is asr's

Nothing here is heavy to import: `asr --help` has to be there at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from restore.grammar import spellings
from restore.grammar.usage import Parser
from restore.grammar.verbs import add_verbs, check


def make_parser(program: str = "asr") -> Parser:
    """The parser of the whole command line, a sub-parser for each verb."""
    from restore.grammar.telling import EPILOG, add_telling

    parser = Parser(
        prog=program,
        description="Apple Software Restore's way of putting disk images on disks, here and on other machines.",
        epilog=EPILOG,
    )
    parser.add_verbs("VERB")
    add_verbs(parser)
    add_telling(parser)
    return parser


def parse(arguments: Sequence[str], program: str = "asr") -> argparse.Namespace:
    """What is asked for.

    Args:
        arguments: the words after the program's name, in any spelling that asr takes.
        program: what the command calls itself: `asr`, or `targetmode` when that was asked to restore.

    Returns:
        `command` is the verb; the rest is as `verbs.py` has it. Attributes that only some verbs set by an option, such
        as `connections`, are there for all of them, with the value that goes without saying.

    Raises:
        SystemExit: 2 after one line on standard error, for wrong usage; 0 after help.
    """
    parser = make_parser(program)
    words = spellings.modern(arguments, parser.verbs)
    if not words:
        parser.error(f"a verb is missing: {', '.join(parser.verbs)}")
    verb, *rest = words
    if verb.startswith("-"):
        parser.error(f"a verb is missing before {verb}")
    if reason := spellings.refused_verb(verb):
        parser.error(reason)
    if verb not in parser.verbs:
        parser.error(parser.unknown("verb", verb, parser.verbs))
    chosen = parser.verbs[verb]
    if not spellings.HELP.intersection(rest):
        for word in rest[: rest.index("--")] if "--" in rest else rest:
            if reason := spellings.refused_option(word):
                chosen.error(reason)
    options = chosen.parse(rest, arguments)
    check(options, chosen)
    return options
