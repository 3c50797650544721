"""The configuration of a server, as asr has it."""

from __future__ import annotations

import plistlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore.errors import Refused
from restore.multicast.config import Config, check_group, load
from tests.support import examples

APPLE = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
    <key>Data Rate</key>
    <integer>6000000</integer>
    <key>Client Data Rate</key>
    <integer>2000000</integer>
    <key>DNS Service Discovery</key>
    <false/>
    <key>Loop Suspend</key>
    <integer>5</integer>
    <key>Multicast Address</key>
    <string>239.255.100.100</string>
    <key>Multicast TTL</key>
    <integer>1</integer>
    <key>Port</key>
    <integer>7801</integer>
</dict>
</plist>
"""
CONFIG = Config(6000000, "239.255.100.100", 2000000, False, 5, 1, 7801)


def test_as_a_text_editor_makes_it(tmp_path: Path) -> None:
    path = tmp_path / "asrconfig.plist"
    path.write_text(APPLE)
    assert load(str(path)) == CONFIG


def test_as_defaults_write_makes_it(tmp_path: Path) -> None:
    """Binary; without -int its numbers are strings, and without -bool its truths are numbers."""
    values = plistlib.loads(APPLE.encode())
    path = tmp_path / "asrconfig.plist"
    path.write_bytes(plistlib.dumps(values, fmt=plistlib.FMT_BINARY))
    assert load(str(path)) == CONFIG
    values |= {"Data Rate": "6000000", "Port": "7801", "DNS Service Discovery": 0}
    path.write_bytes(plistlib.dumps(values, fmt=plistlib.FMT_BINARY))
    assert load(str(path)) == CONFIG


def test_what_asr_requires_may_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "c.plist"
    path.write_bytes(plistlib.dumps({}))
    assert load(str(path)) == Config() == Config(None, None, None, True, 0, 3, 7800)


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("Data Rate", 0, "a number of bytes per second"),
        ("Data Rate", -5, "a number of bytes per second"),
        ("Data Rate", 1.5, "a number of bytes per second"),
        ("Data Rate", "fast", "a number of bytes per second"),
        ("Data Rate", True, "a number of bytes per second"),
        ("Client Data Rate", [], "a number of bytes per second"),
        ("Multicast Address", "10.0.0.1", "an IPv4 multicast address"),
        ("Multicast Address", "224.0.0.1", "an IPv4 multicast address"),
        ("Multicast Address", "room", "an IPv4 multicast address"),
        ("Multicast Address", 239, "an IPv4 multicast address"),
        ("DNS Service Discovery", "yes", "true or false"),
        ("DNS Service Discovery", 2, "true or false"),
        ("Loop Suspend", 1, "0 for never, or at least 2"),
        ("Loop Suspend", -1, "0 for never, or at least 2"),
        ("Multicast TTL", 0, "1 to 255"),
        ("Multicast TTL", 256, "1 to 255"),
        ("Port", 0, "1 to 65535"),
        ("Port", 65536, "1 to 65535"),
    ],
)
def test_values_that_may_not_be(tmp_path: Path, key: str, value: Any, what: str) -> None:
    path = tmp_path / "c.plist"
    path.write_bytes(plistlib.dumps({"Port": 7800} | {key: value}))
    with pytest.raises(Refused) as refused:
        load(str(path))
    assert str(refused.value).startswith(f"{path}: {key} is {value!r}, but has to be {what}")


def test_a_key_that_there_is_not(tmp_path: Path) -> None:
    path = tmp_path / "c.plist"
    path.write_bytes(plistlib.dumps({"data rate": 5}))
    with pytest.raises(Refused, match="there is no key 'data rate'; there are Data Rate, Multicast Address, Client"):
        load(str(path))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is no property list"),
        (b"hello", "is no property list"),
        (b"<plist><dict>", "is no property list"),
        (b"bplist00", "is no property list"),
        (plistlib.dumps([1]), "its top is not a dictionary"),
        (bytes((1 << 20) + 1), "it has more than 1 MiB"),
        (
            b'<!DOCTYPE plist [<!ENTITY a "b">]><plist version="1.0"><dict><key>Port</key><string>&a;</string></dict>'
            b"</plist>",
            "is no property list",
        ),
    ],
)
def test_no_configuration(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "c.plist"
    path.write_bytes(data)
    with pytest.raises(Refused) as refused:
        load(str(path))
    assert str(refused.value).startswith(str(path))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_not_there(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="No such file or directory"):
        load(str(tmp_path / "none.plist"))
    with pytest.raises(Refused, match="Is a directory"):
        load(str(tmp_path))


@examples(300)
@given(data=st.binary(max_size=200), binary=st.booleans())
def test_whatever_the_file_has(tmp_path: Path, data: bytes, binary: bool) -> None:
    path = tmp_path / "c.plist"
    path.write_bytes(b"bplist00" + data if binary else data)
    with pytest.raises(Refused):
        load(str(path))


@pytest.mark.parametrize("group", ["224.0.1.0", "239.192.0.1", "232.1.2.3"])
def test_groups(group: str) -> None:
    assert check_group(group) == group
