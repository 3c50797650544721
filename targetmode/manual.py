"""What targetmode's man page says besides what its parser knows."""

from __future__ import annotations

from restore.grammar.manual import Page, man_page
from restore.grammar.usage import Parser
from restore.grammar.verbs import SHARED

_STATUS = """\
`0`: it ended as it was asked to; after `serve` every disk that was offered is safe to disconnect.

`1`: it failed, or a disk may not be offered. One line on standard error says why.

`2`: wrong usage."""

_CONTROL = """\
Beside NBD there is HTTP, on port 10810 of the same addresses. It gives digests of what is on a disk, read past all
caches, so that a restore is verified without sending the disk back; status, metrics, and events as they happen. Clients
learn the port in the NBD handshake."""


def targetmode_page(parser: Parser) -> str:
    """targetmode(8)."""
    page = Page(
        name="targetmode",
        does="offer this machine's disks over the network, as target disk mode does",
        description=(
            "`targetmode serve` makes a machine's disks, and the partitions on them, exports of a Network Block Device "
            "server. Any NBD client can use them; asr(8) restores images onto them, and verifies what it wrote on the "
            "disk's own side. Start the machine from a stick or the network, so that nothing on its disks is in "
            "use.\n\n"
            "There is no TLS yet: whoever reaches the port can read and write. So it listens on loopback only, unless "
            "`--insecure` is said."
        ),
        brief=(SHARED, "asr(8)"),
        sections=(("Control API", _CONTROL),),
        see_also=("asr(8)", "nbd-client(8)", "nbdinfo(1)", "nbdcopy(1)", "nbdkit(1)"),
    )
    return man_page(page, parser, _STATUS)
