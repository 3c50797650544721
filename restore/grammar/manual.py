"""A man page (man(7)), built from parsers: what help says and what the page says cannot differ."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from restore.grammar.usage import Parser

_ESCAPES: Final = {"\\": "\\e", "-": "\\-", "'": "\\(aq", '"': "\\(dq", "^": "\\(ha", "~": "\\(ti"}


@dataclass(frozen=True, slots=True)
class Page:
    """What a page has besides what its parser says.

    Text is plain: an empty line begins a paragraph, lines that begin with a space stay as they are, and `these` are
    names.

    Attributes:
        name: of the program.
        does: what it is, in a few words.
        description: what it does.
        brief: verbs that only get a line, since another page describes them, and which page that is.
        sections: (title, text) between the verbs and the end.
        examples: (what it does, command line).
        files: (name, what it is).
        see_also: pages, such as `rsync(1)`.
    """

    name: str
    does: str
    description: str
    brief: tuple[Sequence[str], str] = ((), "")
    sections: Sequence[tuple[str, str]] = ()
    examples: Sequence[tuple[str, str]] = ()
    files: Sequence[tuple[str, str]] = ()
    see_also: Sequence[str] = ()


def man_page(page: Page, parser: Parser, status: str) -> str:
    """The page as man(7), pure ASCII; in section 8.

    Args:
        page: its own words.
        parser: the program's, with its verbs.
        status: what the exit status means.
    """
    return "\n".join(_lines(page, parser, status)) + "\n"


def _lines(page: Page, parser: Parser, status: str) -> Iterator[str]:
    own = {name: verb for name, verb in parser.verbs.items() if name not in page.brief[0]}
    yield f".\\\" Made by {page.name} manual, from the program's own parser: not to be edited."
    yield f'.TH {page.name.upper()} 8 "" "targetmode" "System Administration"'
    yield ".SH NAME"
    yield f"{page.name} \\- {_text(page.does)}"
    yield ".SH SYNOPSIS"
    for number, verb in enumerate(parser.verbs.values()):
        if number:
            yield ".br"
        yield _synopsis(verb.usage or "")
    yield ".SH DESCRIPTION"
    yield from _paragraphs(page.description)
    yield ".SH VERBS"
    for name, verb in own.items():
        yield f".SS {_text(name)}"
        yield from _paragraphs(verb.description or "")
        yield from _options(verb)
    if page.brief[0]:
        yield f".SS {_text(', '.join(page.brief[0]))}"
        yield _inline(f"As in {page.brief[1]}.")
    for title, text in page.sections:
        yield f".SH {_text(title.upper())}"
        yield from _paragraphs(text)
    yield ".SH EXIT STATUS"
    yield from _paragraphs(status)
    if page.files:
        yield ".SH FILES"
        for name, text in page.files:
            yield from _tagged(f"\\fI{_text(name)}\\fR", text)
    examples = [
        *page.examples,
        *((what, f"{parser.prog} {line}") for verb in own.values() for what, line in verb.examples),
    ]
    if examples:
        yield ".SH EXAMPLES"
    for what, line in examples:
        yield ".PP"
        yield _inline(f"{what[0].upper()}{what[1:]}:")
        yield from _verbatim(line.replace("\n", "\n  ").splitlines())
    if page.see_also:
        yield ".SH SEE ALSO"
        names = [re.fullmatch(r"(.+)(\(.+\))", name) for name in page.see_also]
        yield ", ".join(f"\\fB{_text(name[1])}\\fR{name[2]}" for name in names if name)


def _synopsis(usage: str) -> str:
    """A usage line: what is typed as it is in bold, what is filled in in italics."""
    words = []
    for word in usage.split():
        before, bare, after = re.fullmatch(r"(\[?)(.*?)(\]?)", word).groups()  # type: ignore[union-attr]
        font = "R" if bare == "|" else "I" if bare.isupper() or bare == "options" else "B"
        words.append(f"{before}\\f{font}{_text(bare)}\\fR{after}")
    return " ".join(words)


def _options(verb: Parser) -> Iterator[str]:
    for group in verb._action_groups:
        actions = [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        if not actions:
            continue
        if group.title not in ("options", "positional arguments"):
            yield ".PP"
            yield f"\\fI{_text((group.title or '').capitalize())}\\fR"
        for action in actions:
            yield from _tagged(_names(action), _help(verb, action))


def _names(action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if not action.option_strings:
        return f"\\fI{_text(value)}\\fR"
    names = ", ".join(f"\\fB{_text(name)}\\fR" for name in action.option_strings)
    return names if action.nargs == 0 else f"{names} \\fI{_text(value)}\\fR"


def _help(verb: Parser, action: argparse.Action) -> str:
    facts = {name: value for name, value in vars(action).items() if name != "container"}
    if action.choices is not None:
        facts["choices"] = ", ".join(map(str, action.choices))
    text = (action.help or "") % {**facts, "prog": verb.prog}
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _tagged(tag: str, text: str) -> Iterator[str]:
    yield ".TP"
    yield tag
    yield _inline(text)


def _paragraphs(text: str) -> Iterator[str]:
    for part in text.strip("\n").split("\n\n"):
        if part.startswith(" "):
            yield from _verbatim(part.splitlines())
        else:
            yield ".PP"
            yield _inline(" ".join(part.split()))


def _verbatim(lines: Sequence[str]) -> Iterator[str]:
    yield ".PP"
    yield ".nf"
    yield ".RS 4"
    for line in lines:
        yield _text(line)
    yield ".RE"
    yield ".fi"


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"\\fB\1\\fR", _text(text))


def _text(text: str) -> str:
    """Text that groff prints as it is, wherever in a line it stands."""
    safe = "".join(_ESCAPES.get(character, character) for character in text)
    return f"\\&{safe}" if safe.startswith(".") else safe
