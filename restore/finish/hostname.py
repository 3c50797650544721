"""--hostname: another name for the installed system, and a machine-id of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from restore.errors import Refused, RestoreError
from restore.finish.volumes import ROOTS, systems_in, volumes
from restore.private.attach import Opened
from restore.private.rooted import Rooted

_NAME: Final = re.compile(
    r"(?=.{1,64}\Z)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_SYSTEM: Final = ("etc/os-release", "usr/lib/os-release", "etc/hostname")
_OWN_ADDRESS: Final = b"127.0.1.1"


def check_hostname(name: str) -> None:
    """See that it is a host name (RFC 1123 section 2.1) of at most 64 characters, as Linux has them.

    Raises:
        Refused: it is not.
    """
    if not _NAME.fullmatch(name):
        raise Refused(f"{name!r} is no host name: letters, digits and hyphens, up to 64 characters")


def set_hostname(under: Opened, directory: Path, name: str) -> Iterator[str]:
    """Name every system that is installed on the target; gives a line for each change.

    Raises:
        RestoreError: there is none, or a file cannot be written.
    """
    check_hostname(name)
    found = False
    for volume in volumes(under)[1]:
        if volume.kind not in ROOTS:
            continue
        try:
            with systems_in(under, volume, directory) as (rooted, prefixes):
                for prefix in prefixes:
                    if any(rooted.has(prefix + path) for path in _SYSTEM):
                        found = True
                        for line in _rename(rooted, prefix, name):
                            yield f"{volume}: {line}"
        except OSError as error:
            raise RestoreError(f"{volume}: {error.filename}: {error.strerror}") from None
    if not found:
        raise RestoreError("there is no Linux system on the target to be given a name")


def _rename(rooted: Rooted, prefix: str, name: str) -> Iterator[str]:
    path = prefix + "etc/hostname"
    old = (rooted.read(path) or b"").strip()
    rooted.write(path, name.encode() + b"\n")
    yield f"/{path} is {name}"
    path = prefix + "etc/hosts"
    hosts = rooted.read(path)
    if hosts is not None and (new := rename_in_hosts(hosts, old, name.encode())) != hosts:
        rooted.write(path, new)
        yield f"/{path} has {name} for {_OWN_ADDRESS.decode()}"
    path = prefix + "etc/machine-id"
    if rooted.read(path) is not None:
        rooted.write(path, b"")
        yield f"/{path} is empty: the system makes a new one when it starts"
    path = prefix + "var/lib/dbus/machine-id"
    if rooted.read(path) and not rooted.is_link(path):
        rooted.remove(path)
        yield f"/{path} removed: the system makes it anew"
    if any(key.startswith("ssh_host_") for key in rooted.names(prefix + "etc/ssh")):
        yield f"/{prefix}etc/ssh has host keys, which stay; ssh-keygen -A makes others where they are removed"


def rename_in_hosts(hosts: bytes, old: bytes, new: bytes) -> bytes:
    """The line of 127.0.1.1 with another name, and with the aliases that were not the old one (hosts(5))."""
    lines = hosts.split(b"\n")
    short = new.partition(b".")[0]
    names = [new] if short == new else [new, short]
    for index, line in enumerate(lines):
        words = line.partition(b"#")[0].split()
        if not words or words[0] != _OWN_ADDRESS:
            continue
        aliases = [
            word for word in words[1:] if word.partition(b".")[0] != old.partition(b".")[0] and word not in names
        ]
        lines[index] = _OWN_ADDRESS + b"\t" + b" ".join([*names, *(aliases if old else [])])
        comment = line.partition(b"#")[2]
        lines[index] += b" #" + comment if comment else b""
    return b"\n".join(lines)
