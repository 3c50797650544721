"""--new-ids: new identifiers, and everything that refers to them; blkid and the file systems' checkers agree.

Debian packages: btrfs-progs dosfstools e2fsprogs gdisk mount mtools util-linux xfsprogs.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from restore.finish.references import replace
from restore.finish.steps import finish
from tests.restore.filesystems import MIB, checked, extracted, in_filesystem, make_filesystem, partitioned
from tests.restore.reports import Remembered
from tests.serving import run


def renewed(where: Path) -> list[str]:
    report = Remembered()
    asyncio.run(finish(str(where), report, new_ids=True))
    return report.notes


def uuid_of(path: Path) -> str:
    return run("blkid", "--probe", "--output", "value", "--match-tag", "UUID", path).out.strip()


def part_uuids(disk: Path) -> list[str]:
    table = json.loads(run("sfdisk", "--json", disk).out)["partitiontable"]
    return [row["uuid"].lower() for row in table.get("partitions", []) if "uuid" in row]


@pytest.mark.parametrize("root", ["ext4", "xfs", "btrfs"])
def test_everything_is_new_and_followed(tmp_path: Path, private: None, root: str) -> None:
    esp = make_filesystem(tmp_path / "esp.img", "vfat", 40 * MIB, "-n", "BOOT")
    system = make_filesystem(tmp_path / "system.img", root)
    swap = tmp_path / "swap.img"
    swap.write_bytes(bytes(4 * MIB))
    run("mkswap", swap)
    old = [uuid_of(esp), uuid_of(system), uuid_of(swap)]
    run("mmd", "-i", esp, "::/EFI", "::/EFI/debian", "::/loader", "::/loader/entries")
    config = tmp_path / "grub.cfg"
    config.write_text(f"search.fs_uuid {old[1]} root\nset prefix=($root)'/boot/grub'\n")
    run("mcopy", "-i", esp, config, "::/EFI/debian/grub.cfg")
    entry = tmp_path / "linux.conf"
    entry.write_text(f"title Linux\noptions root=UUID={old[1]} resume=UUID={old[2]}\n")
    run("mcopy", "-i", esp, entry, "::/loader/entries/linux.conf")
    disk = tmp_path / "disk.img"
    top = "@rootfs" if root == "btrfs" else "."
    in_filesystem(system, root, "btrfs subvolume create @rootfs" if root == "btrfs" else "true")
    partitioned(disk, esp, system, swap)
    parts = part_uuids(disk)
    fill = f"""
    cd {top}; mkdir -p etc/default boot/grub boot/loader/entries
    cat > etc/fstab <<END
# /etc/fstab {old[1]}
UUID={old[1]} / ext4 defaults 0 1
UUID={old[0]} /boot/efi vfat umask=0077 0 1
/dev/disk/by-uuid/{old[2]} none swap sw 0 0
PARTUUID={parts[1].upper()} /other ext4 defaults 0 1
UUID=00000000-1111-2222-3333-444444444444 /elsewhere ext4 defaults 0 1
END
    echo 'crypt PARTUUID={parts[2]} none swap' > etc/crypttab
    echo 'GRUB_CMDLINE_LINUX="root=UUID={old[1]}"' > etc/default/grub
    echo 'search --no-floppy --fs-uuid --set=root {old[1]}' > boot/grub/grub.cfg
    echo 'search --no-floppy --fs-uuid --set=root {old[0]}' >> boot/grub/grub.cfg
    echo 'options root=PARTUUID={parts[1]}' > boot/loader/entries/a.conf
    echo '{old[1]} {old[0]}' > etc/motd; chmod 600 etc/crypttab
    """
    start = 41 * MIB
    with_root = f"loop,offset={start},sizelimit={system.stat().st_size}" + (",nouuid" if root == "xfs" else "")
    run("unshare", "--mount", "sh", "-ec", f"mount -o {with_root} {disk} /mnt; (cd /mnt; {fill}\n); umount /mnt")
    notes = renewed(disk)
    assert "No problems found" in run("sgdisk", "-v", disk).out
    new_parts, images = part_uuids(disk), [extracted(disk, number) for number in (1, 2, 3)]
    new = [uuid_of(image) for image in images]
    assert not {*new, *new_parts} & {*old, *parts}
    for image, kind in zip(images, ("vfat", root), strict=False):
        checked(image, kind)
    assert run("fatlabel", images[0]).out == "BOOT\n"
    text = in_filesystem(
        images[1],
        root,
        f"cd {top}; cat etc/fstab etc/crypttab etc/default/grub boot/grub/grub.cfg "
        "boot/loader/entries/a.conf; stat -c %a etc/crypttab; cat etc/motd",
    )
    assert text == (
        f"# /etc/fstab {new[1]}\nUUID={new[1]} / ext4 defaults 0 1\nUUID={new[0]} /boot/efi vfat umask=0077 0 1\n"
        f"/dev/disk/by-uuid/{new[2]} none swap sw 0 0\nPARTUUID={new_parts[1].upper()} /other ext4 defaults 0 1\n"
        "UUID=00000000-1111-2222-3333-444444444444 /elsewhere ext4 defaults 0 1\n"
        f"crypt PARTUUID={new_parts[2]} none swap\n" + f'GRUB_CMDLINE_LINUX="root=UUID={new[1]}"\n'
        f"search --no-floppy --fs-uuid --set=root {new[1]}\nsearch --no-floppy --fs-uuid --set=root {new[0]}\n"
        f"options root=PARTUUID={new_parts[1]}\n600\n{old[1]} {old[0]}\n"
    )
    assert (
        run("mtype", "-i", images[0], "::/EFI/debian/grub.cfg").out.splitlines()[0] == f"search.fs_uuid {new[1]} root"
    )
    assert (
        f"root=UUID={new[1]} resume=UUID={new[2]}" in run("mtype", "-i", images[0], "::/loader/entries/linux.conf").out
    )
    assert f"Partition 2 ({root}): UUID {old[1]} is now {new[1]}" in notes
    assert f"Partition 1: GUID {parts[0]} is now {new_parts[0]}" in notes
    assert len([line for line in notes if line.endswith("refers to the new identifiers")]) == 7


def test_large_directory(tmp_path: Path, private: None) -> None:
    """Whose index tune2fs does not write anew, when its checksum is to be that of another UUID."""
    tree, image = tmp_path / "tree", tmp_path / "fs.img"
    (tree / "large").mkdir(parents=True)
    names = {f"{number:064}" for number in range(3000)}
    for name in names:
        (tree / "large" / name).touch()
    make_filesystem(image, "ext4", 64 * MIB, "-b", "1024", "-N", "8000", "-d", str(tree))
    old = uuid_of(image)
    assert renewed(image)[0].startswith(f"File system (ext4): UUID {old} is now ")
    checked(image, "ext4")
    assert set(in_filesystem(image, "ext4", "ls large").split()) == names


def test_mbr_disk(tmp_path: Path, private: None) -> None:
    image = make_filesystem(tmp_path / "fs.img", "ext4", 16 * MIB)
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(64 * MIB)
    run("sfdisk", disk, stdin="label: dos\nlabel-id: 0x1234abcd\nstart=2048, size=16M, type=83\n")
    in_filesystem(image, "ext4", "mkdir etc; echo 'PARTUUID=1234abcd-01 / ext4 defaults 0 1' > etc/fstab")
    run("dd", f"if={image}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc", "status=none")
    notes = renewed(disk)
    new = json.loads(run("sfdisk", "--json", disk).out)["partitiontable"]["id"].removeprefix("0x")
    assert f"Disk: identifier 1234abcd is now {new}" in notes
    part = extracted(disk, 1)
    checked(part, "ext4")
    assert in_filesystem(part, "ext4", "cat etc/fstab") == f"PARTUUID={new}-01 / ext4 defaults 0 1\n"


def test_links_out_of_the_image_are_not_followed(tmp_path: Path, private: None) -> None:
    image = make_filesystem(tmp_path / "fs.img", "ext4", 16 * MIB)
    old = uuid_of(image)
    outside = tmp_path / "outside"
    outside.write_text(f"UUID={old} / ext4 defaults 0 1\n")
    script = f"""
    mkdir etc boot real; ln -s {outside} etc/fstab; ln -s ../../../../../../../..{outside} etc/crypttab
    ln -s {tmp_path} boot/grub; mkfifo etc/hostname; ln -s /real etc/default; echo UUID={old} > real/grub
    ln -s /proc/self/root{outside} etc/kernel
    """
    (tmp_path / "grub.cfg").write_text(f"search --fs-uuid {old}\n")
    in_filesystem(image, "ext4", script)
    notes = renewed(image)
    assert outside.read_text() == f"UUID={old} / ext4 defaults 0 1\n"
    assert (tmp_path / "grub.cfg").read_text() == f"search --fs-uuid {old}\n"
    assert notes[1:] == ["File system (ext4): /etc/default/grub refers to the new identifiers"]
    assert in_filesystem(image, "ext4", "cat real/grub") == f"UUID={uuid_of(image)}\n"


def test_words() -> None:
    long, short = "0fc63daf-8483-4772-8e79-3d69d8477de4", "12AB-34CD"
    changed = {long: "11111111-1111-4111-8111-aaaaaaaaaaaa", short: "ABCD-EF01", "1234abcd": "0badcafe"}
    for before, after in {
        f"x={long},": "x=11111111-1111-4111-8111-aaaaaaaaaaaa,",
        long.upper(): "11111111-1111-4111-8111-AAAAAAAAAAAA",
        f"{long}0": f"{long}0",
        f"a{long}": f"a{long}",
        f"UUID={short} /boot/efi": "UUID=ABCD-EF01 /boot/efi",
        f'UUID="{short}"': 'UUID="ABCD-EF01"',
        f"/dev/disk/by-uuid/{short}": "/dev/disk/by-uuid/ABCD-EF01",
        f"serial {short}": f"serial {short}",
        f"search --fs-uuid --set=root {short}": "search --fs-uuid --set=root ABCD-EF01",
        f"search.fs_uuid {short} root": "search.fs_uuid ABCD-EF01 root",
        "number 1234abcd": "number 1234abcd",
    }.items():
        assert replace(before.encode(), changed)[0].decode() == after
