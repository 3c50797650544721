"""What admins have typed for twenty years, as today's grammar; and what only a Mac has, refused by name."""

from __future__ import annotations

import pytest

from restore.grammar import make_parser, parse, spellings

VERBS = tuple(make_parser().verbs)


@pytest.mark.parametrize(
    ("word", "modern"),
    [
        ("-source", "--source"),
        ("--source", "--source"),
        ("-noprompt", "--noprompt"),
        ("-source=x.img", "--source=x.img"),
        ("-max-rate", "--max-rate"),
        ("-SHA256", "--SHA256"),
        ("-h", "-h"),
        ("-5", "-5"),
        ("-", "-"),
        ("--", "--"),
        ("x-y", "x-y"),
        ("/dev/-sda", "/dev/-sda"),
        ("-sx.img", "-sx.img"),
        ("restore", "restore"),
    ],
)
def test_one_dash_for_two(word: str, modern: str) -> None:
    assert spellings.modern_word(word) == modern


@pytest.mark.parametrize(
    ("typed", "modern"),
    [
        ("restore -source x -target y -erase", "restore --source x --target y --erase"),
        ("-source x -target y -erase", "restore --source x --target y --erase"),
        ("--source x --target y --erase", "restore --source x --target y --erase"),
        ("-s x -t y -erase", "restore -s x -t y --erase"),
        ("-erase -source=x -target y", "restore --erase --source=x --target y"),
        ("-restore -source x -target y", "restore --source x --target y"),
        ("-imagescan x.dmg", "imagescan x.dmg"),
        ("-imagescan -nostream x.dmg", "imagescan --nostream x.dmg"),
        ("-verbose -imagescan x.dmg", "imagescan --verbose x.dmg"),
        ("-imagescan=x.dmg", "imagescan x.dmg"),
        ("imagescan --verbose --source x.dmg", "imagescan --verbose --source x.dmg"),
        ("-info x.dmg -plist", "info x.dmg --plist"),
        ("--verbose --debug restore --source x", "restore --verbose --debug --source x"),
        ("-source restore -target info", "restore --source restore --target info"),
        ("-source x -server c.plist", "server --source x c.plist"),
        ("-server c.plist -source x", "server c.plist --source x"),
        ("-h", "help"),
        ("-help", "help"),
        ("--help", "help"),
        ("-source x -target y -help", "help"),
        ("-v", "version"),
        ("-version", "version"),
        ("--version", "version"),
        ("-source x -target y -v", "restore --source x --target y -v"),
        ("-source x -- -help", "restore --source x -- -help"),
        ("", ""),
        ("--verbose", "--verbose"),
        ("reboot -now", "reboot --now"),
    ],
)
def test_forms(typed: str, modern: str) -> None:
    assert spellings.modern(typed.split(), VERBS) == modern.split()


def test_a_form_without_a_verb_is_a_restore() -> None:
    old = parse(["-source", "x.dmg", "-target", "/dev/sdz", "-erase", "-noprompt", "-nocheck"])
    new = parse(["restore", "--source", "x.dmg", "--target", "/dev/sdz", "--erase", "--noprompt", "--noverify"])
    assert old == new
    assert (old.command, old.source, old.target) == ("restore", "x.dmg", ["/dev/sdz"])


STREAM = "a multicast stream can only be restored"


def test_the_old_form_of_a_server() -> None:
    old = parse(["-server", "asr.plist", "-source", "x.dmg"])
    assert old == parse(["server", "--source", "x.dmg", "--config", "asr.plist"])
    assert (old.command, old.config, old.source, old.start_when) == ("server", "asr.plist", "x.dmg", 1)


APFS = "it is for APFS, which only a Mac restores volume by volume; here its container is copied as a whole"
RESTORE = "-source x -target y -erase "


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (
            "restore -source x -file y",
            "--file is for a multicast stream, --source asr://HOST: other images are files, or asr capture's "
            "(see: asr help restore)",
        ),
        (
            "restore -source asr://x -file y -target z",
            "--file saves the stream, --target restores it: leave one of them out (see: asr help restore)",
        ),
        (
            "restore -source asr://x -file y --grow",
            "--grow is for what is restored onto a target, and --file saves all as it is: leave it out "
            "(see: asr help restore)",
        ),
        ("info asr://host", f"asr://host: {STREAM} (see: asr help info)"),
        ("verify -source asr://host -target y", f"asr://host: {STREAM} (see: asr help verify)"),
        ("capture -source ASR://host -target y", f"ASR://host: {STREAM} (see: asr help capture)"),
        ("server -source asr://host", f"asr://host: {STREAM} (see: asr help server)"),
        (
            "restore -source asr://host -target y",
            "asr://host: a multicast stream is restored by blocks: say --erase if that is meant "
            "(see: asr help restore)",
        ),
        (
            "restore -source x -target y -erase -interface eth0",
            "--interface is for a multicast stream, --source asr://HOST: leave it out (see: asr help restore)",
        ),
        (
            "restore -source x -target y -erase -multicast-only",
            "--multicast-only is for a multicast stream, --source asr://HOST: leave it out (see: asr help restore)",
        ),
        (
            "server -source x -config a.plist b.plist",
            "two configurations are named, a.plist and b.plist: say one (see: asr help server)",
        ),
        (
            "server -source x -loop-suspend 1",
            "--loop-suspend: 1 is neither 0, for never, nor at least 2 (see: asr help server)",
        ),
        (
            "restoreexact -source x -target y -erase",
            "restoreexact: it makes the target's partition as large as the source's, which a Mac does for HFS Plus "
            "only: say restore, and --grow for the last partition to fill its disk (see: asr help)",
        ),
        (
            "partition --target /dev/disk2 --testsize 71g",
            "partition: it lays out a Mac's disk: use sfdisk or sgdisk, or restore a whole disk with its partition "
            "table (see: asr help)",
        ),
        (
            "adjust --target /dev/disk2s3 -settype Apple_Boot",
            "adjust: it sets the type of a Mac's partition: use sfdisk --part-type, or sgdisk --typecode "
            "(see: asr help)",
        ),
        (f"{RESTORE}-useReplication", f"--useReplication: {APFS}: leave it out (see: asr help restore)"),
        (f"{RESTORE}--useinverter", f"--useInverter: {APFS}: leave it out (see: asr help restore)"),
        (
            f"{RESTORE}--toSnapshot Snap2",
            f"--toSnapshot: {APFS}, snapshots and all: leave it out (see: asr help restore)",
        ),
        (
            f"{RESTORE}--fromSnapshot=Snap1",
            f"--fromSnapshot: {APFS}: leave it out, and say --delta to send only what differs (see: asr help restore)",
        ),
        (f"{RESTORE}-sourcevolumename HD", f"--sourcevolumename: {APFS}: leave it out (see: asr help restore)"),
        (f"{RESTORE}-sourcevolumeUUID 1-2", f"--sourcevolumeUUID: {APFS}: leave it out (see: asr help restore)"),
        (
            f"{RESTORE}-corestorageconvert",
            "--corestorageconvert: it is for CoreStorage, which only a Mac has: restore without it, and encrypt "
            "afterwards (see: asr help restore)",
        ),
        (
            f"{RESTORE}-wrapper",
            "--wrapper: it is for Mac OS 9, and nothing here makes HFS volumes: leave it out (see: asr help restore)",
        ),
        (
            f"{RESTORE}-disableOwners",
            "--disableOwners: owners are always copied here: leave it out (see: asr help restore)",
        ),
        (
            f"{RESTORE}--embed",
            "--embed: it is for the restore of an iPhone's system: leave it out (see: asr help restore)",
        ),
        (
            f"{RESTORE}--chunkchecksum",
            "--chunkchecksum: it is for the restore of an iPhone's system: leave it out, imagescan has a checksum for "
            "every MiB (see: asr help restore)",
        ),
        (
            f"{RESTORE}-format HFS+",
            "--format: 'HFS+' is a file system, which a block copy keeps as the source has it: leave it out (here "
            "--format is what the image is: FORMATS) (see: asr help restore)",
        ),
    ],
)
def test_what_is_refused_by_name(typed: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    from restore.source.detect import FORMATS

    with pytest.raises(SystemExit) as caught:
        parse(typed.split())
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"asr: {line.replace('FORMATS', ', '.join(FORMATS))}\n")


def test_every_refusal_is_tried() -> None:
    (mark,) = (mark for mark in test_what_is_refused_by_name.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
    lines = [line for _, line in mark.args[1]]
    for name in (*spellings.REFUSED_OPTIONS, *spellings.REFUSED_VERBS):
        assert any(line.startswith(f"{name}: ") for line in lines), name


def test_a_value_is_not_taken_for_what_is_refused() -> None:
    assert parse(["info", "--", "--useReplication"]).image == "--useReplication"
    assert parse(["restore", "--source", "partition", "--target=--embed"]).target == ["--embed"]


@pytest.mark.parametrize(
    "words",
    [
        "restore -source x -target y -buffers 1 -buffersize 32m -csumbuffers 1 -csumbuffersize 1048576",
        "restore -source x -target y -allowfragmentedcatalog -blockonly -rebuild",
        "imagescan -nostream -SHA256 -filechecksum -allowfragmentedcatalog -blockonly -buffers 8 x",
        "capture -source x -target y -noprompt",
    ],
)
def test_what_old_scripts_say_is_taken(words: str) -> None:
    assert parse(words.split()).command == words.split()[0]
