"""The control API from outside: exports, digests of what is on the media, events, metrics, and requests that harm."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import blake3
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from targetmode import api
from tests.serving import ENGINES, RawClient, Serving, nbdsh, pattern, run, serving
from tests.support import loop_device, wait_until
from tests.targetmode.conftest import MIB, part

OPTIONS = ["--listen=127.0.0.1:0", "--control=127.0.0.1:0"]
HASH: dict[str, Callable[[bytes], str]] = {
    "blake3": lambda data: str(blake3.blake3(data).hexdigest()),
    "sha256": lambda data: hashlib.sha256(data).hexdigest(),
    "xxh3-128": lambda data: xxhash.xxh3_128(data).hexdigest(),
}


@contextmanager
def client(server: Serving) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", server.ready["control"], timeout=20)
    try:
        yield connection
    finally:
        connection.close()


def ask(server: Serving, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    with client(server) as connection:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.read()


def exports(server: Serving) -> list[dict[str, Any]]:
    status, body = ask(server, "GET", api.EXPORTS)
    assert status == 200
    return [vars_of(export) for export in api.ExportsAnswer.from_json(json.loads(body)).exports]


def vars_of(export: api.ExportDescription) -> dict[str, Any]:
    return {name: getattr(export, name) for name in export.__slots__}


def digests(server: Serving, name: str, ranges: list[tuple[int, int]], algorithm: str = "blake3") -> list[str]:
    request = api.DigestRequest(algorithm, ranges)
    status, body = ask(server, "POST", api.digests_path(name), json.dumps(request.to_json()).encode())
    assert status == 200, body
    lines = [api.DigestLine.from_json(json.loads(line)) for line in body.splitlines()]
    assert [(line.offset, line.length) for line in lines] == ranges
    return [line.digest for line in lines]


def metrics(server: Serving) -> dict[tuple[str, str], float]:
    with urllib.request.urlopen(server.control + api.METRICS, timeout=10) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = response.read().decode()
    families = text_string_to_metric_families(text)
    return {(sample.name, sample.labels["export"]): sample.value for family in families for sample in family.samples}


@pytest.fixture(scope="module", params=ENGINES)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, Path]]:
    """A server over a disk with partitions and one whose size is no multiple of anything."""
    directory = tmp_path_factory.mktemp("control")
    disk, odd = directory / "disk", directory / "odd.img"
    disk.write_bytes(pattern(8 * MIB))
    part(disk)
    odd.write_bytes(pattern(MIB + 1234, seed=2))
    options = [*OPTIONS, "--name=the bench"]
    with serving(disk, odd, options=options, engine=request.param, errors=directory / "errors") as server:
        yield server, directory


# --- exports ---


def test_exports(shared: tuple[Serving, Path]) -> None:
    server, _ = shared
    status, body = ask(server, "GET", api.EXPORTS)
    answer = api.ExportsAnswer.from_json(json.loads(body))
    assert (status, answer.session, answer.name) == (200, server.ready["session"], "the bench")
    assert [(e.name, e.size, e.read_only, e.model, e.connections) for e in answer.exports] == [
        ("disk", 8 * MIB, False, "image file", []),
        ("disk1", 2 * MIB, False, "image file", []),
        ("disk2", MIB, False, "image file", []),
        ("odd.img", MIB + 1234, False, "image file", []),
    ]
    assert answer.exports[0].contents == "gpt: 1 unknown 2.0 MiB, 2 unknown 1.0 MiB"
    with RawClient(server, "disk2"):
        wait_until(lambda: len(exports(server)[2]["connections"]) == 1, "the connection")
        assert [len(export["connections"]) for export in exports(server)] == [0, 0, 1, 0]
    wait_until(lambda: not exports(server)[2]["connections"], "the end of the connection")


def test_one_name_is_one_export(tmp_path: Path, serve: Callable[..., Serving]) -> None:
    """The second disk is called as the first's partition; what is listed is what can be opened."""
    disk, other = tmp_path / "disk", tmp_path / "disk1"
    disk.write_bytes(bytes(8 * MIB))
    part(disk)
    other.write_bytes(b"o" * 4096)
    server = serve(disk, other, options=OPTIONS)
    assert server.exports == ["disk", "disk2", "disk1"]
    assert [(export["name"], export["size"]) for export in exports(server)] == [
        ("disk", 8 * MIB),
        ("disk2", MIB),
        ("disk1", 4096),
    ]
    assert digests(server, "disk1", [(0, 4096)]) == [HASH["blake3"](b"o" * 4096)]
    with RawClient(server, "disk1") as raw:
        assert raw.size == 4096


# --- digests ---


@pytest.mark.parametrize("algorithm", api.ALGORITHMS)
def test_digests_are_those_of_the_bytes(shared: tuple[Serving, Path], algorithm: str) -> None:
    server, directory = shared
    data = (directory / "disk").read_bytes()
    ranges = [(0, MIB), (7 * MIB, MIB), (0, 1), (4095, 2), (511, 8193), (0, 8 * MIB), (8 * MIB - 1, 1), (0, MIB)]
    expected = [HASH[algorithm](data[offset : offset + length]) for offset, length in ranges]
    assert digests(server, "disk", ranges, algorithm) == expected
    whole = [(offset, 65536) for offset in range(0, 8 * MIB, 65536)]
    assert digests(server, "disk", whole, algorithm) == [HASH[algorithm](data[o : o + n]) for o, n in whole]


def test_digests_of_a_partition(shared: tuple[Serving, Path]) -> None:
    server, directory = shared
    data = (directory / "disk").read_bytes()
    assert digests(server, "disk1", [(0, 2 * MIB), (2 * MIB - 512, 512)]) == [
        HASH["blake3"](data[MIB : 3 * MIB]),
        HASH["blake3"](data[3 * MIB - 512 : 3 * MIB]),
    ]
    status, body = ask(server, "POST", api.digests_path("disk1"), b'{"algorithm": "blake3", "ranges": [[0, 2097153]]}')
    assert status == 400
    assert b"outside the export" in body


def media(kind: str, stack: ExitStack, tmp_path: Path, size: int) -> tuple[Path, Path]:
    """The disk to serve, and the file to change behind its back."""
    backing = tmp_path / "backing.img"
    if kind == "tmpfs":
        (tmp_path / "tmpfs").mkdir()
        run("mount", "-t", "tmpfs", "tmpfs", tmp_path / "tmpfs")
        stack.callback(run, "umount", "--lazy", tmp_path / "tmpfs")
        backing = tmp_path / "tmpfs" / "backing.img"
    elif kind == "ext4":
        with (tmp_path / "ext4.img").open("wb") as file:
            file.truncate(32 * MIB)
        run("mkfs.ext4", "-q", tmp_path / "ext4.img")
        (tmp_path / "ext4").mkdir()
        run("mount", "-o", "loop", tmp_path / "ext4.img", tmp_path / "ext4")
        stack.callback(run, "umount", tmp_path / "ext4")
        backing = tmp_path / "ext4" / "backing.img"
    backing.write_bytes(pattern(size, seed=5))
    if kind == "loop":
        return stack.enter_context(loop_device(backing)), backing
    return backing, backing


@pytest.mark.parametrize("size", [3 * MIB + 512, 3 * MIB + 1])
@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "loop"])
def test_digests_see_the_media(root: None, tmp_path: Path, kind: str, size: int) -> None:
    """To the last byte, what clients wrote just now, and one that was changed where no cache of the disk's knows."""
    with ExitStack() as stack:
        disk, backing = media(kind, stack, tmp_path, size)
        size = size // 512 * 512 if kind == "loop" else size
        server = stack.enter_context(serving(disk, options=OPTIONS, errors=tmp_path / "errors"))
        ranges = [(0, MIB), (MIB, MIB), (2 * MIB, size - 2 * MIB), (size - 1, 1)]

        def expected() -> list[str]:
            data = backing.read_bytes()
            return [HASH["blake3"](data[offset : offset + length]) for offset, length in ranges]

        first = expected()
        assert digests(server, disk.name, ranges) == first
        with RawClient(server) as raw:
            assert raw.read(MIB, 4096) == backing.read_bytes()[MIB : MIB + 4096]  # it is in the cache now
            with backing.open("r+b") as file:
                file.seek(MIB + 77)
                byte = file.read(1)[0]
                file.seek(MIB + 77)
                file.write(bytes([byte ^ 1]))
            second = digests(server, disk.name, ranges)
            assert second == expected()
            assert [old == new for old, new in zip(first, second, strict=True)] == [True, False, True, True]
            assert raw.write(2 * MIB, b"new" * 1000) == 0  # and not flushed
            third = digests(server, disk.name, ranges)
            assert [old == new for old, new in zip(second, third, strict=True)] == [True, True, False, True]
            os.sync()
            assert third == expected()


def test_digests_come_while_they_are_made_and_stop_with_their_reader(
    tmp_path: Path, serve: Callable[..., Serving]
) -> None:
    """The first line comes long before the last is known, others are answered meanwhile, and no thread stays busy."""
    image = tmp_path / "disk.img"
    image.write_bytes(pattern(MIB) * 64)
    server = serve(image, options=OPTIONS)
    ranges = [(0, 64 * MIB)] * api.MAX_RANGES  # 256 GiB
    with client(server) as connection:
        body = json.dumps(api.DigestRequest("sha256", ranges).to_json())
        connection.request("POST", api.digests_path("disk.img"), body)
        response = connection.getresponse()
        line = api.DigestLine.from_json(json.loads(response.readline()))
        assert line.digest == HASH["sha256"](image.read_bytes())
        slowest = 0.0
        for _ in range(15):
            begin = time.monotonic()
            assert exports(server)[0]["size"] == 64 * MIB
            slowest = max(slowest, time.monotonic() - begin)
            time.sleep(0.02)
        assert slowest < 1
        assert json.loads(response.readline())["offset"] == 0
    busy = 0.0

    def rests() -> bool:
        nonlocal busy
        before, busy = busy, processor_seconds(server.process.pid)
        time.sleep(0.2)
        return busy - before < 0.02

    wait_until(rests, "rest")
    begin = time.monotonic()
    server.stop()
    assert time.monotonic() - begin < 3


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_stop_in_the_middle_of_digests(tmp_path: Path, serve: Callable[..., Serving]) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(pattern(MIB) * 32)
    server = serve(image, options=OPTIONS)
    with client(server) as connection:
        body = json.dumps(api.DigestRequest("sha256", [(0, 32 * MIB)] * 4096).to_json())
        connection.request("POST", api.digests_path("disk.img"), body)
        response = connection.getresponse()
        response.readline()
        begin = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begin < 5
        with suppress(http.client.HTTPException, ConnectionError):
            while response.readline():
                pass


def test_a_disk_that_has_shrunk_is_told(image: Path, serve: Callable[..., Serving]) -> None:
    server = serve(image, options=OPTIONS)
    os.truncate(image, MIB // 2)
    status, body = ask(
        server, "POST", api.digests_path("disk.img"), b'{"algorithm": "blake3", "ranges": [[0, 1048576]]}'
    )
    assert status == 400
    assert b"outside the export" in body
    assert digests(server, "disk.img", [(0, MIB // 2)]) == [HASH["blake3"](image.read_bytes())]


def test_a_disk_that_fails_is_told_in_the_last_line(root: None, tmp_path: Path, serve: Callable[..., Serving]) -> None:
    """A loop device over a file that has become shorter: its end gives EIO."""
    backing = tmp_path / "backing"
    backing.write_bytes(pattern(2 * MIB))
    with loop_device(backing) as device:
        server = serve(device, options=OPTIONS)
        os.truncate(backing, MIB)
        body = b'{"algorithm": "blake3", "ranges": [[0, 65536], [1966080, 65536], [0, 65536]]}'
        status, answer = ask(server, "POST", api.digests_path(device.name), body)
        assert status == 200
        first, last = map(json.loads, answer.splitlines())
        assert first["digest"] == HASH["blake3"](backing.read_bytes()[:65536])
        assert list(last) == ["error"]
        assert last["error"].startswith(f"{device.name}: ")
        with pytest.raises(api.MessageError, match=device.name):
            api.DigestLine.from_json(last)
        server.stop()


# --- requests that make no sense ---

BAD_BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "not UTF-8": b'{"algorithm": "\xff"}',
    "a list": b"[]",
    "null": b"null",
    "no ranges": b'{"algorithm": "blake3"}',
    "empty ranges": b'{"algorithm": "blake3", "ranges": []}',
    "a dictionary of ranges": b'{"algorithm": "blake3", "ranges": {"0": 1}}',
    "no algorithm": b'{"ranges": [[0, 1]]}',
    "an unknown algorithm": b'{"algorithm": "md5", "ranges": [[0, 1]]}',
    "a list for an algorithm": b'{"algorithm": ["blake3"], "ranges": [[0, 1]]}',
    "a long algorithm": b'{"algorithm": "' + b"x" * 100_000 + b'", "ranges": [[0, 1]]}',
    "a negative offset": b'{"algorithm": "blake3", "ranges": [[-1, 1]]}',
    "a negative length": b'{"algorithm": "blake3", "ranges": [[5, -1]]}',
    "no length": b'{"algorithm": "blake3", "ranges": [[0, 0]]}',
    "past the end": b'{"algorithm": "blake3", "ranges": [[8388608, 1]]}',
    "over the end": b'{"algorithm": "blake3", "ranges": [[8388607, 2]]}',
    "a float": b'{"algorithm": "blake3", "ranges": [[0.0, 1]]}',
    "NaN": b'{"algorithm": "blake3", "ranges": [[NaN, 1]]}',
    "infinity": b'{"algorithm": "blake3", "ranges": [[0, Infinity]]}',
    "a truth": b'{"algorithm": "blake3", "ranges": [[false, true]]}',
    "text": b'{"algorithm": "blake3", "ranges": [["0", "1"]]}',
    "three numbers": b'{"algorithm": "blake3", "ranges": [[0, 1, 2]]}',
    "2^64": b'{"algorithm": "blake3", "ranges": [[18446744073709551616, 1]]}',
    "a huge number": b'{"algorithm": "blake3", "ranges": [[' + b"9" * 4000 + b", 1]]}",
    "too huge a number": b'{"algorithm": "blake3", "ranges": [[' + b"9" * 100_000 + b", 1]]}",
    "too many ranges": b'{"algorithm": "blake3", "ranges": [' + b"[0, 1]," * 4096 + b"[0, 1]]}",
    "too long a range": b'{"algorithm": "blake3", "ranges": [[0, 67108865]]}',
    "deep lists": b"[" * 200_000,
    "deep dictionaries": b'{"a":' * 100_000,
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_refused_in_a_line(shared: tuple[Serving, Path], name: str) -> None:
    status, body = ask(shared[0], "POST", api.digests_path("disk"), BAD_BODIES[name])
    assert status == 400
    assert_one_line(body)


def assert_one_line(body: bytes) -> None:
    assert 0 < len(body.strip().splitlines()) == 1
    assert len(body) < 6000
    assert b"Traceback" not in body


def test_a_body_that_is_too_large_is_refused(shared: tuple[Serving, Path]) -> None:
    status, body = ask(shared[0], "POST", api.digests_path("disk"), b" " * (api.MAX_BODY + 1))
    assert status == 413
    assert_one_line(body)


@pytest.mark.parametrize("charset", ["nonsense", "base64", "utf-16"])
def test_a_body_is_json_whatever_its_type_says(shared: tuple[Serving, Path], charset: str) -> None:
    body = b'{"algorithm": "blake3", "ranges": [[0, 1]]}'
    status, _ = ask(shared[0], "POST", api.digests_path("disk"), body, Content_Type=f"text/plain; charset={charset}")
    assert status == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_a_body_that_cannot_be_unpacked_is_refused(shared: tuple[Serving, Path], encoding: str) -> None:
    body = b'{"algorithm": "blake3", "ranges": [[0, 1]]}'
    status, answer = ask(shared[0], "POST", api.digests_path("disk"), body, Content_Encoding=encoding)
    if (status, encoding) != (200, "zstd"):  # unknown encodings are ignored by some versions of the HTTP library
        assert status == 400
        assert_one_line(answer)


@pytest.mark.parametrize(
    "said", [b"\x16\x03\x01\x02\x00\x01", b"NBDMAGIC" * 4, b"GET / HTTP/9.9\r\n\r\n", b"GET\r\n\r\n"]
)
def test_what_is_not_http_is_refused(shared: tuple[Serving, Path], said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", shared[0].ready["control"]), 10) as sock, suppress(ConnectionError):
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass
    assert len(exports(shared[0])) == 4


def test_a_client_that_leaves_in_the_middle_of_a_body_is_no_error(shared: tuple[Serving, Path]) -> None:
    head = f"POST {api.digests_path('disk')} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    for end in (socket.SHUT_WR, socket.SHUT_RDWR):
        with socket.create_connection(("127.0.0.1", shared[0].ready["control"]), 10) as sock:
            sock.sendall(head.encode() + b'{"algorithm": ')
            time.sleep(0.05)
            sock.shutdown(end)
    assert len(exports(shared[0])) == 4
    assert shared[0].errors == ""


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/exports/",
        "/v1/exports/disk",
        "/v1/exports//digests",
        "/v1/exports/nothing/digests",
        "/v1/exports/..%2fdisk/digests",
        "/v1/exports/disk%2f..%2fdisk/digests",
        "/v1/exports/..%2f..%2fetc%2fpasswd/digests",
        "/v1/exports/%2e%2e/digests",
        "/v1/exports/../exports/x/digests",
        "/v1/exports/%00/digests",
        "/v1/exports/disk%00/digests",
        "/v1/exports/%ff%fe/digests",
        "/v1/exports/%0d%0aX:%20y/digests",
        "/v1/exports/" + "x" * 5000 + "/digests",
        "/v1/exports/" + "%F0%9F%92%A9" * 300 + "/digests",
    ],
)
def test_a_name_with_tricks_is_not_found(shared: tuple[Serving, Path], path: str) -> None:
    status, body = ask(shared[0], "POST", path, b'{"algorithm": "blake3", "ranges": [[0, 1]]}')
    assert status in (400, 404, 405)
    assert_one_line(body)


def test_the_wrong_method_is_refused(shared: tuple[Serving, Path]) -> None:
    for method, path in (("GET", api.digests_path("disk")), ("POST", api.EXPORTS), ("DELETE", api.METRICS)):
        status, body = ask(shared[0], method, path)
        assert status == 405
        assert_one_line(body)


numbers = st.integers(-(1 << 70), 1 << 70) | st.integers(0, 9 * MIB) | st.floats() | st.booleans() | st.text(max_size=3)
pairs = st.lists(numbers, max_size=3) | st.none()
bodies = (
    st.fixed_dictionaries(
        {"algorithm": st.sampled_from(["blake3", "sha256", "md5"]) | numbers, "ranges": st.lists(pairs)}
    )
    | st.recursive(st.none() | numbers, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner))
).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60)


@settings(max_examples=120)
@given(body=bodies)
def test_any_body_is_answered_or_refused_in_a_line(shared: tuple[Serving, Path], body: bytes) -> None:
    status, answer = ask(shared[0], "POST", api.digests_path("disk"), body)
    if status == 200:
        assert len(answer.splitlines()) == len(json.loads(body)["ranges"])
    else:
        assert status == 400
        assert_one_line(answer)


# --- events and metrics ---


class Events:
    """Reads the server-sent events of a server."""

    def __init__(self, server: Serving) -> None:
        self.found: list[dict[str, Any]] = []
        self._response = urllib.request.urlopen(server.control + api.EVENTS, timeout=30)
        assert self._response.headers["Content-Type"] == "text/event-stream"
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        kind = ""
        with suppress(OSError, ValueError, http.client.HTTPException), self._response:
            for line in self._response:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    event = json.loads(value)
                    assert event["event"] == kind
                    self.found.append(event)

    def kinds(self) -> list[str]:
        return [event["event"] for event in self.found]


def test_events_show_who_comes_what_moves_and_who_goes(
    parted: Path, serve: Callable[..., Serving], engine: str
) -> None:
    server = serve(parted, options=OPTIONS, engine=engine)
    with RawClient(server, "parted1") as raw:
        server.next("connect")
        late = Events(server)
        wait_until(lambda: late.found, "the first event")
        (known,) = late.found[0]["connections"]
        assert (late.kinds(), known["export"], known["written"]) == (["connections"], "parted1", 0)
        assert raw.write(0, bytes(70_000)) == 0
        assert len(raw.read(0, 100_000)) == 100_000

        def moved() -> bool:
            latest = [event for event in late.found if event["event"] == "connections"][-1]["connections"]
            return bool(latest) and (latest[0]["written"], latest[0]["read"]) == (70_000, 100_000)

        wait_until(moved, "the bytes", 4)
        with RawClient(server, "parted2") as other:
            other.send(3)
            assert other.reply() == 0
        wait_until(lambda: "disconnect" in late.kinds(), "the other's end")
        assert [kind for kind in late.kinds() if kind != "connections"] == ["connect", "flush", "disconnect"]
    wait_until(lambda: late.kinds().count("disconnect") == 2, "the end")
    gone = [event for event in late.found if event["event"] == "disconnect"][-1]
    assert (gone["export"], gone["written"], gone["read"]) == ("parted1", 70_000, 100_000)
    begin = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begin < 4


def test_metrics_count_right(parted: Path, serve: Callable[..., Serving], engine: str) -> None:
    server = serve(parted, options=OPTIONS, engine=engine)
    names = ("parted", "parted1", "parted2")
    found = metrics(server)
    assert {name for _, name in found} == set(names)
    assert set(found.values()) == {0}
    with RawClient(server, "parted2") as raw:
        server.next("connect")
        assert raw.write(0, bytes(4096)) == 0
        assert raw.write(0, bytes(200_000)) == 0
        assert len(raw.read(0, 1000)) == 1000
        found = metrics(server)  # while it is there
        assert found["targetmode_connections", "parted2"] == 1
        assert found["targetmode_written_bytes_total", "parted2"] == 204_096
        assert found["targetmode_read_bytes_total", "parted2"] == 1000
        raw.send(3)
        assert raw.reply() == 0
    nbdsh("h.connect_uri(args[0])\nh.pread(512, 0)\nh.shutdown()", server.uri("parted2"))
    while server.next("disconnect")["read"] != 512:
        pass
    expected = {
        "targetmode_connections": 0,
        "targetmode_accepted_connections_total": 2,
        "targetmode_written_bytes_total": 204_096,
        "targetmode_read_bytes_total": 1512,
        "targetmode_flushes_total": 1,
        "targetmode_errors_total": 0,
    }
    found = metrics(server)
    assert {name: value for (name, export), value in found.items() if export == "parted2"} == expected
    assert {value for (_, export), value in found.items() if export != "parted2"} == {0}
    os.truncate(parted, MIB)
    with suppress(ConnectionError, AssertionError), RawClient(server, "parted") as raw:
        raw.read(7 * MIB, 4096)
    os.truncate(parted, 8 * MIB)


def test_those_who_are_turned_away_are_no_export(image: Path, serve: Callable[..., Serving]) -> None:
    server = serve(image, options=OPTIONS)
    with socket.create_connection(("127.0.0.1", server.port)):
        pass
    server.next("rejected")
    assert {name for _, name in metrics(server)} == {"disk.img"}
