"""File copy: what is replaced, what stays, what is said; with real file systems, mounted where nobody sees it.

Debian packages: acl attr btrfs-progs e2fsprogs libnbd-bin mount ntfs-3g qemu-utils rsync util-linux xfsprogs.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from restore.errors import Refused, RestoreError
from restore.files.copy import Copied, FileDifferences, copy_files
from restore.private.mounting import Place
from restore.source.detect import open_image
from restore.source.spill import spill
from tests.restore.filesystems import (
    MIB,
    checked,
    in_filesystem,
    make_filesystem,
    nothing_left_of,
    partitioned,
)
from tests.restore.reports import Remembered
from tests.serving import ROOT, run, serving
from tests.support import loop_device, small_filesystem, wait_until

FILL = """
mkdir -p etc/dir empty usr
echo source > etc/file; touch -d 2001-02-03T04:05:06.123456789 etc/file
head -c 3000000 /dev/urandom > usr/big
truncate -s 5M usr/sparse; echo end >> usr/sparse
ln usr/big usr/linked
ln -s ../etc/file usr/symbolic
mknod usr/null c 1 3; mknod usr/block b 8 1; mkfifo usr/fifo
chown 1234:5678 etc/file; chmod 4755 usr/big
setfattr -n user.colour -v blue etc/file
setfacl -m u:1234:rw etc/file; setfacl -d -m g:5678:rx etc/dir
printf x > "$(printf 'new\\nline')"; printf x > "$(printf '\\303\\251')"
chmod 700 empty; touch -d 1999-01-01 empty etc
"""
OLD = """
mkdir -p etc/file usr stays; echo kept > stays/kept; echo kept > etc/other
echo newer > usr/big; touch -d 2035-01-01 usr/big; ln usr/big usr/was-linked
mkdir usr/symbolic usr/fifo; echo file > usr/null
ln -s /etc empty
"""


@pytest.fixture(autouse=True)
def nothing_left(requires_root: None, tmp_path: Path) -> Iterator[None]:
    """No test leaves a mount, a loop device or a process behind."""
    yield
    nothing_left_of(tmp_path)


@pytest.fixture
def requires_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for mounts")


def copy(source: Place | Path | str, target: Place | Path | str, *, verify: bool = True) -> tuple[Copied, Remembered]:
    report = Remembered()
    here = source if isinstance(source, Place) else Place(str(source))
    there = target if isinstance(target, Place) else Place(str(target), option="--target-partition")
    return asyncio.run(copy_files(here, there, report, verify=verify)), report


LIST = r"""find . -mindepth 1 -path ./lost+found -prune -o -type d -printf '%p %y %m %U:%G\n' \
-o -printf '%p %y %m %U:%G %T@ %l %n %s\n' | sort; getfacl -R etc usr | sort"""


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_source_replaces_namesakes_and_the_rest_stays(tmp_path: Path, kind: str) -> None:
    source = make_filesystem(tmp_path / "source.img", "ext4")
    in_filesystem(source, "ext4", FILL)
    target = make_filesystem(tmp_path / "target.img", kind)
    in_filesystem(target, kind, OLD)
    before = source.read_bytes()
    copied, report = copy(source, target)
    assert source.read_bytes() == before, "not a byte of it is written"
    checked(target, kind)
    script = "cat etc/file stays/kept etc/other usr/was-linked; stat -c %F empty usr/symbolic usr/null usr/block"
    said = in_filesystem(target, kind, script).splitlines()
    assert said[:4] == ["source", "kept", "kept", "newer"]
    kinds = ["directory", "symbolic link", "character special file", "block special file"]
    assert said[4:] == kinds
    in_filesystem(target, kind, "test usr/big -ef usr/linked; rm -r stays etc/other usr/was-*")
    assert in_filesystem(target, kind, LIST) == in_filesystem(source, "ext4", LIST)
    assert in_filesystem(target, kind, "getfattr -d etc/file; test $(du -k usr/sparse | cut -f1) -le 8").splitlines()[
        1:
    ] == [
        'user.colour="blue"',
        "",
    ]
    assert copied.size == 3000000 + 5 * MIB + 4 + len("source\n") + 2
    assert report.phases == ["Validating source", "Validating target", "Validating sizes"]
    assert report.notes == []
    for phase in ("Restoring", "Verifying"):
        assert report.shares[phase][-1] == (copied.size, copied.size)


@pytest.mark.parametrize(
    ("there", "path", "kind"),
    [
        ("mkdir -p etc/file; echo kept > etc/file/inner", "etc/file", "file"),
        ("mkdir -p usr/symbolic/empty", "usr/symbolic", "symbolic link"),
        ("mkdir -p usr/fifo; mkfifo usr/fifo/inner", "usr/fifo", "FIFO"),
    ],
)
def test_directories_that_are_not_empty_stay(tmp_path: Path, there: str, path: str, kind: str) -> None:
    """Nothing takes their place, nor is anything else copied."""
    source = make_filesystem(tmp_path / "source.img", "ext4")
    in_filesystem(source, "ext4", FILL)
    target = make_filesystem(tmp_path / "target.img", "ext4")
    in_filesystem(target, "ext4", there)
    everything = "find . -mindepth 1 ! -name lost+found -printf '%p %y %T@\\n' | sort"
    before = in_filesystem(target, "ext4", everything)
    with pytest.raises(Refused) as refused:
        copy(source, target)
    assert str(refused.value) == (
        f"{target} has a directory that is not empty where {source} has a {kind}: {path}; "
        "what is in it would be lost, so move that directory away first"
    )
    assert in_filesystem(target, "ext4", everything) == before


def test_behind_a_symbolic_link_of_the_target(tmp_path: Path) -> None:
    """Is nothing of the target's: the link becomes a directory, and where it led to everything stays."""
    source = make_filesystem(tmp_path / "source.img", "ext4")
    in_filesystem(source, "ext4", "mkdir a; echo new > a/name")
    target = make_filesystem(tmp_path / "target.img", "ext4")
    in_filesystem(target, "ext4", "mkdir -p b/name; echo kept > b/name/kept; ln -s b a")
    copy(source, target)
    assert in_filesystem(target, "ext4", "cat a/name b/name/kept") == "new\nkept\n"


def test_what_differs_is_listed_by_path(tmp_path: Path) -> None:
    from restore.files.compare import Comparison
    from restore.files.profile import profile

    here, there = tmp_path / "a", tmp_path / "b"
    for name in (here, there):
        name.mkdir()
        run("sh", "-c", FILL, cwd=name)
        run("cp", "--preserve=all", here / "usr/big", name / "usr/big") if name == there else None
        (name / "usr/linked").unlink()
        os.link(name / "usr/big", name / "usr/linked")
        run("find", ".", "-exec", "touch", "-hd", "2001-01-01", "{}", "+", cwd=name)

    def compare() -> list[str]:
        return Comparison(os.fsencode(here), os.fsencode(there), profile("ext4")).run()

    assert compare() == []
    script = """
    printf y | dd of=usr/sparse bs=1 seek=1000 conv=notrunc status=none; touch -d 2001-01-01 usr/sparse
    chmod 600 etc/file; chown 1:1 usr/fifo; setfattr -n user.colour -v red etc/file
    cp --preserve=all usr/linked usr/copy; mv usr/copy usr/linked
    ln -sf elsewhere usr/symbolic; touch -d 2002-01-01 -h usr/symbolic
    rm usr/null usr/block; mknod usr/null c 1 5; mkdir usr/block
    rmdir empty; touch -d 2001-01-01 . usr etc
    """
    run("sh", "-c", script, cwd=there)
    found = [line for line in compare() if "time" not in line]
    (linked,) = (line for line in found if "hard links" in line)  # whichever name was looked at second
    assert linked in ("usr/big: hard links differ", "usr/linked: hard links differ")
    assert [line for line in found if line != linked] == [
        "empty: missing",
        "etc/file: extended attributes differ",
        "etc/file: mode is 0600, not 0664",
        "usr/block: a directory, not a block device",
        "usr/fifo: owner is 1:1, not 0:0",
        "usr/null: device number is 1:5, not 1:3",
        "usr/sparse: content differs",
        "usr/symbolic: target of the link differs",
    ]


def test_a_target_that_loses_what_was_written(tmp_path: Path) -> None:
    """A disk that takes writes and keeps other bytes: verification reads the media and says so."""
    source = make_filesystem(tmp_path / "source.img", "ext4")
    in_filesystem(source, "ext4", "head -c 2000000 /dev/zero | tr '\\0' A > file")
    target = make_filesystem(tmp_path / "target.img", "ext4")
    socket = tmp_path / "socket"
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        f"import os\nfd = os.open({str(target)!r}, os.O_RDWR)\n"
        "def open(readonly): return 1\ndef get_size(h): return os.fstat(fd).st_size\ndef can_flush(h): return True\n"
        "def flush(h): pass\ndef pread(h, count, offset): return os.pread(fd, count, offset)\n"
        "def pwrite(h, buf, offset): os.pwrite(fd, bytes(buf).replace(b'A' * 512, b'B' + b'A' * 511), offset)\n"
    )
    server = subprocess.Popen(["nbdkit", "-f", "-U", socket, "python", plugin])
    try:
        wait_until(socket.exists, "nbdkit")
        with pytest.raises(FileDifferences) as caught:
            copy(source, f"nbd+unix:///?socket={socket}")
    finally:
        server.terminate()
        server.wait()
    assert str(caught.value) == "verification found 1 differences: file: content differs"
    assert caught.value.lines == ["file: content differs"]


def test_partitions_of_disk_images(tmp_path: Path) -> None:
    one, two = (make_filesystem(tmp_path / f"{name}.img", "ext4", 16 * MIB, "-L", name) for name in ("one", "two"))
    in_filesystem(one, "ext4", "echo one > file")
    in_filesystem(two, "ext4", "echo two > file")
    disk = partitioned(tmp_path / "disk.img", one, two)
    target = partitioned(tmp_path / "target.img", make_filesystem(tmp_path / "empty.img", "ext4", 16 * MIB))
    with pytest.raises(Refused) as refused:
        copy(disk, target)
    assert str(refused.value) == (
        f'{disk} has several file systems: 1 ext4 "one" 16.0 MiB, 2 ext4 "two" 16.0 MiB; '
        "say which: --source-partition N"
    )
    with pytest.raises(Refused) as refused:
        copy(Place(str(disk), 3), target)
    assert str(refused.value) == (f'{disk} has no partition 3; it has 1 ext4 "one" 16.0 MiB, 2 ext4 "two" 16.0 MiB')
    copy(Place(str(disk), 2), target)
    run("dd", f"if={target}", f"of={tmp_path / 'copy.img'}", "bs=1M", "skip=1", "count=16", "status=none")
    assert in_filesystem(tmp_path / "copy.img", "ext4", "cat file") == "two\n"


def test_exported_partition(tmp_path: Path) -> None:
    """Onto a partition of a disk in target mode, by nbdfuse where the kernel has no nbd."""
    source = make_filesystem(tmp_path / "source.img", "ext4")
    in_filesystem(source, "ext4", FILL)
    other = make_filesystem(tmp_path / "other.img", "ext4", 8 * MIB)
    goal = make_filesystem(tmp_path / "goal.img", "ext4")
    disk = partitioned(tmp_path / "disk.img", other, goal)
    with serving(disk, errors=tmp_path / "errors") as server:
        name = next(name for name in server.exports if name.endswith("2"))
        copied, _ = copy(source, server.uri(name))
        copy(source, Place(server.uri(), 2))
    assert copied.items > 10
    run("dd", f"if={disk}", f"of={goal}", "bs=1M", "skip=9", "count=64", "status=none")
    checked(goal, "ext4")
    assert in_filesystem(goal, "ext4", "cat etc/file") == "source\n"


@pytest.mark.parametrize("sector", [512, 4096])
def test_block_devices(tmp_path: Path, sector: int) -> None:
    source = make_filesystem(tmp_path / "source.img", "ext4")
    in_filesystem(source, "ext4", FILL)
    goal = make_filesystem(tmp_path / "goal.img", "ext4", 64 * MIB, "-b", "4096")
    with loop_device(source) as here, loop_device(goal, sector=sector) as there:
        copied, _ = copy(here, there)
        with pytest.raises(Refused, match="is opened exclusively by another program"):
            fd = os.open(there, os.O_RDONLY | os.O_EXCL)
            try:
                copy(here, there)
            finally:
                os.close(fd)
    checked(goal, "ext4")
    assert copied.items > 10
    assert in_filesystem(goal, "ext4", "cat etc/file") == "source\n"


def test_qcow2_source(tmp_path: Path) -> None:
    source = make_filesystem(tmp_path / "source.img", "ext4")
    in_filesystem(source, "ext4", FILL)
    run("qemu-img", "convert", "-O", "qcow2", source, tmp_path / "source.qcow2")
    target = make_filesystem(tmp_path / "target.img", "ext4")
    copy(Place(str(tmp_path / "source.qcow2"), form="qcow2"), target)
    assert in_filesystem(target, "ext4", "cat etc/file") == "source\n"


def test_image_decoded_to_a_private_file(tmp_path: Path) -> None:
    source = make_filesystem(tmp_path / "source.img", "ext4")
    in_filesystem(source, "ext4", FILL)
    opened, report = open_image(str(source)).source, Remembered()
    (tmp_path / "private").mkdir()
    try:
        path = asyncio.run(spill(opened, tmp_path / "private", report))
    finally:
        opened.close()
    assert path.read_bytes() == source.read_bytes()
    assert path.stat().st_blocks * 512 < 16 * MIB
    assert report.notes == [f"{source} is decoded to a temporary file of at most 64.0 MiB in {tmp_path / 'private'}"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a tmpfs")
@pytest.mark.parametrize("room", [1 * MIB, 4 * MIB - (200 << 10)])
def test_no_room_for_a_private_file(tmp_path: Path, room: int) -> None:
    """Of a compressed image nobody knows beforehand how large it is; its last piece may find room for its half."""
    (tmp_path / "source.img.gz").write_bytes(gzip.compress(os.urandom(4 * MIB)))
    with (
        small_filesystem(tmp_path / "private", room) as directory,
        contextlib.closing(open_image(str(tmp_path / "source.img.gz")).source) as opened,
        pytest.raises(Refused) as caught,
    ):
        asyncio.run(spill(opened, directory, Remembered()))
    assert str(caught.value) == f"{directory} is too small for the decoded image; set TMPDIR to a larger directory"


def test_ntfs_keeps_no_owners(tmp_path: Path) -> None:
    source = make_filesystem(tmp_path / "source.img", "ext4")
    in_filesystem(source, "ext4", "mkdir a; echo x > a/file; chown 5:6 a/file; ln -s file a/link; ln a/file a/hard")
    target = make_filesystem(tmp_path / "target.img", "ntfs")
    in_filesystem(target, "ntfs", "echo kept > kept")
    _, report = copy(source, target)
    assert report.notes == ["ntfs keeps no owners, permissions, devices, ACLs and extended attributes"]
    assert in_filesystem(target, "ntfs", "cat a/file a/link kept; readlink a/link") == "x\nx\nkept\nfile\n"
    checked(target, "ntfs")
    back = make_filesystem(tmp_path / "back.img", "xfs")
    copy(target, back)
    assert in_filesystem(back, "xfs", "cat a/file") == "x\n"


def test_contents_that_do_not_fit(tmp_path: Path) -> None:
    source = make_filesystem(tmp_path / "source.img", "ext4")
    in_filesystem(source, "ext4", "head -c 20000000 /dev/urandom > file")
    target = make_filesystem(tmp_path / "target.img", "ext2", 16 * MIB)
    before = target.read_bytes()
    with pytest.raises(Refused) as refused:
        copy(source, target)
    assert str(refused.value) == (
        f"{target} has no room for what is in {source}: 19.1 MiB needed, 14.9 MiB free and 0 bytes replaced"
    )
    in_filesystem(target, "ext2", "test ! -e file")
    assert len(before) == 16 * MIB


def test_refusals(tmp_path: Path) -> None:
    source = make_filesystem(tmp_path / "source.img", "ext4", 16 * MIB)
    blank = tmp_path / "blank.img"
    with blank.open("wb") as file:
        file.truncate(MIB)
    swap = tmp_path / "swap.img"
    swap.write_bytes(bytes(MIB))
    run("mkswap", swap)
    (tmp_path / "directory").mkdir()
    cases = {
        (tmp_path / "gone", source): f"{tmp_path / 'gone'} does not exist",
        (blank, source): f"{blank} has no file system: no partition table, no known file system",
        (swap, source): f"{swap} has swap, which is not mounted",
        (tmp_path / "directory", source): f"{tmp_path / 'directory'} is a directory, not where a volume is mounted",
        ("/", source): "/ is the running system's own volume",
        (source, "/"): "/ is the running system's own volume",
        (source, source): f"{source} is the backing file of /dev/loop",
        (source, "nbd://"): "nbd://: there is no host in it",
    }
    for (here, there), line in cases.items():
        with pytest.raises(Refused) as refused:
            copy(str(here), str(there))
        assert str(refused.value).startswith(line), refused.value
        assert "\n" not in str(refused.value)


def test_source_that_was_not_unmounted(tmp_path: Path) -> None:
    source = make_filesystem(tmp_path / "source.img", "ext4")
    in_filesystem(source, "ext4", "echo x > file; sync")
    target = make_filesystem(tmp_path / "target.img", "ext4")
    script = f"echo more > other; sync -f .; cp --sparse=always {source} {source}.torn"
    in_filesystem(source, "ext4", script)
    _, report = copy(f"{source}.torn", target)
    line = f"{source}.torn was not unmounted cleanly; what only its journal has is not copied"
    assert report.notes == [line]
    assert in_filesystem(target, "ext4", "cat file") == "x\n"


def test_mount_points(tmp_path: Path) -> None:
    source = make_filesystem(tmp_path / "source.img", "ext4")
    in_filesystem(source, "ext4", FILL)
    target = make_filesystem(tmp_path / "target.img", "ext4")
    (tmp_path / "mnt").mkdir()
    run("mount", "-o", "loop", target, tmp_path / "mnt")
    try:
        copy(source, tmp_path / "mnt")
        assert (tmp_path / "mnt/etc/file").read_text() == "source\n"
        other = make_filesystem(tmp_path / "other.img", "ext4")
        copy(tmp_path / "mnt", other)
        assert in_filesystem(other, "ext4", "cat etc/file") == "source\n"
        with pytest.raises(Refused, match="is the backing file of /dev/loop"):
            copy(source, target)
    finally:
        run("umount", tmp_path / "mnt")


PROGRAM = """
import asyncio, sys
from restore.files.copy import copy_files
from restore.private.mounting import Place
from restore.report import make_report
asyncio.run(copy_files(Place(sys.argv[1]), Place(sys.argv[2]), make_report(as_json=True)))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("exported", [False, True])
def test_interrupted(tmp_path: Path, number: int, *, exported: bool) -> None:
    """Unmounted, nothing left running, and the target's file system whole."""
    source = make_filesystem(tmp_path / "source.img", "ext4", 300 * MIB)
    in_filesystem(source, "ext4", "for i in $(seq 40); do head -c 6000000 /dev/urandom > $i; done")
    target = make_filesystem(tmp_path / "target.img", "ext4", 300 * MIB)
    in_filesystem(target, "ext4", "echo kept > kept")
    with contextlib.ExitStack() as stack:
        where = str(target)
        if exported:
            where = stack.enter_context(serving(target, errors=tmp_path / "errors")).uri()
        command = [sys.executable, "-c", PROGRAM, str(source), where]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout is not None
        while "Restoring" not in (line := process.stdout.readline()) or '"bytes": 0,' in line:
            assert line, process.communicate()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        if number == signal.SIGINT:
            assert f"interrupted; {where} may have only a part of the files (the same command again" in err
        nothing_left_of(tmp_path)
    assert in_filesystem(target, "ext4", "cat kept") == "kept\n"
    run("e2fsck", "-fp", target)
    checked(target, "ext4")


def test_missing_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from restore import tools

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tools, "_PATH", ())
    with pytest.raises(Refused, match=r"^rsync is needed and not installed; apt install rsync$"):
        tools.find("rsync")


def test_bugs_are_not_hidden() -> None:
    from restore.private.process import in_private

    with pytest.raises(RuntimeError, match="a bug in what ran in private"):
        asyncio.run(in_private("restore.files.copy:nothing", {}, Remembered()))
    with pytest.raises(RestoreError):
        asyncio.run(
            in_private(
                "restore.files.copy:copy_in_private",
                {"source": {"where": "/x"}, "target": {"where": "/y"}, "verify": True, "max_rate": None},
                Remembered(),
            )
        )
