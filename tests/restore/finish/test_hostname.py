"""--hostname: the installed system's name, its hosts file and machine-id.

Debian packages: e2fsprogs mount util-linux.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from restore.errors import Refused, RestoreError
from restore.finish.hostname import check_hostname, rename_in_hosts
from restore.finish.steps import finish
from tests.restore.filesystems import MIB, in_filesystem, make_filesystem, partitioned
from tests.restore.reports import Remembered

SYSTEM = """
mkdir -p etc/ssh var/lib/dbus; echo ID=debian > etc/os-release; echo model > etc/hostname
printf '127.0.0.1\\tlocalhost\\n127.0.1.1\\tmodel.example.org model printer\\n' > etc/hosts
echo 0123456789abcdef0123456789abcdef > etc/machine-id; chmod 444 etc/machine-id
cp etc/machine-id var/lib/dbus/machine-id; touch etc/ssh/ssh_host_ed25519_key
"""


def named(where: Path, name: str) -> list[str]:
    report = Remembered()
    asyncio.run(finish(str(where), report, hostname=name))
    return report.notes


def test_system_is_named(tmp_path: Path, private: None) -> None:
    image = make_filesystem(tmp_path / "fs.img", "ext4", 16 * MIB)
    in_filesystem(image, "ext4", SYSTEM)
    assert named(image, "lab-7.example.net") == [
        "File system (ext4): /etc/hostname is lab-7.example.net",
        "File system (ext4): /etc/hosts has lab-7.example.net for 127.0.1.1",
        "File system (ext4): /etc/machine-id is empty: the system makes a new one when it starts",
        "File system (ext4): /var/lib/dbus/machine-id removed: the system makes it anew",
        "File system (ext4): /etc/ssh has host keys, which stay; ssh-keygen -A makes others where they are removed",
    ]
    script = "cat etc/hostname etc/hosts; stat -c '%s %a' etc/machine-id; ls var/lib/dbus"
    assert in_filesystem(image, "ext4", script) == (
        "lab-7.example.net\n127.0.0.1\tlocalhost\n127.0.1.1\tlab-7.example.net lab-7 printer\n0 444\n"
    )


def test_the_partition_with_the_system(tmp_path: Path, private: None) -> None:
    data = make_filesystem(tmp_path / "data.img", "ext4", 16 * MIB)
    system = make_filesystem(tmp_path / "system.img", "ext4", 16 * MIB)
    in_filesystem(system, "ext4", "mkdir -p etc; echo x > etc/hostname; ln -s /outside etc/hosts")
    disk = partitioned(tmp_path / "disk.img", data, system)
    assert named(disk, "pc1") == ["Partition 2 (ext4): /etc/hostname is pc1"]
    with pytest.raises(RestoreError, match=r"^there is no Linux system on the target to be given a name$"):
        named(data, "pc1")


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "a_b", "a b", "a..b", "a\n", "ä", "x" * 64, ".".join(["abcdefg"] * 9)]
)
def test_no_host_names(name: str) -> None:
    with pytest.raises(Refused, match="is no host name: letters, digits and hyphens, up to 64 characters"):
        check_hostname(name)


def test_hosts() -> None:
    for before, after in {
        b"127.0.1.1 old\n": b"127.0.1.1\tnew\n",
        b"127.0.1.1 old alias # why\n": b"127.0.1.1\tnew alias # why\n",
        b"# 127.0.1.1 old\n": b"# 127.0.1.1 old\n",
        b"10.0.0.1 old\n": b"10.0.0.1 old\n",
    }.items():
        assert rename_in_hosts(before, b"old", b"new") == after
