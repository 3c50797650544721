"""What headers say is found out, or refused; nothing else ever comes of any bytes.

Debian packages: qemu-utils.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore.errors import Refused
from restore.source import SourceError
from restore.source.qemu.headers import FORMATS, Header, Others, Part, others, sniff
from tests.serving import run
from tests.support import examples

MIB = 1 << 20
KINDS = {
    "qcow2": ("qcow2", ""),
    "old qcow2": ("qcow2", "compat=0.10"),
    "vmdk": ("vmdk", ""),
    "flat vmdk": ("vmdk", "subformat=monolithicFlat"),
    "split vmdk": ("vmdk", "subformat=twoGbMaxExtentSparse"),
    "stream vmdk": ("vmdk", "subformat=streamOptimized"),
    "vhdx": ("vhdx", ""),
    "vdi": ("vdi", ""),
    "static vdi": ("vdi", "static=on"),
    "vhd": ("vpc", ""),
    "fixed vhd": ("vpc", "subformat=fixed"),
}


def header(data: bytes, form: str = "qcow2") -> Header:
    return Header("image", form, lambda offset, length: data[offset : offset + length], len(data))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One image of each kind, of 4 MiB."""
    directory = tmp_path_factory.mktemp("images")
    made = {}
    for kind, (form, options) in KINDS.items():
        path = directory / kind.replace(" ", "-")
        run("qemu-img", "create", "-q", "-f", form, *(["-o", options] if options else []), path, "4M")
        made[kind] = path.read_bytes()
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_told_by_its_magic(kind: str, images: dict[str, bytes]) -> None:
    data, form = images[kind], KINDS[kind][0]
    assert sniff(header(data).read, len(data)) == form
    found = others(header(data, form))
    assert found.backing is None
    if kind == "flat vmdk":
        assert found.data == (Part("flat-vmdk-flat", 4 * MIB),)
    elif kind != "split vmdk":
        assert found.data == ()


@pytest.mark.parametrize("data", [b"", b"\0" * 4096, b"QFI", b"conectix" + bytes(504), b"\x1f\x8b" * 400, bytes(0x44)])
def test_what_is_none_of_them(data: bytes) -> None:
    assert sniff(header(data).read, len(data)) is None


def differencing(kind: str, images: dict[str, bytes]) -> bytes:
    data = bytearray(images[kind])
    if kind == "vhdx":
        at = data.index(bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b"))
        table = data.index(b"metadata")
        (offset,) = struct.unpack_from("<I", data, at + 16)
        data[table + offset + 4] |= 2
    elif kind == "vdi":
        data[0x4C] = 4
    else:
        for footer in (0, len(data) - 512):
            struct.pack_into(">I", data, footer + 60, 4)
            struct.pack_into(">I", data, footer + 64, 0)
            struct.pack_into(">I", data, footer + 64, ~sum(data[footer : footer + 512]) & 0xFFFFFFFF)
    return bytes(data)


@pytest.mark.parametrize("kind", ["vhdx", "vdi", "vhd"])
def test_a_difference_to_a_parent(kind: str, images: dict[str, bytes]) -> None:
    form = KINDS[kind][0]
    data = differencing(kind, images)
    assert sniff(header(data).read, len(data)) == form
    assert others(header(data, form)) == Others(backing="")


def descriptor(*extents: str, parent: str = "") -> bytes:
    return "\n".join(("# Disk DescriptorFile", "version=1", "CID=1", parent, *extents, "")).encode()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (descriptor('RW 8 FLAT "a" 2'), Others(None, "vmdk", (Part("a", 5120),))),
        (descriptor('RW 8 SPARSE "a"', 'RW 8 SPARSE "b c"'), Others(None, "vmdk", (Part("a"), Part("b c")))),
        (descriptor('RW 8 FLAT "/etc/passwd" 0'), Others(None, "vmdk", (Part("/etc/passwd", 4096),))),
        (descriptor('RW 8 SPARSE "a"', parent="parentCID=ffffffff"), Others(None, "vmdk", (Part("a"),))),
        (descriptor('RW 8 SPARSE "a"', parent='parentFileNameHint="p"'), Others("p", "vmdk", (Part("a"),))),
        (descriptor('RW 8 SPARSE "a"', parent='x parentFileNameHint="p"'), Others("p", "vmdk", (Part("a"),))),
        (descriptor('RW 8 SPARSE "a"', parent="parentCID=1234"), Others("", "vmdk", (Part("a"),))),
    ],
)
def test_descriptors_of_vmdk(text: bytes, found: Others) -> None:
    assert sniff(header(text).read, len(text)) == "vmdk"
    assert others(header(text, "vmdk")) == found


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ('RW 12FLAT "/etc/passwd" 0',),  # which qemu takes
        ('RW 8 FLAT "a" 0', 'RW\n8 FLAT\n"/etc/passwd"'),  # that too
        ('RW 8 FLAT "a" 0', ' RW 0x8 FLAT "/etc/passwd"'),
    ],
)
def test_descriptors_that_might_say_something_else_to_qemu(lines: tuple[str, ...]) -> None:
    with pytest.raises(SourceError) as caught:
        others(header(descriptor(*lines), "vmdk"))
    assert str(caught.value) == "image is no vmdk image, or is damaged: its list of extents cannot be understood"


@pytest.mark.parametrize("form", FORMATS)
def test_another_format_than_was_said(form: str, images: dict[str, bytes]) -> None:
    other = images["vdi" if form != "vdi" else "qcow2"]
    with pytest.raises(SourceError, match=f"^image is no {form} image, or is damaged: "):
        others(header(other, form))


@given(
    st.sampled_from(list(KINDS)),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
    st.floats(0, 1),
)
@examples(400)
def test_any_damage(images: dict[str, bytes], kind: str, changes: list[tuple[float, int]], keep: float) -> None:
    """Gives an answer or one line, soon."""
    head = bytearray(images[kind][: 4 * MIB])
    interesting = 512 if kind != "vhdx" else 3 * MIB
    for where, value in changes:
        head[int(where * (min(interesting, len(head)) - 1))] = value
    data = bytes(head[: int(keep * len(head))] if keep < 0.5 else head)
    form = sniff(header(data).read, len(data))
    for each in {form, KINDS[kind][0]} - {None}:
        try:
            others(header(data, str(each)))
        except (SourceError, Refused) as error:
            assert "\n" not in str(error)
            assert "image" in str(error)
