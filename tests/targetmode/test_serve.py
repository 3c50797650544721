"""A run of `targetmode serve` from beginning to end: what it tells, how it stops, what is killed."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import pytest

from nbd.wire import Command
from tests.serving import ROOT, TARGETMODE, RawClient, Serving, alive, nbdsh, pattern, run, serving
from tests.support import assert_same_bytes, loop_device, wait_until
from tests.targetmode.conftest import MIB

EIO: Final = 5
ESHUTDOWN: Final = 108
WRITE, READ, FLUSH = int(Command.WRITE), int(Command.READ), int(Command.FLUSH)


# --- what is told ---


def test_events_of_a_client_that_reads_writes_and_flushes(
    image: Path, serve: Callable[..., Serving], engine: str
) -> None:
    server = serve(image, engine=engine, options=["--listen=127.0.0.1:0", "--control=off", "--name=bench 1"])
    assert server.ready["name"] == "bench 1"
    assert server.ready["control"] is None
    (export,) = server.ready["exports"]
    assert {key: export[key] for key in ("name", "size", "model", "read_only")} == {
        "name": "disk.img",
        "size": MIB,
        "model": "image file",
        "read_only": False,
    }
    code = """
h.connect_uri(args[0])
h.pwrite(bytes(70_000), 0)
h.pwrite(bytes(512), 512)
h.zero(4096, 8192)
h.pread(100_000, 0)
h.pread(512, 0)
h.trim(4096, 4096)
h.flush()
h.shutdown()
"""
    nbdsh(code, server.uri())
    gone = server.next("disconnect")
    assert (gone["export"], gone["reason"]) == ("disk.img", "disconnected")
    assert (gone["written"], gone["read"]) == (70_000 + 512 + 4096, 100_512)
    assert [event["event"] for event in server.events] == ["ready", "connect", "flush", "disconnect"]
    if engine == "builtin":
        assert re.fullmatch(r"127\.0\.0\.1:\d+", gone["peer"])
        assert {event["peer"] for event in server.events[1:]} == {gone["peer"]}
    assert server.stop() == 0
    assert server.events[-1].items() >= {"event": "stopped", "export": "disk.img", "safe": True}.items()


def test_a_disk_that_fails_is_told_and_the_connection_goes_on(
    image: Path, serve: Callable[..., Serving], engine: str
) -> None:
    server = serve(image, engine=engine)
    with RawClient(server) as client:
        os.truncate(image, MIB // 2)
        client.send(READ, MIB - 4096, 4096)
        assert client.reply() == EIO
        assert client.read(0, 512) == image.read_bytes()[:512]
    event = server.next("error")
    assert (event["command"], event["offset"], event["length"]) == ("READ", MIB - 4096, 4096)
    assert event["message"]
    os.truncate(image, MIB)


def test_a_client_that_speaks_something_else_is_turned_away(image: Path, serve: Callable[..., Serving]) -> None:
    server = serve(image)
    with socket.create_connection(("127.0.0.1", server.port), 5) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: nowhere\r\n\r\n")
        with suppress(ConnectionResetError):
            while sock.recv(4096):
                pass
    assert "client flags" in server.next("rejected")["reason"]
    with RawClient(server) as client:
        assert client.size == MIB


def people(*disks: Path, options: list[str], engine: str) -> subprocess.Popen[str]:
    words = [*TARGETMODE, "serve", "--control=off", "--engine", engine, *options, *map(str, disks)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def until_ready(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or not lines[-1].startswith("Ready"):
        line = process.stdout.readline()
        assert line, lines
        lines.append(line.rstrip("\n"))
    return lines


@pytest.mark.parametrize("name", ["parted", "it's $(here); a disk"])
def test_people_are_told_size_model_and_lines_that_work_when_pasted(parted: Path, engine: str, name: str) -> None:
    image = parted.rename(parted.with_name(name))
    options = ["--listen=127.0.0.1:0", "--listen=[::1]:0", f"--socket={image.with_name('a socket')}"]
    process = people(image, options=options, engine=engine)
    try:
        lines = until_ready(process)
        text = "\n".join(lines)
        assert f"{name}   8.0 MiB, image file, from {image}" in lines
        assert "gpt: 1 unknown 2.0 MiB, 2 unknown 1.0 MiB" in text
        assert f"{name}1   partition 1 of {name}, 2.0 MiB" in lines
        ways, exports = 3, 3
        for kind in ("nbdinfo", "qemu-img info"):
            found = [line.strip() for line in lines if line.strip().startswith(kind)]
            assert len(found) == ways * exports
            sizes = [run("sh", "-c", line).out for line in found]
            assert sum(("2097152" in out) or ("2 MiB (2097152" in out) for out in sizes) == ways
        for program in ("asr restore --source IMAGE --target nbd", "nbd-client "):
            found = [line.strip() for line in lines if line.strip().startswith(program.rstrip("nbd"))]
            assert len(found) == ways * exports
            for line in found:
                words = shlex.split(line)
                assert len(words) == (7 if program.startswith("asr") else 6)
        process.terminate()
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[-1] == f"{name}: safe to disconnect"
    assert re.search(r"^\d\d:\d\d:\d\d  .*: .* connected$", out, re.MULTILINE)
    assert re.search(r"left \(disconnected\), wrote 0 bytes, read ", out)


def test_a_read_only_disk_has_nothing_to_restore_onto(image: Path) -> None:
    process = people(image, options=["--listen=127.0.0.1:0", "--read-only"], engine="builtin")
    try:
        text = "\n".join(until_ready(process))
    finally:
        process.terminate()
        process.communicate(timeout=10)
    assert "asr restore" not in text
    assert "read-only" in text


@pytest.mark.parametrize("as_json", [True, False])
def test_when_nobody_reads_any_more_it_serves_on(image: Path, as_json: bool) -> None:
    process = people(
        image, options=[f"--socket={image.with_name('s')}", *(["--json"] if as_json else [])], engine="builtin"
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        if not as_json:
            until_ready(process)
        process.stdout.close()
        uri = f"nbd+unix:///?socket={image.with_name('s')}"
        for _ in range(3):
            assert run("nbdinfo", "--size", uri).out == f"{MIB}\n"
        process.terminate()
        assert process.wait(10) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


@pytest.mark.parametrize("engine_option", ["builtin", "nbdkit"])
def test_a_reader_that_stops_reading_stops_neither_a_disk_nor_the_end(image: Path, engine_option: str) -> None:
    """A terminal after Ctrl-S, a pipe that is full."""
    process = people(image, options=[f"--socket={image.with_name('s')}", "--json"], engine=engine_option)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        code = "h.connect_uri(args[0])\nfor _ in range(3000):\n    h.flush()\nh.shutdown()"
        nbdsh(code, f"nbd+unix:///?socket={image.with_name('s')}", timeout=30)
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()


# --- how it ends ---


@pytest.mark.parametrize("whole_group", [False, True])
@pytest.mark.parametrize("length", [4096, MIB])
def test_requests_in_flight_finish(
    image: Path, serve: Callable[..., Serving], engine: str, whole_group: bool, length: int
) -> None:
    """SIGTERM, or Ctrl-C to every process of the group, while half of a write has arrived."""
    server = serve(image, engine=engine)
    data = pattern(length, seed=9)
    with RawClient(server) as client:
        client.write(0, bytes(512))
        client.send(WRITE, 0, length, data[: length // 2])
        time.sleep(0.1)
        if whole_group:
            os.killpg(server.process.pid, signal.SIGINT)
        else:
            server.process.terminate()
        time.sleep(0.2)
        if engine == "builtin":
            with pytest.raises(ConnectionRefusedError):
                RawClient(server)
        client.sock.sendall(data[length // 2 :])
        error = client.reply()
        assert error in ((0,) if engine == "builtin" else (0, ESHUTDOWN))
        begin = time.monotonic()
        assert server.stop(None) == 0
        assert time.monotonic() - begin < 4
    if not error:
        assert_same_bytes(image.read_bytes()[:length], data)
    gone = next(event for event in server.events if event["event"] == "disconnect")
    assert gone["written"] == 512 + (0 if error else length)
    assert server.events[-1]["event"] == "stopped"


def test_an_idle_client_does_not_keep_it(image: Path, serve: Callable[..., Serving], engine: str) -> None:
    server = serve(image, engine=engine)
    with RawClient(server) as client, socket.create_connection(("127.0.0.1", server.port)):
        client.write(0, bytes(512))
        begin = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begin < 3
    assert server.events[-1]["safe"] is True


def test_a_client_that_never_stops_does_not_keep_it(image: Path, serve: Callable[..., Serving]) -> None:
    """What was acknowledged is there."""
    server = serve(image)
    code = """
h.connect_uri(args[0])
acknowledged = 0
try:
    while True:
        acknowledged += 1
        h.pwrite(acknowledged.to_bytes(8, "big") * 64, acknowledged % 2048 * 512)
except nbd.Error as error:
    print(acknowledged - 1, error.errno)
"""
    words = [
        "/usr/bin/python3",
        "-I",
        "-c",
        "import nbd, sys\nh = nbd.NBD()\nargs = sys.argv[1:]\n" + code,
        server.uri(),
    ]
    client = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd="/")
    try:
        time.sleep(0.7)
        begin = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begin < 4
        out, _ = client.communicate(timeout=10)
    finally:
        client.kill()
        client.wait()
    last = int(out.split()[0])
    assert last > 100
    with image.open("rb") as file:
        file.seek(last % 2048 * 512)
        assert int.from_bytes(file.read(8), "big") >= last


def test_once_it_ends_with_the_last_client(image: Path, serve: Callable[..., Serving], engine: str) -> None:
    server = serve(image, engine=engine, options=["--listen=127.0.0.1:0", "--control=off", "--once"])
    with RawClient(server) as first:
        first.write(0, b"1" * 512)
        with RawClient(server) as second:
            second.write(512, b"2" * 512)
        server.next("disconnect")
        time.sleep(0.3)
        assert server.process.poll() is None
        assert first.read(512, 512) == b"2" * 512
    assert server.stop(None) == 0
    assert server.events[-1]["event"] == "stopped"
    assert image.read_bytes()[:1024] == b"1" * 512 + b"2" * 512


def test_kill_9_of_the_main_process_leaves_nothing(
    root: None, tmp_path: Path, serve: Callable[..., Serving], engine: str
) -> None:
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(MIB))
    with loop_device(backing) as device:
        server = serve(device, engine=engine, clean=False)
        with RawClient(server) as client:
            client.write(0, b"k" * 512)
            others = server.descendants()
            assert len(others) == (2 if engine == "builtin" else 1)
            server.stop(signal.SIGKILL)
            wait_until(lambda: not any(map(alive, others)), "the end of every process")
        again = serve(device, engine=engine)
        with RawClient(again) as client:
            assert client.read(0, 512) == b"k" * 512
        again.stop()


def test_nobody_waits_for_the_control_api_of_a_main_process_that_was_killed(image: Path) -> None:
    """The processes that it leaves for a moment do not hold the socket, where nobody would answer."""
    options = ("--listen=127.0.0.1:0", "--control=127.0.0.1:0")
    with (
        serving(image, options=options, errors=image.with_suffix(".errors"), clean=False) as server,
        ExitStack() as stack,
    ):
        client = stack.enter_context(RawClient(server))
        assert client.read(0, 512) == image.read_bytes()[:512]
        others = server.descendants()
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
            stack.callback(os.kill, pid, signal.SIGCONT)
        server.stop(signal.SIGKILL)
        assert all(map(alive, others))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.ready["control"]), timeout=5)
    wait_until(lambda: not any(map(alive, others)), "the end of every process")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_the_death_of_the_engine_is_told(
    image: Path, serve: Callable[..., Serving], engine: str, number: signal.Signals
) -> None:
    """No word of safety before the last connection has ended."""
    server = serve(image, engine=engine, clean=False)
    with RawClient(server) as client:
        client.write(0, b"x" * 512)
        others = server.descendants()
        os.kill(server.engine(), number)
        assert server.stop(None) == 1
        assert not any(map(alive, others))
    server.check()
    kinds = [event["event"] for event in server.events]
    assert kinds == ["ready", "connect", "disconnect", "stopped"]
    assert server.events[2]["written"] == 512
    assert f"the server ended by itself (status -{int(number)})" in server.errors
    assert "Traceback" not in server.errors


def test_a_word_of_safety_waits_for_writes_that_a_dead_listener_left_in_flight(
    image: Path, serve: Callable[..., Serving]
) -> None:
    server = serve(image, clean=False)
    data = pattern(MIB, seed=11)
    with RawClient(server) as client:
        client.send(WRITE, 0, MIB, data[: MIB // 2])
        time.sleep(0.1)
        os.kill(server.engine(), signal.SIGKILL)
        time.sleep(0.5)
        assert server.process.poll() is None
        client.sock.sendall(data[MIB // 2 :])
        assert client.reply() == 0
        assert server.stop(None) == 1
    assert_same_bytes(image.read_bytes(), data)
    assert [event["event"] for event in server.events[-2:]] == ["disconnect", "stopped"]


def test_the_death_of_a_connection_is_told_and_its_place_is_free(image: Path, serve: Callable[..., Serving]) -> None:
    options = ["--listen=127.0.0.1:0", "--control=off", "--max-connections=1"]
    server = serve(image, options=options)
    for number in (signal.SIGKILL, signal.SIGABRT):
        with RawClient(server) as client:
            client.write(0, b"x" * 512)
            os.kill(server.connection(), number)
            gone = server.next("disconnect")
            assert (gone["reason"], gone["written"]) == ("its process was killed", 512)
            with pytest.raises(ConnectionError):
                client.read(0, 512)
        wait_until(lambda: not server.descendants()[1:], "the end of the connection")
    with RawClient(server) as client:
        assert client.read(0, 512) == b"x" * 512


def test_once_ends_with_a_connection_that_is_killed(image: Path, serve: Callable[..., Serving]) -> None:
    server = serve(image, options=["--listen=127.0.0.1:0", "--control=off", "--once"])
    with RawClient(server) as client:
        client.read(0, 512)
        os.kill(server.connection(), signal.SIGKILL)
        assert server.stop(None) == 0


def test_somebody_elses_children_are_left_alone(image: Path, tmp_path: Path) -> None:
    """A shell that starts something in the background and then becomes the server."""
    words = ["sh", "-c", 'sleep 60 >/dev/null & echo $! >"$0"; exec "$@"', str(tmp_path / "pid"), *TARGETMODE, "serve"]
    process = subprocess.Popen(
        [*words, f"--socket={tmp_path / 's'}", "--control=off", str(image)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        until_ready(process)
        stranger = int((tmp_path / "pid").read_text())
        process.terminate()
        process.communicate(timeout=5)
        assert process.returncode == 0
        assert alive(stranger)
    finally:
        process.kill()
        process.wait()
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


# --- what it needs ---


def test_a_connections_memory_stays_small(tmp_path: Path, serve: Callable[..., Serving]) -> None:
    """After 1 GiB, in large and small pieces, in both directions."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(64 * MIB))
    server = serve(image)
    code = """
h.connect_uri(args[0])
data = os.urandom(32 << 20)
for _ in range(6):
    h.pwrite(data, 0)
    h.pread(32 << 20, 32 << 20)
    h.pwrite(data, 32 << 20)
    h.pread(32 << 20, 0)
for piece in range(0, 64 << 20, 65536):
    h.pwrite(data[:65536], piece)
    h.pread(65536, piece)
for piece in range(0, 64 << 20, 300_000):
    h.pread(300_000, min(piece, (64 << 20) - 300_000))
print("moved", flush=True)
sys.stdin.read()
h.shutdown()
"""
    words = ["/usr/bin/python3", "-I", "-c", "import nbd, sys, os\nh = nbd.NBD()\nargs = sys.argv[1:]\n" + code]
    client = subprocess.Popen([*words, server.uri()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == "moved\n"
        rollup = Path(f"/proc/{server.connection()}/smaps_rollup").read_text()
    finally:
        client.communicate()
    (kibibytes,) = re.findall(r"^Rss:\s+(\d+) kB", rollup, re.MULTILINE)
    assert int(kibibytes) <= 40 * 1024
    gone = server.next("disconnect")
    assert gone["written"] + gone["read"] >= 900 * MIB


def test_a_stopped_server_says_what_a_failed_flush_means(
    root: None, tmp_path: Path, serve: Callable[..., Serving]
) -> None:
    """A loop device over a file on a file system that is full: what was written cannot be kept."""
    directory = tmp_path / "small"
    directory.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", directory)
    try:
        backing = directory / "backing"
        with backing.open("wb") as file:
            file.truncate(4 * MIB)
        with loop_device(backing) as device:
            server = serve(device, clean=False)
            with RawClient(server) as client:
                assert client.write(0, os.urandom(2 * MIB)) == 0
            server.next("disconnect")
            assert server.stop() == 1
            stopped = server.events[-1]
            assert (stopped["event"], stopped["safe"]) == ("stopped", False)
            assert stopped["message"]
            assert f"targetmode: {device.name}: NOT safe, data are lost: " in server.errors
            failed = next(event for event in server.events if event["event"] == "error")
            assert failed["command"] == "FLUSH"
            server.check()
    finally:
        run("umount", "--lazy", directory)


def test_interrupted_before_it_is_ready_it_says_nothing_wrong(image: Path) -> None:
    """Whenever the signal comes: no traceback, and the disk is free afterwards."""
    for delay in (0.05, 0.15, 0.25, 0.35):
        process = people(image, options=["--listen=127.0.0.1:0"], engine="builtin")
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=10)
        assert process.returncode in (0, -signal.SIGTERM)
        assert "Traceback" not in err
    assert run("flock", "--nonblock", image, "true").status == 0
