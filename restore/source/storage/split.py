"""Files that `split` has made of one: `image.aa`, `image.ab` and so on."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

from restore.errors import Refused
from restore.source.storage import Storage
from restore.source.storage.file import LocalFile, SplitFile

_SUFFIX: Final = re.compile(r"\.([a-z]{2,6})")


def is_first_part(path: Path) -> bool:
    """Whether a file is named as `split` names the first of several, `.aa` or with more letters."""
    return len(path.suffix) > 2 and set(path.suffix[1:]) == {"a"}


def open_parts(first: Path) -> Storage:
    """All that `split` has made, by the name of its first file.

    Raises:
        Refused: one is missing, or too short; or as `LocalFile`.
    """
    stem, letters = first.name[: -len(first.suffix)], len(first.suffix) - 1
    names = (path.name for path in first.parent.iterdir())
    found = [name for name in names if name[: len(stem)] == stem and _is_suffix(name[len(stem) :], letters)]
    return open_all(first.parent, stem, [name[len(stem) + 1 :] for name in found])


def open_all(directory: Path, stem: str, suffixes: Collection[str]) -> Storage:
    """The files of that stem with these suffixes; the file of that name itself if there are none. Raises as above."""
    if not suffixes:
        return LocalFile(str(directory / stem))
    ordered = sorted(suffixes)
    for number, suffix in enumerate(ordered):
        if suffix != (expected := _suffix(number, len(ordered[0]))):
            raise Refused(f"{directory / stem}.{expected} is missing: the image was split, and goes on after it")
    paths = [directory / f"{stem}.{suffix}" for suffix in ordered]
    whole = paths[0].stat().st_size
    for path in paths[1:]:
        size = path.stat().st_size
        if size > whole or (size < whole and path != paths[-1]):
            raise Refused(f"{path} has {size} bytes, {paths[0].name} {whole}: a part of the image is not whole")
    return SplitFile([str(path) for path in paths])


def _is_suffix(text: str, letters: int) -> bool:
    match = _SUFFIX.fullmatch(text)
    return match is not None and len(match[1]) == letters


def _suffix(number: int, letters: int) -> str:
    """What `split` appends to the name of a part, counted from 0."""
    text = ""
    for _ in range(letters):
        number, letter = divmod(number, 26)
        text = chr(ord("a") + letter) + text
    return text
