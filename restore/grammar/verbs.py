"""The verbs of asr and their options."""

from __future__ import annotations

import argparse
from typing import Any, Final

from restore.grammar import values
from restore.grammar.usage import Once, Parser

SHARED: Final = ("restore", "verify", "imagescan", "info", "capture", "server", "discover")
"""The verbs that `targetmode` has too."""

OLD: Final = "accepted for old scripts, without effect"
"""The title of a verb's group of such options."""

_SOURCE: Final = (
    "image file, or the directory of a Clonezilla image; block device, or where one is mounted; nbd://HOST/EXPORT; "
    "or an http, https, smb, s3 or sftp URL; asr://HOST for a multicast stream, asr: for "
    "the only one there is. What it is, is told by its content"
)
_TARGET: Final = "block device, or where one is mounted; image file; or nbd://HOST/EXPORT"
_COMPARED: Final = "block device that is not mounted; image file; or nbd://HOST/EXPORT"
_IMAGE: Final = "what --source of restore may be"
_WITHOUT_SAYING: Final[dict[str, Any]] = {
    "json": False,
    "puppetstrings": False,
    "verbose": False,
    "debug": False,
    "format": None,
    "allow_backing": False,
    "all_blocks": False,
    "keep_unmapped": False,
    "verify_signature": None,
    "connections": None,
    "timeout": None,
    "interface": None,
    "multicast_only": False,
}
_PATIENCE: Final = 60.0  # seconds without movement after which a server is given up
_ONLY_WITH_ERASE: Final = {
    "delta": "--delta",
    "all_blocks": "--all-blocks",
    "keep_unmapped": "--keep-unmapped",
    "keep_table": "--keep-table",
    "grow": "--grow",
    "new_ids": "--new-ids",
    "hostname": "--hostname",
}

_ONLY_STREAMED: Final = {"interface": "--interface", "multicast_only": "--multicast-only"}


def add_verbs(parser: Parser) -> None:
    """Add the verbs that do something."""
    for add in (_restore, _verify, _imagescan, _info, _capture, _server, _discover):
        verb = add(parser)
        have = {action.dest for action in verb._actions}
        verb.set_defaults(**{name: value for name, value in _WITHOUT_SAYING.items() if name not in have})


def check(options: argparse.Namespace, verb: Parser) -> None:
    """See what options say together; `imagescan` and `info` get their image, wherever it stood.

    Raises:
        SystemExit: wrong usage.
    """
    name = options.command
    if name in ("imagescan", "info"):
        named = options.__dict__.pop("source")
        if options.image is not None and named is not None:
            verb.error(f"two images are named, {options.image} and {named}: say one")
        options.image = options.image if named is None else named
        if options.image is None:
            verb.error("IMAGE is missing")
    source = options.image if name in ("imagescan", "info") else getattr(options, "source", None)
    streamed = source is not None and source.lower().startswith("asr:")
    if streamed and name != "restore":
        verb.error(f"{source}: a multicast stream can only be restored")
    if "timeout" in options:
        options.stream_timeout = options.timeout or 0.0
        options.timeout = options.timeout or _PATIENCE
    if name == "restore":
        _check_restore(options, verb, streamed=streamed)
    if name == "server":
        word = options.__dict__.pop("config_word")
        if word is not None and options.config is not None:
            verb.error(f"two configurations are named, {options.config} and {word}: say one")
        options.config = options.config if word is None else word


def _check_restore(options: argparse.Namespace, verb: Parser, *, streamed: bool) -> None:
    if options.file is not None:
        _check_file(options, verb, streamed=streamed)
        return
    if not options.target:
        verb.error("--target TARGET is missing")
    for dest, option in _ONLY_STREAMED.items():
        if getattr(options, dest) and not streamed:
            verb.error(f"{option} is for a multicast stream, --source asr://HOST: leave it out")
    if streamed and not options.erase:
        verb.error(f"{options.source}: a multicast stream is restored by blocks: say --erase if that is meant")
    for partition, which in ((options.source_partition, "--source-partition"),
                             (options.target_partition, "--target-partition")):  # fmt: skip
        if partition is not None and options.erase:
            verb.error(f"{which} is for a file copy, and with --erase all is copied: leave one of them out")
    for dest, option in _ONLY_WITH_ERASE.items():
        if getattr(options, dest) and not options.erase:
            verb.error(
                f"{option} is for a block copy, which replaces all that is on the target: "
                "say --erase if that is meant, or leave it out"
            )
    if options.grow and options.keep_table:
        verb.error("--grow needs the partition table that --keep-table leaves alone: leave one of them out")


def _check_file(options: argparse.Namespace, verb: Parser, *, streamed: bool) -> None:
    if not streamed:
        verb.error("--file is for a multicast stream, --source asr://HOST: other images are files, or asr capture's")
    if options.target:
        verb.error("--file saves the stream, --target restores it: leave one of them out")
    for dest, option in (*_ONLY_WITH_ERASE.items(), ("source_partition", "--source-partition"),
                         ("target_partition", "--target-partition")):  # fmt: skip
        if getattr(options, dest):
            verb.error(f"{option} is for what is restored onto a target, and --file saves all as it is: leave it out")


def _restore(parser: Parser) -> Parser:
    verb = parser.add_verb(
        "restore",
        "put an image on a disk",
        synopsis="--source SOURCE --target TARGET [--erase] [options]",
        description=(
            "Puts what is on the source on the target, and then compares the two.\n\n"
            "With --erase it copies blocks: all that is on the target is replaced. A source that is a disk goes onto a "
            "disk, with its partition table; a volume goes onto a partition, which only has to hold the volume's "
            "contents. Without --erase it copies files, as rsync does: what is on the source replaces its namesakes, "
            "whatever the dates, and everything else on the target stays.\n\n"
            "Nothing is written before source, target and sizes have been checked. The first MiB is written last: a "
            "target looks bootable only when all of it is right. If it fails before, what is left is a valid, empty "
            "disk. The disk that this system runs from is refused, always."
        ),
        examples=(
            ("put a compressed image on a whole disk", "restore --source master.img.zst --target /dev/sdb --erase"),
            ("put a web server's image on three machines in target mode, reading it once",
             "restore --source https://server/lab.dmg --erase --noprompt \\\n"
             "  --target nbd://10.0.0.11/sda --target nbd://10.0.0.12/sda \\\n  --target nbd://10.0.0.13/sda"),
            ("go on after a cut, or bring a disk up to date: only what differs is sent",
             "restore --source lab.qcow2 --target nbd://10.0.0.11/sda --erase --delta"),
            ("save what is streamed, to serve it on from here", "restore --source asr://10.0.0.5 --file lab.img"),
            ("copy files into a volume whose other files stay", "restore --source tools.img --target /mnt/data"),
        ),
    )  # fmt: skip
    what = verb.add_argument_group("what to restore")
    what.add_argument("-s", "--source", required=True, action=Once, metavar="SOURCE", help=_SOURCE)
    what.add_argument(
        "-t", "--target", action="append", metavar="TARGET", help=f"{_TARGET}. Again for more of them, side by side"
    )
    what.add_argument(
        "--file",
        metavar="PATH",
        help="instead of a target: save a multicast stream as this image, its scan as PATH.bmap",
    )
    _add_source_options(what)
    what.add_argument(
        "--source-partition", type=values.partition, metavar="N",
        help="for a file copy: this partition of the source, where it has several with files",
    )  # fmt: skip
    what.add_argument(
        "--target-partition", type=values.partition, metavar="N", help="for a file copy: this partition of the target"
    )
    how = verb.add_argument_group("how")
    how.add_argument("--erase", action="store_true", help="replace all that is on the target: a block copy")
    how.add_argument("--noprompt", action="store_true", help="do not ask before erasing; needed without a terminal")
    how.add_argument(
        "--noverify", "--nocheck", action="store_true", help="do not compare the target with the source afterwards"
    )
    how.add_argument(
        "--delta", action="store_true",
        help="compare first, and send only what the target does not have; a restore that was cut goes on like this",
    )  # fmt: skip
    how.add_argument(
        "--keep-unmapped", action="store_true",
        help="leave the target as it is where the scan has nothing (not in the first MiB); else zeroes are written",
    )  # fmt: skip
    how.add_argument(
        "--SHA256", dest="sha256", action="store_true",
        help="insist on the SHA-256 checksums of a scan; an image without one is refused",
    )  # fmt: skip
    _add_signature(how)
    how.add_argument(
        "--allow-bad", action="store_true",
        help="take an image with sectors that could not be read when it was captured; they become zeroes",
    )  # fmt: skip
    how.add_argument(
        "--max-rate", type=values.rate, metavar="BYTES", help="most bytes per second, such as 100M (M is 1,048,576)"
    )
    _add_connection(how)
    how.add_argument(
        "--interface", metavar="IF", help="where a multicast stream arrives, by name or address (towards its server)"
    )
    how.add_argument(
        "--multicast-only", action="store_true", help="fetch nothing by unicast, also where the stream does not arrive"
    )
    after = verb.add_argument_group("after the blocks are there")
    after.add_argument(
        "--keep-table", action="store_true",
        help="leave the partition table as it is, even that of an image which is cut short; otherwise a backup GPT is "
        "moved to a larger disk's end",
    )  # fmt: skip
    after.add_argument(
        "--grow", action="store_true",
        help="have the last partition fill the disk, and its file system fill the partition: ext, xfs, btrfs, ntfs",
    )  # fmt: skip
    after.add_argument(
        "--new-ids", action="store_true",
        help="new identifiers for the disk, its partitions and file systems; fstab, crypttab and grub follow",
    )  # fmt: skip
    after.add_argument(
        "--hostname", type=values.host_name, metavar="NAME", help="name the installed system; new machine-id"
    )
    _add_output(verb)
    _add_old(verb)
    return verb


def _verify(parser: Parser) -> Parser:
    verb = parser.add_verb(
        "verify",
        "compare a disk with an image",
        synopsis="--source SOURCE --target TARGET [options]",
        description=(
            "Compares the target with the source, block by block, and writes nothing. A target in target mode hashes "
            "its own disk: only digests cross the network. Status 3, and the ranges, if they differ."
        ),
        examples=(("see whether a disk is still what it was restored from", "verify --source lab.img --target nbd://10.0.0.11/sda"),),
    )  # fmt: skip
    what = verb.add_argument_group("what to compare")
    what.add_argument("-s", "--source", required=True, action=Once, metavar="SOURCE", help=_SOURCE)
    what.add_argument("-t", "--target", required=True, action=Once, metavar="TARGET", help=_COMPARED)
    _add_source_options(what)
    how = verb.add_argument_group("how")
    how.add_argument(
        "--keep-unmapped", action="store_true",
        help="do not look where the scan or a hole says that nothing is; otherwise zeroes have to be there",
    )  # fmt: skip
    how.add_argument(
        "--keep-table", action="store_true",
        help="the backup GPT is where the image has it, as after a restore with the same; otherwise at the disk's end",
    )  # fmt: skip
    _add_signature(how)
    _add_connection(how)
    _add_output(verb)
    return verb


def _server(parser: Parser) -> Parser:
    verb = parser.add_verb(
        "server",
        "stream an image to a room, by multicast",
        synopsis="--source IMAGE [--config PLIST] [options]",
        description=(
            "Sends an image to a multicast group, which any number of machines restore at once with asr restore "
            "--source asr://THIS-HOST. The stream starts with the first of them, and goes on with what the clients "
            "that are there still lack: whoever comes late gets first what comes next, and then the rest. Nobody "
            "waits for anybody. It ends when it is interrupted, or with --once when everyone is done.\n\n"
            "A configuration is a property list with asr's keys: Data Rate, Multicast Address, Client Data Rate, DNS "
            "Service Discovery, Loop Suspend, Multicast TTL, Port. What an option says goes before it."
        ),
        examples=(
            ("stream an image at no more than 100 MiB per second", "server --source lab.img --data-rate 100M"),
            ("have 30 machines start together", "server --source lab.img --start-when 30 --start-wait 600 --once"),
        ),
    )
    what = verb.add_argument_group("what to stream")
    what.add_argument("-s", "--source", required=True, action=Once, metavar="IMAGE", help=_IMAGE)
    what.add_argument("config_word", nargs="?", metavar="PLIST", help="the same as --config, as asr had it")
    _add_source_options(what)
    how = verb.add_argument_group("how")
    how.add_argument("--config", action=Once, metavar="PLIST", help="a configuration as asr has it, XML or binary")
    how.add_argument("--interface", metavar="IF", help="network interface, by name or address (what the routes say)")
    how.add_argument(
        "--data-rate", type=values.rate, metavar="BYTES",
        help="most bytes per second, such as 100M (90 %% of the interface's speed)",
    )  # fmt: skip
    how.add_argument(
        "--client-data-rate", type=values.rate, metavar="BYTES",
        help="bytes per second of the slowest clients that the others wait for (1M)",
    )  # fmt: skip
    how.add_argument("--address", type=values.group, metavar="GROUP", help="multicast group (one of 239.192.0.0/14)")
    how.add_argument("--port", type=values.port, metavar="N", help="port of control (TCP) and stream (UDP) (7800)")
    how.add_argument("--ttl", type=values.ttl, metavar="N", help="routers that the stream may pass (3)")
    how.add_argument(
        "--loop-suspend", type=values.loops, metavar="N",
        help="with --carousel, stop after so many loops without a client, until one comes; 0 is never (0)",
    )  # fmt: skip
    how.add_argument(
        "--carousel", action="store_true", help="send all of it round and round, for clients that say nothing"
    )
    how.add_argument(
        "--fec", type=values.parity, default=0.0, metavar="N%%",
        help="send so many repair segments along with each chunk, at least (as many as 0.5 to 20 %% loss asks for)",
    )  # fmt: skip
    how.add_argument(
        "--start-when", type=values.clients, default=1, metavar="N", help="start when N clients are there (1)"
    )
    how.add_argument(
        "--start-wait", type=values.seconds, metavar="S", help="start S seconds after the first client all the same"
    )
    how.add_argument("--once", action="store_true", help="end when every client is done")
    how.add_argument("--no-discovery", action="store_true", help="do not announce it by DNS-SD")
    _add_connection(how)
    output = verb.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON object a line")
    _add_talk(output)
    return verb


def _discover(parser: Parser) -> Parser:
    verb = parser.add_verb(
        "discover",
        "list the multicast servers of this network",
        synopsis="[options]",
        description="Lists what announces itself by DNS-SD: the source to name, the image, its size, the machine.",
        examples=(("see what is streamed here", "discover"),),
    )
    how = verb.add_argument_group("how")
    how.add_argument("--interface", metavar="IF", help="look by this one only, by name or address (all of them)")
    how.add_argument(
        "--seconds", type=values.seconds, default=2.0, metavar="N", help="how long to wait for answers (2)"
    )
    output = verb.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON object a line")
    _add_talk(output)
    return verb


def _imagescan(parser: Parser) -> Parser:
    verb = parser.add_verb(
        "imagescan",
        "prepare an image: checksums, and a map of what is used",
        synopsis="IMAGE [options]",
        description=(
            "Reads an image once and writes IMAGE.bmap beside it: which blocks are used, and a SHA-256 and a BLAKE3 of "
            "every MiB. The image itself is not touched. A restore of an image so prepared reads only what is used, "
            "checks all that it reads, and can say whether source, transfer or medium was wrong. bmaptool reads the "
            "file too. After the image has changed, scan it again: an old scan is refused."
        ),
        examples=(
            ("prepare an image and sign that", "imagescan lab.img --sign ~/.ssh/id_ed25519"),
            ("write a copy too that is no longer than its contents", "imagescan lab.img --minimize lab-small.img"),
        ),
    )
    what = verb.add_argument_group("what to prepare")
    _add_image(what, "image file of this machine")
    _add_source_options(what)
    how = verb.add_argument_group("how")
    _add_sign(how)
    how.add_argument("--minimize", metavar="PATH", help="also write a copy that is shrunk to its contents, there")
    _add_output(verb)
    old = _add_old(verb)
    old.add_argument("--nostream", action="store_true", help="an image needs no reordering here")
    old.add_argument("--SHA256", dest="sha256", action="store_true", help="it is always computed")
    old.add_argument("--filechecksum", action="store_true", help="a file copy is verified against the source's files")
    return verb


def _info(parser: Parser) -> Parser:
    verb = parser.add_verb(
        "info",
        "say what an image is",
        synopsis="IMAGE [--plist | --json] [options]",
        description=(
            "Says what there is to say of an image without reading all of it: format, sizes, partitions, file systems, "
            "scan, signature, bad sectors."
        ),
        examples=(("see what an image is", "info lab.dmg"), ("have a script see it", "info lab.dmg --json")),
    )
    what = verb.add_argument_group("what to look at")
    _add_image(what, _IMAGE)
    _add_format(what)
    _add_signature(what)
    output = verb.add_argument_group("output")
    which = output.add_mutually_exclusive_group()
    which.add_argument("--plist", action="store_true", help="an XML property list")
    which.add_argument("--json", action="store_true", help="one JSON object")
    _add_talk(output)
    return verb


def _capture(parser: Parser) -> Parser:
    verb = parser.add_verb(
        "capture",
        "make a prepared image of a disk",
        synopsis="--source DISK --target FILE [options]",
        description=(
            "The other way: makes an image of a disk, with its scan, in one reading. Only what the file systems use is "
            "read. Sectors that cannot be read are tried again, then become zeroes and are recorded in FILE.map, as "
            "ddrescue has it; a restore refuses such an image without --allow-bad."
        ),
        examples=(
            ("capture another machine's disk, compressed and signed",
             "capture --source nbd://10.0.0.11/sda --target lab.img.zst \\\n"
             "  --compress zstd --sign ~/.ssh/id_ed25519"),
        ),
    )  # fmt: skip
    what = verb.add_argument_group("what to capture")
    what.add_argument(
        "-s", "--source", required=True, action=Once, metavar="DISK",
        help="disk or partition, or where one is mounted; or nbd://HOST/EXPORT",
    )  # fmt: skip
    what.add_argument("-t", "--target", required=True, action=Once, metavar="FILE", help="the image to be made")
    what.add_argument("--all-blocks", action="store_true", help="read all, also what the file systems do not use")
    how = verb.add_argument_group("how")
    how.add_argument(
        "--compress", type=values.one_of("none", "zstd"), choices=("none", "zstd"), default="none", metavar="HOW",
        help="how to store it: zstd, which can still be read at random; or none, a raw image with holes (none)",
    )  # fmt: skip
    how.add_argument("--overwrite", action="store_true", help="replace an image that is there already")
    how.add_argument(
        "--retries", type=values.retries, default=3, metavar="N", help="try a bad sector again so often (3)"
    )
    _add_sign(how)
    _add_connection(how)
    _add_output(verb)
    old = verb.add_argument_group(OLD)
    old.add_argument("--noprompt", action="store_true", help="nothing is asked")
    return verb


def _add_image(group: argparse._ArgumentGroup, what: str) -> None:
    group.add_argument("image", nargs="?", metavar="IMAGE", help=what)
    group.add_argument("-s", "--source", action=Once, metavar="IMAGE", help="the same, as asr has it")


def _add_source_options(group: argparse._ArgumentGroup) -> None:
    _add_format(group)
    group.add_argument(
        "--all-blocks", action="store_true", help="take also the blocks that its file systems do not use"
    )


def _add_format(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--format", type=values.image_format, choices=values.Formats(), metavar="FORMAT",
        help="what the image is, if its content is not to be asked: %(choices)s",
    )  # fmt: skip
    group.add_argument(
        "--allow-backing", action="store_true", help="let an image name other files that hold a part of it"
    )


def _add_signature(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--verify-signature", metavar="ALLOWED_SIGNERS",
        help="refuse an image whose scan is not signed by one of these, in a file as ssh-keygen(1) has it",
    )  # fmt: skip


def _add_sign(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--sign", metavar="KEY", help="sign the scan with this SSH key: IMAGE.bmap.sshsig")


def _add_connection(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--connections", type=values.count, metavar="N", help="connections to a server (what suits it)")
    group.add_argument(
        "--timeout", type=values.seconds, metavar="N",
        help="give a server up after N seconds without movement (60; a multicast stream never)",
    )  # fmt: skip


def _add_output(verb: Parser) -> None:
    output = verb.add_argument_group("output")
    which = output.add_mutually_exclusive_group()
    which.add_argument("--json", action="store_true", help="print one JSON object a line")
    which.add_argument(
        "--puppetstrings", action="store_true", help="print lines for another program: see asr help puppetstrings"
    )
    _add_talk(output)


def _add_talk(output: argparse._ArgumentGroup) -> None:
    output.add_argument(
        "--verbose", action="store_true", help="say also what was found and chosen: format, sizes, scan, connections"
    )
    output.add_argument(
        "--debug", action="store_true",
        help="say also how long each phase took and, should the program itself fail, where: for a bug report",
    )  # fmt: skip


def _add_old(verb: Parser) -> argparse._ArgumentGroup:
    old = verb.add_argument_group(OLD)
    old.add_argument("--buffers", type=values.buffers, metavar="N", help="memory is used as the copy needs it")
    old.add_argument("--buffersize", type=values.size, metavar="BYTES", help="likewise")
    old.add_argument("--csumbuffers", type=values.buffers, metavar="N", help="likewise")
    old.add_argument("--csumbuffersize", type=values.size, metavar="BYTES", help="likewise")
    old.add_argument("--allowfragmentedcatalog", action="store_true", help="a block copy does not mind")
    old.add_argument("--blockonly", action="store_true", help="an image needs no second scan for files")
    old.add_argument("--rebuild", action="store_true", help="the desktop database was Mac OS 9's")
    return old
