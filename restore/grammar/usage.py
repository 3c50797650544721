"""The parser of a command line that has verbs: wrong usage is one line that says what is wrong and what to do."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, NoReturn

from restore.report import answer
from restore.report.shown import shown

_REQUIRED: Final = re.compile(r"the following arguments are required: (.+)")
_NO_VALUE: Final = re.compile(r"argument (\S+): expected (?:one|at least one) argument")
_EXCLUSIVE: Final = re.compile(r"argument (\S+): not allowed with argument (\S+)")
_UNWANTED_VALUE: Final = re.compile(r"argument (\S+): ignored explicit argument (.+)")


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help with wider room for the names of options, and descriptions as they were written."""

    def __init__(self, prog: str, **how: Any) -> None:
        super().__init__(prog, max_help_position=30, **how)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled = super(argparse.RawDescriptionHelpFormatter, self)._fill_text
        parts = text.split("\n\n")
        return "\n\n".join(part if part.startswith(" ") else filled(part, width, indent) for part in parts)


class Parser(argparse.ArgumentParser):
    """A program's parser, or one verb's.

    Attributes:
        verbs: the parsers of its verbs, by name, in the order in which help has them.
        brief: of a verb, what it does in a few words.
        examples: of a verb, (what it does, command line without the program's name).
    """

    def __init__(
        self,
        *,
        brief: str = "",
        hint: str = "",
        program: str = "",
        examples: Sequence[tuple[str, str]] = (),
        **how: Any,
    ) -> None:
        super().__init__(allow_abbrev=False, formatter_class=Formatter, **how)
        self.verbs: dict[str, Parser] = {}
        self.brief = brief
        self.examples = examples
        self._program = program or self.prog
        self._hint = hint or (f"{self.prog} help" if self.prog == "asr" else f"{self.prog} --help")
        self._commands: Any = None
        self._own_name = ""
        self._siblings: dict[str, Parser] = {}

    def add_verbs(self, metavar: str) -> None:
        """Make it one that has verbs."""
        self._commands = self.add_subparsers(dest="command", required=True, metavar=metavar, title="verbs")

    def add_verb(
        self,
        name: str,
        text: str,
        *,
        synopsis: str = "[options]",
        description: str = "",
        examples: Sequence[tuple[str, str]] = (),
    ) -> Parser:
        """Add a verb.

        Args:
            name: it.
            text: what it does, in a few words.
            synopsis: what follows it.
            description: paragraphs.
            examples: (what it does, command line without the program's name).
        """
        shown = "\n".join(f"  # {what}\n  {self.prog} " + line.replace("\n", "\n    ") for what, line in examples)
        verb: Parser = self._commands.add_parser(
            name,
            help=text,
            brief=text,
            description=description or f"{text[0].upper()}{text[1:]}.",
            usage=f"{self.prog} {name} {synopsis}".rstrip(),
            epilog=f"Examples:\n\n{shown}" if examples else None,
            prog=f"{self.prog} {name}",
            hint=f"asr help {name}" if self.prog == "asr" else f"{self.prog} {name} --help",
            program=self.prog,
            examples=examples,
        )
        verb.set_defaults(command=name)
        verb._own_name, verb._siblings = name, self.verbs
        self.verbs[name] = verb
        return verb

    def parse(self, words: Sequence[str], typed: Sequence[str]) -> argparse.Namespace:
        """Parse a verb's words; an option that it does not have is told first, whatever else is wrong.

        Args:
            words: without the verb.
            typed: as they were typed, to say it back in the same spelling.
        """
        known = self._option_string_actions
        for word in words:
            if word == "--":
                break
            name = word.partition("=")[0]
            if not word.startswith("-") or word == "-" or " " in word or re.fullmatch(r"-[0-9.]+", word):
                continue  # argparse takes it for a value
            if name not in known and (word.startswith("--") or word[:2] not in known):
                others = [verb for verb, parser in self._siblings.items() if name in parser._option_string_actions]
                if others:
                    self.error(f"{_as_typed(name, typed)} goes with {' and '.join(others)}, not with {self._own_name}")
                self.error(self.unknown("option", _as_typed(name, typed), known))
        options, rest = self.parse_known_args(words)
        if rest:
            self.error(f"{_shown(rest[0])} is one word too many")
        return options

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """What argparse makes of an option's words or an operand's; none of them may be empty."""
        if "" in arg_strings:
            name = max(action.option_strings, key=len, default="")
            value = action.metavar or action.dest.upper()
            self.error(f"{name} needs a value, not an empty one: {name} {value}" if name else f"{value} is empty")
        return super()._get_values(action, arg_strings)

    def unknown(self, kind: str, word: str, names: Iterable[str]) -> str:
        """The line for a name that is none, with the nearest that is."""
        import difflib

        folded = {name.lower(): name for name in names}
        wanted = word.lower() if kind != "option" else f"--{word.lower().lstrip('-')}"
        near = difflib.get_close_matches(wanted, folded, 1, 0.6)
        meant = f"; did you mean {folded[near[0]]}?" if near else ""
        return f"there is no {kind} {_shown(word)}{meant}"

    def print_help(self, file: Any = None) -> None:
        """Print it on standard output; end with status 1 where that fails."""
        if status := answer(self.format_help(), self._program):
            self.exit(status)

    def error(self, message: str) -> NoReturn:
        """End with status 2 and one line."""
        line = " ".join(self._plain(shown(message)).split())
        self.exit(2, f"{self._program}: {line} (see: {self._hint})\n")

    def _plain(self, message: str) -> str:
        """What argparse says, in this program's words."""
        if match := _REQUIRED.fullmatch(message):
            missing = [self._with_value(name) for name in match[1].split(", ")]
            return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        if match := _NO_VALUE.fullmatch(message):
            return f"{_last(match[1])} needs a value: {self._with_value(match[1])}"
        if match := _EXCLUSIVE.fullmatch(message):
            return f"{_last(match[2])} and {_last(match[1])} exclude each other"
        if match := _UNWANTED_VALUE.fullmatch(message):
            return f"{_last(match[1])} takes no value, but was given {match[2]}"
        if message.startswith("argument "):
            name, _, rest = message.removeprefix("argument ").partition(": ")
            return f"{_last(name)}: {rest}"
        return message

    def _with_value(self, name: str) -> str:
        action = self._option_string_actions.get(_last(name))
        if action is None or action.nargs == 0:
            return _last(name)
        return f"{_last(name)} {action.metavar or action.dest.upper()}"


class Once(argparse.Action):
    """An option that may be given once; a second time contradicts the first."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        """Keep the value."""
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{self.option_strings[-1]} is given twice")
        setattr(namespace, self.dest, values)


def _last(names: str) -> str:
    """Of `-s/--source` the long one."""
    return next((name for name in names.split("/") if name.startswith("--")), names)


def _as_typed(name: str, typed: Sequence[str]) -> str:
    words = [word.partition("=")[0] for word in typed]
    return name if name in words or name[1:] not in words else name[1:]


def _shown(word: str) -> str:
    return word if word.isprintable() and word and " " not in word else repr(word)
