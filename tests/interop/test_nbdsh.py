"""libnbd's Python module: single requests and wrong ones. A wrong request is answered, and the next one works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.interop.conftest import Disk
from tests.serving import Serving, nbdsh, pattern, serving
from tests.support import assert_same_bytes

ATTEMPT = """
def attempt(action):
    try:
        result = action()
    except nbd.Error as error:
        return error.errno
    return bytes(result).hex() if isinstance(result, bytearray) else "done"

def say(**values):
    import json
    print(json.dumps(values))

h.set_strict_mode(0)  # what is wrong is to be sent, not to be found out here
h.add_meta_context("base:allocation")
"""


def ask(code: str, *arguments: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(nbdsh(ATTEMPT + code, *arguments).out)
    return values


@pytest.mark.parametrize("structured", [True, False])
def test_single_requests(server: Serving, disk: Disk, structured: bool) -> None:
    told = ask(
        """
h.set_request_structured_replies(args[1] == "True")
h.connect_uri(args[0])
h.pwrite(b"A" * 512, 0)
h.pwrite(b"B" * 1024, 4096, nbd.CMD_FLAG_FUA)
h.pwrite(b"C" * 200_000, 1 << 20)
h.zero(512, 4096)
h.zero(512, 1 << 20, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.trim(4096, 2 << 20)
h.cache(4096, 0)
h.flush()
say(a=h.pread(512, 0).hex(), b=h.pread(1024, 4096).hex(), c=bytes(h.pread(200_000, 1 << 20)).lstrip(bytes(1)).hex(),
    structured=h.get_structured_replies_negotiated())
h.shutdown()
""",
        server.uri(),
        str(structured),
    )
    assert told == {
        "structured": structured,
        "a": (b"A" * 512).hex(),
        "b": (bytes(512) + b"B" * 512).hex(),
        "c": (b"C" * (200_000 - 512)).hex(),
    }
    assert disk.read(0, 512) == b"A" * 512
    assert disk.read(4096, 1024) == bytes(512) + b"B" * 512
    assert disk.read(1 << 20, 200_000) == bytes(512) + b"C" * (200_000 - 512)


@pytest.mark.parametrize("structured", [True, False])
def test_wrong_requests_are_answered_and_the_stream_stays_in_step(
    server: Serving, disk: Disk, full: bytes, structured: bool
) -> None:
    told = ask(
        """
h.set_request_structured_replies(args[1] == "True")
h.connect_uri(args[0])
size = h.get_size()
say(
    read_past_end=attempt(lambda: h.pread(1024, size - 512)),
    read_beyond=attempt(lambda: h.pread(512, size)),
    read_far=attempt(lambda: h.pread(512, (1 << 63) - 512)),
    write_past_end=attempt(lambda: h.pwrite(b"X" * 1024, size - 512)),
    write_beyond=attempt(lambda: h.pwrite(b"X" * 100_000, size + 512)),
    trim_past_end=attempt(lambda: h.trim(1024, size - 512)),
    zero_past_end=attempt(lambda: h.zero(1024, size - 512)),
    cache_past_end=attempt(lambda: h.cache(1024, size - 512)),
    last=attempt(lambda: h.pread(512, size - 512)),
)
h.shutdown()
""",
        server.uri(),
        str(structured),
    )
    assert told == {
        "read_past_end": "EINVAL",
        "read_beyond": "EINVAL",
        "read_far": "EINVAL",
        "write_past_end": "ENOSPC",
        "write_beyond": "ENOSPC",
        "trim_past_end": "EINVAL",
        "zero_past_end": told["zero_past_end"],
        "cache_past_end": "EINVAL",
        "last": full[-512:].hex(),
    }
    assert told["zero_past_end"] in ("EINVAL", "ENOSPC")  # the specification allows both
    assert_same_bytes(disk.read(), full)


def test_misaligned_requests_have_their_effect(server: Serving, disk: Disk, full: bytes) -> None:
    """A disk's minimum block size is its sector; a client that does not care is served all the same."""
    told = ask(
        """
h.connect_uri(args[0])
say(read=attempt(lambda: h.pread(7, 3)), write=attempt(lambda: h.pwrite(b"xyz", 1001)),
    zero=attempt(lambda: h.zero(3, 5001)), after=attempt(lambda: h.pread(512, 512)))
h.shutdown()
""",
        server.uri(),
    )
    expected = full[:1001] + b"xyz" + full[1004:5001] + bytes(3) + full[5004:]
    assert told == {"read": full[3:10].hex(), "write": "done", "zero": "done", "after": expected[512:1024].hex()}
    assert_same_bytes(disk.read(), expected)


def test_block_status_of_a_part(server: Serving, disk: Disk) -> None:
    disk.fill(b"\x01" * 65536)
    told = ask(
        """
h.connect_uri(args[0])
found = []
def extent(context, offset, entries, error):
    found.append([context, offset, entries])
h.block_status(65536, 32768, extent)
h.block_status(65536, 32768, extent, nbd.CMD_FLAG_REQ_ONE)
wrong = attempt(lambda: h.block_status(1024, h.get_size() - 512, extent))
say(found=found, wrong=wrong)
h.shutdown()
""",
        server.uri(),
    )
    assert told["wrong"] == "EINVAL"
    (_, _, several), (_, _, one) = told["found"]
    lengths, kinds = several[0::2], several[1::2]
    if disk.is_file:
        assert sum(lengths) >= 65536
        assert [(lengths[0], kinds[0]), kinds[1]] == [(32768, 0), 3]
        assert one == [32768, 0]
    else:
        assert set(kinds) == {0}
        assert len(one) == 2


def test_a_write_on_one_connection_is_flushed_and_read_on_another(server: Serving, disk: Disk) -> None:
    told = ask(
        """
h.connect_uri(args[0])
other = nbd.NBD()
other.connect_uri(args[0])
h.pwrite(b"multi" * 1000 + bytes(120), 8192)
other.flush()
say(multi=h.can_multi_conn(), read=other.pread(5120, 8192).hex())
h.shutdown()
other.shutdown()
""",
        server.uri(),
    )
    assert told["multi"] is True
    assert bytes.fromhex(told["read"]) == b"multi" * 1000 + bytes(120)


@pytest.mark.parametrize("engine_option", ["builtin", "nbdkit"])
def test_a_read_only_export_refuses_every_change(tmp_path: Path, engine_option: str) -> None:
    image = tmp_path / "frozen.img"
    data = pattern(1 << 20)
    image.write_bytes(data)
    image.chmod(0o444)
    options = ["--listen=127.0.0.1:0", "--control=off", "--read-only"]
    with serving(image, options=options, engine=engine_option, errors=tmp_path / "errors") as server:
        assert server.ready["exports"][0]["read_only"] is True
        told = ask(
            """
h.connect_uri(args[0])
say(read_only=h.is_read_only(), write=attempt(lambda: h.pwrite(b"X" * 512, 0)), trim=attempt(lambda: h.trim(512, 0)),
    bulk=attempt(lambda: h.pwrite(b"X" * 300_000, 0)), zero=attempt(lambda: h.zero(512, 0)),
    flush=attempt(lambda: h.flush()), read=attempt(lambda: h.pread(512, 0)))
h.shutdown()
""",
            server.uri(),
        )
    assert told == {
        "read_only": True,
        "write": "EPERM",
        "bulk": "EPERM",
        "trim": "EPERM",
        "zero": "EPERM",
        "flush": "done",
        "read": data[:512].hex(),
    }
    assert_same_bytes(image.read_bytes(), data)
