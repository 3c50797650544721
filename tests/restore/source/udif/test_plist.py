from __future__ import annotations

import plistlib
import time
import tracemalloc

import pytest

from restore.source.udif.format import MAX_PLIST
from restore.source.udif.plist import Item, parse_items

HEAD = b'<?xml version="1.0"?><plist version="1.0">'


def listed(*items: object, **others: object) -> bytes:
    return plistlib.dumps({"before": {"blkx": [{"Data": b"no"}]}, "resource-fork": {"blkx": [*items]}, **others})


def test_blocks_in_order() -> None:
    data = listed(
        {"Name": "one", "Data": b"1", "ID": "0", "CFName": "other", "Attributes": "0x0050"},
        {"Name": "", "CFName": "two\n\x7f", "Data": bytes(1000)},
        {"Data": b"3", "more": {"Data": b"no", "Name": "no"}},
        zlast=[1, 2.5, True, {"Data": b"no"}],
    )
    unprintable = 2 * "\N{REPLACEMENT CHARACTER}"
    wanted = [Item("one", b"1"), Item(f"two{unprintable}", bytes(1000)), Item("block 2", b"3")]
    assert parse_items(data) == wanted


def test_names_are_short() -> None:
    assert parse_items(listed({"Name": "x" * 1000, "Data": b""}))[0].name == "x" * 80


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is no XML: no element found"),
        (HEAD, "is no XML: no element found"),
        (HEAD + b"<dict></plist>", "is no XML: mismatched tag"),
        (plistlib.dumps({"a": 1}), "has no blkx array of blocks"),
        (plistlib.dumps([{"Data": b"x"}]), "has no blkx array of blocks"),
        (plistlib.dumps({"resource-fork": {"blkx": {"Data": b"x"}}}), "has no blkx array of blocks"),
        (listed(), "has no blkx array of blocks"),
        (listed({"Name": "n"}), 'has no data of "n"'),
        (listed({"Name": "n", "Data": b"abc"}).replace(b"YWJj", b"YW*j"), 'has no data of "n"'),
        (listed({"Name": "n", "Data": b"abcd"}).replace(b"YWJjZA==", b"YWJjZA="), 'has no data of "n"'),
        (listed(*({"Data": b"x"} for _ in range(4097))), "has more than 4096 blocks"),
        (plistlib.dumps({"a": 1}, fmt=plistlib.FMT_BINARY), "is no XML as a UDIF image has it"),
        ("<plist/>".encode("utf-16"), "is no XML as a UDIF image has it"),
        (b'<?xml version="1.0" encoding="klingon"?><plist/>', "is in an unknown encoding"),
        (b'<!DOCTYPE plist [<!ENTITY a "x">]><plist>&a;</plist>', "declares entities"),
        (b'<!DOCTYPE plist [<!ENTITY % a SYSTEM "file:///etc/passwd">]><plist/>', "declares entities"),
        (HEAD + b"<array>" * 40, "is nested too deeply"),
        (HEAD + b"<a>" * 40, "is nested too deeply"),
        (HEAD + b"<a/>" * 200_000, "has more than 131072 tags"),
    ],
)
def test_no_list_of_an_image(data: bytes, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_items(data)
    assert str(caught.value).startswith(said)


FILL = MAX_PLIST - 1000
BOMBS = {
    "comment": b"<!--" + b"a" * FILL + b"-->",
    "attribute": b"<a b='" + b"a" * FILL + b"'/>",
    "attributes": b"<a " + b"".join(b"a%07d=''" % number for number in range(FILL // 11)) + b"/>",
    "name": b"<" + b"a" * FILL + b"/>",
    "instruction": b"<?a " + b"a" * FILL + b"?>",
    "characters": b"<string>" + b"&#65;" * (FILL // 5) + b"</string>",
    "lines": b"<string>" + b"\n" * FILL + b"</string>",
    "numbers": b"<integer>" + b"1" * FILL + b"</integer>",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_as_large_as_it_may_be(kind: str) -> None:
    data = HEAD + BOMBS[kind] + b"</plist>"
    assert len(data) <= MAX_PLIST
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(ValueError):
            parse_items(data)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 10
