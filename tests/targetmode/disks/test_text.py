import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targetmode.disks.text import decode, format_size, printable


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (64 << 20, "64.0 MiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (1500 << 20, "1.5 GiB"),
        (4 << 40, "4.0 TiB"),
        (1 << 80, "1048576.0 EiB"),
    ],
)
def test_size_is_written_with_a_binary_unit(size: int, text: str) -> None:
    assert format_size(size) == text


def test_what_steers_a_terminal_is_replaced() -> None:
    assert printable("a\x1b[31mb\u202ec\nd é 日本") == "a\ufffd[31mb\ufffdc\ufffdd é 日本"


def test_name_ends_at_nul_and_loses_its_padding() -> None:
    assert decode(b"EFI System  \0garbage") == "EFI System"
    assert decode("Données".encode("utf-16-le") + b"\0\0\xff", "utf-16-le") == "Données"


@settings(deadline=None)
@given(st.binary(), st.sampled_from(["utf-8", "utf-16-le", "utf-16-be", "ascii", "cp850"]))
def test_any_bytes_decode_to_printable_text(raw: bytes, encoding: str) -> None:
    assert decode(raw, encoding).isprintable()
