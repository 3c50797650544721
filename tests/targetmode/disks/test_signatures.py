from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targetmode.disks.signatures import Signature, identify

MAGICS = [
    (0, b"LABELONE"),
    (24, b"LVM2 001"),
    (0, b"LUKS\xba\xbe\0\2"),
    (0x1000, b"\xfc\x4e\x2b\xa9\1\0\0\0"),
    (3, b"NTFS    "),
    (0, b"\xeb\x76\x90EXFAT   "),
    (510, b"\x55\xaa"),
    (1080, b"\x53\xef"),
    (0, b"XFSB"),
    (65600, b"_BHRfS_M"),
    (4086, b"SWAPSPACE2"),
    (0x8001, b"CD001\1"),
    (0x8801, b"CD001\1"),
    (0, b"hsqs"),
    (32, b"NXSB"),
    (1024, b"H+\0\4"),
    (16384, b"\1\1\0\0\0\0\0\0"),
]


def identify_bytes(disk: bytes, size: int) -> Signature | None:
    """Identifies what a disk that starts with `disk` and goes on with zeroes holds; checks what holds for any."""

    def read(offset: int, length: int) -> bytes:
        assert offset >= 0
        assert 0 < length <= 1 << 20
        assert offset + length <= size
        return disk[offset : offset + length].ljust(length, b"\0")

    signature = identify(read, size)
    if signature is not None:
        assert signature.kind
        assert signature.label.isprintable()
        assert signature.uuid.isprintable()
        assert 0 <= signature.offset < size
    return signature


@pytest.mark.parametrize("size", [0, 1, 512, 4096, 1 << 20, 1 << 40])
def test_zeroes_are_nothing(size: int) -> None:
    assert identify_bytes(b"", size) is None


def test_unreadable_disk_raises() -> None:
    def read(offset: int, length: int) -> bytes:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        identify(read, 1 << 20)


def test_signature_reads_as_kind_and_label() -> None:
    assert str(Signature("ext4", "root", "")) == 'ext4 "root"'
    assert str(Signature("swap", "", "")) == "swap"


def test_label_cannot_steer_a_terminal(run: Callable[..., str], make_image: Callable[..., Path]) -> None:
    image = make_image()
    run("mkfs.ext4", "-q", "-L", "\x1b]0;owned\x07", image)
    signature = identify_bytes(image.read_bytes()[: 1 << 20], 64 << 20)
    assert signature is not None
    assert signature.label == "\ufffd]0;owned\ufffd"


@settings(deadline=None)
@given(st.binary(max_size=4096), st.integers(0, 1 << 42))
def test_any_bytes_are_none_or_a_signature(disk: bytes, size: int) -> None:
    identify_bytes(disk[:size], size)


@settings(deadline=None)
@given(
    magics=st.lists(st.sampled_from(MAGICS), max_size=3),
    noise=st.lists(st.tuples(st.integers(0, 70000), st.binary(min_size=1, max_size=512)), max_size=6),
    size=st.one_of(st.integers(0, 80000), st.integers(80000, 1 << 42)),
)
def test_any_bytes_around_a_magic_are_none_or_a_signature(
    magics: list[tuple[int, bytes]], noise: list[tuple[int, bytes]], size: int
) -> None:
    disk = bytearray(72 * 1024)
    for offset, raw in [*noise, *magics]:
        disk[offset : offset + len(raw)] = raw
    identify_bytes(bytes(disk[:size]), size)


@pytest.fixture(scope="module")
def file_systems(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The first MiB of real file systems of 512 MiB."""
    import subprocess

    heads = []
    for command in (
        "mkfs.vfat -F 16 -n LABEL",
        "mkfs.vfat -F 32 -n LABEL",
        "mkfs.exfat -L label",
        "mkfs.ntfs -F -Q -L label -s 512 -p 0 -H 16 -S 63",
        "mkfs.ext4 -q -L label",
        "mkfs.xfs -q -L label",
        "mkfs.btrfs -q -L label",
        "mkswap -L label",
    ):
        image = tmp_path_factory.mktemp("fs") / "image"
        with image.open("wb") as file:
            file.truncate(512 << 20)
        subprocess.run([*command.split(), str(image)], check=True, capture_output=True)
        with image.open("rb") as file:
            heads.append(file.read(1 << 20))
    return heads


@settings(deadline=None)
@given(data=st.data(), size=st.integers(0, 512 << 20))
def test_any_damage_to_a_file_system_is_none_or_a_signature(
    file_systems: list[bytes], data: st.DataObject, size: int
) -> None:
    disk = bytearray(data.draw(st.sampled_from(file_systems)))
    interesting = [offset for offset in range(72 * 1024) if disk[offset]]
    for offset, value in data.draw(
        st.dictionaries(st.sampled_from(interesting), st.integers(0, 255), max_size=8)
    ).items():
        disk[offset] = value
    identify_bytes(bytes(disk[:size]), size)
