"""What asr's man page says besides what its parser knows."""

from __future__ import annotations

from typing import Final

from restore.grammar.manual import Page, man_page
from restore.grammar.spellings import REFUSED_OPTIONS, REFUSED_VERBS
from restore.grammar.usage import Parser

STATUS: Final = """\
`0`: it is done, and verified unless that was left out.

`1`: it failed. One line says why, and what to do: on standard error, with `--json` or `--puppetstrings` on standard
output. What says that nothing was touched has touched
nothing; of a target that was written to, a valid and empty disk is left.

`2`: wrong usage. Nothing was touched.

`3`: verification found differences; the ranges are named.

With several targets it is the worst of theirs, and a line for each says how it ended."""

_SPELLINGS: Final = """\
An option of more than a letter may have one dash or two. What was typed for Mac OS X is taken as it was:

  asr -source SOURCE -target TARGET [options]
  asr -imagescan [options] IMAGE
  asr imagescan --source IMAGE
  asr info --source IMAGE
  asr -server PLIST -source IMAGE
  asr -h
  asr -v"""

_OUTPUT: Final = """\
Phases are printed as they begin and end, with asr's dots for progress, or a bar on a terminal. What a script reads is
`--json` or `--puppetstrings`; both go to standard output, failures included. Wrong usage is
told on standard error, whatever is asked for."""


def asr_page(parser: Parser) -> str:
    """asr(8)."""
    from restore.report.puppet import HELP

    first, _, rest = HELP.partition("\n\n")
    lines, _, last = rest.partition("\n\n")
    names = [*((verb, reason) for verb, reason in REFUSED_VERBS.items()), *REFUSED_OPTIONS.items()]
    page = Page(
        name="asr",
        does="put disk images on disks, here and on other machines",
        description=(
            "`asr` copies an image, a disk or a volume onto a disk, a partition or an image file, and proves that "
            "every block arrived. Source and target may be on this machine, or exported by another one in target mode; "
            "a source may also be a URL, or the stream that `asr server` sends to a whole room. It also prepares "
            "images, says what they are, and makes them of disks. It has the grammar, and prints the lines, of Apple "
            "Software Restore.\n\n"
            "It needs root for block devices and for mounting, and for nothing else."
        ),
        sections=(
            ("Old spellings", _SPELLINGS),
            (
                "What only a Mac has, or is not there yet",
                "These are refused by name.\n\n" + "\n\n".join(f"`{name}`: {reason}." for name, reason in names),
            ),
            ("Output", _OUTPUT),
            ("Puppetstrings", "\n\n".join((first, lines, last))),
        ),
        files=(
            ("IMAGE.bmap", "What `imagescan` and `capture` write beside an image: used blocks and checksums, in "
             "bmaptool's format 2.0. Found by its name."),
            ("IMAGE.bmap.sshsig", "Its signature, made by `ssh-keygen -Y sign` in the namespace `bmap`."),
            ("IMAGE.map", "The sectors that could not be read when the image was captured, as a ddrescue map."),
        ),
        see_also=("targetmode(8)", "bmaptool(1)", "ddrescue(1)", "nbdinfo(1)", "rsync(1)", "ssh-keygen(1)"),
    )  # fmt: skip
    return man_page(page, parser, STATUS)
