"""What admins and their scripts have typed since Mac OS X 10.2, as today's grammar; and what only a Mac has.

Documented in asr(8) of the systems up to macOS 10.15: one dash for two; `-source X -target Y` without a verb; the verbs
`-imagescan`, `-server CONFIG`, `-h`, `-v`; `imagescan --source IMAGE`; `-s` and `-t`. In scripts that are public one
also finds `-restore` and `-info` for verbs, and `--verbose` before the verb.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Final

HELP: Final = frozenset({"-h", "--help"})
_ONE_DASH: Final = re.compile(r"-[A-Za-z][A-Za-z0-9-]+")
_VERBS: Final = {"--restore": "restore", "--imagescan": "imagescan", "--info": "info", "--server": "server"}
_FIRST: Final = frozenset({"--verbose", "--debug", "--puppetstrings", "--json"})

_APFS: Final = "it is for APFS, which only a Mac restores volume by volume; here its container is copied as a whole"
_IOS: Final = "it is for the restore of an iPhone's system"

REFUSED_OPTIONS: Final = {
    "--useReplication": f"{_APFS}: leave it out",
    "--useInverter": f"{_APFS}: leave it out",
    "--toSnapshot": f"{_APFS}, snapshots and all: leave it out",
    "--fromSnapshot": f"{_APFS}: leave it out, and say --delta to send only what differs",
    "--sourcevolumename": f"{_APFS}: leave it out",
    "--sourcevolumeUUID": f"{_APFS}: leave it out",
    "--corestorageconvert": "it is for CoreStorage, which only a Mac has: restore without it, and encrypt afterwards",
    "--wrapper": "it is for Mac OS 9, and nothing here makes HFS volumes: leave it out",
    "--disableOwners": "owners are always copied here: leave it out",
    "--embed": f"{_IOS}: leave it out",
    "--chunkchecksum": f"{_IOS}: leave it out, imagescan has a checksum for every MiB",
}
"""What a Mac's asr takes and this one does not: why, and what to do instead."""

REFUSED_VERBS: Final = {
    "restoreexact": "it makes the target's partition as large as the source's, which a Mac does for HFS Plus only: "
    "say restore, and --grow for the last partition to fill its disk",
    "partition": "it lays out a Mac's disk: use sfdisk or sgdisk, or restore a whole disk with its partition table",
    "adjust": "it sets the type of a Mac's partition: use sfdisk --part-type, or sgdisk --typecode",
}
"""As `REFUSED_OPTIONS`."""


def modern(arguments: Sequence[str], verbs: Collection[str]) -> list[str]:
    """The same in today's grammar: the verb first, if there is one, and two dashes before what is longer than a letter.

    Args:
        arguments: what was typed.
        verbs: that there are.
    """
    words: list[str] = []
    for at, word in enumerate(arguments):
        if word == "--":
            words += arguments[at:]
            break
        words.append(modern_word(word))
    if not words or not words[0].startswith("-"):
        return words
    first = next((at for at, word in enumerate(words) if word not in _FIRST), len(words))
    if first < len(words) and words[first] in (*verbs, *REFUSED_VERBS):
        return [words[first], *words[:first], *words[first + 1 :]]
    if words in (["-v"], ["--version"]):  # among other words they would turn a restore into a success that did nothing
        return ["version"]
    for at, word in enumerate(words):
        if word == "--":
            break
        if word in HELP:
            return ["help"]
        name, equals, value = word.partition("=")
        if name in _VERBS:
            return [_VERBS[name], *words[:at], *([value] if equals else []), *words[at + 1 :]]
    if any(word.partition("=")[0] in ("-s", "--source", "-t", "--target") for word in words):
        return ["restore", *words]
    return words


def modern_word(word: str) -> str:
    """`--source` for `-source`; a single letter, a number or a value is left alone."""
    return f"-{word}" if _ONE_DASH.fullmatch(word.partition("=")[0]) else word


def refused_verb(verb: str) -> str | None:
    """Why a verb is refused by name; None if it is not."""
    return f"{verb}: {REFUSED_VERBS[verb]}" if verb in REFUSED_VERBS else None


def refused_option(word: str) -> str | None:
    """Why an option is refused by name; None if it is not."""
    wanted = word.partition("=")[0].lower()
    for name, reason in REFUSED_OPTIONS.items():
        if name.lower() == wanted:
            return f"{name}: {reason}"
    return None
