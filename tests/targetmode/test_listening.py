"""Where a server listens: addresses, loopback or not, Unix sockets, sockets handed over, the control API's port."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targetmode.listening import (
    ListenError,
    activated_sockets,
    free_of_consent,
    is_loopback,
    listen_tcp,
    listen_unix,
    parse_address,
)
from tests.serving import ROOT, TARGETMODE, RawClient, Result, Serving, nbdsh, run, targetmode
from tests.support import listens, wait_until
from tests.targetmode.conftest import MIB

# A network namespace with an address that is not loopback, and with nobody else's servers.
ALONE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && ip addr add 192.0.2.10/32 dev lo && exec "$@"', "sh"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost", ("localhost", 10809)),
        ("192.0.2.1:80", ("192.0.2.1", 80)),
        ("host:", ("host", 10809)),
        ("host:0", ("host", 0)),
        ("::1", ("::1", 10809)),
        ("[::1]", ("::1", 10809)),
        ("[2001:db8::1]:65535", ("2001:db8::1", 65535)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text, 10809) == expected


@pytest.mark.parametrize(
    "text",
    ["", ":", ":80", "[]", "[]:80", "[::1", "[::1]80", "h:65536", "h:-1", "h: 1", "h:1x", "h:²", "h:" + "9" * 5000],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not|limit"):
        parse_address(text, 10809)


@given(st.text(alphabet="[]:%.09afz-/ ²", max_size=20) | st.text(max_size=20))
def test_any_text_is_an_address_or_is_not(text: str) -> None:
    try:
        host, port = parse_address(text, 1)
    except ValueError:
        return
    assert host
    assert 0 <= port < 1 << 16


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.255.1.2", True),
        ("::1", True),
        ("localhost", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("::ffff:192.0.2.1", False),
        ("192.0.2.1", False),
        ("2001:db8::1", False),
        ("no such host", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_both_families_of_a_name_get_the_same_port() -> None:
    sockets = listen_tcp("localhost", 0)
    try:
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
        assert free_of_consent(sockets) == []
    finally:
        for sock in sockets:
            sock.close()


def test_a_taken_port_is_refused_and_nothing_stays_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        with pytest.raises(ListenError, match="Address already in use") as caught:
            listen_tcp("localhost", other.getsockname()[1])
        assert caught.value.taken
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize("host", ["a" * 70 + ".b", "name.invalid", "192.0.2.77"])
def test_a_host_that_is_none_of_ours_is_refused(host: str) -> None:
    with pytest.raises(ListenError, match="cannot listen on"):
        listen_tcp(host, 0)


def test_a_unix_socket_is_only_for_its_user(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listen_unix(str(path)):
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_unix_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    listen_unix(path).close()
    with listen_unix(path):
        assert listens(path)


def test_a_unix_socket_of_a_live_server_is_not_replaced_not_even_of_a_busy_one(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    clients = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(0)
        with pytest.raises(ListenError, match="a server or a file is there already"):
            listen_unix(path)
        server.accept()[0].close()  # of the look at it
        for _ in range(5):  # until its backlog is full
            client = socket.socket(socket.AF_UNIX)
            clients.append(client)
            client.setblocking(False)
            if client.connect_ex(path) == errno.EAGAIN:
                break
        else:
            pytest.fail("the backlog does not fill")
        with pytest.raises(ListenError, match="a server or a file is there already"):
            listen_unix(path)
        server.accept()[0].close()
    for client in clients:
        client.close()


@pytest.mark.parametrize("kind", ["file", "directory", "no directory", "too long"])
def test_a_path_that_cannot_be_a_unix_socket(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("x" * 120 if kind == "too long" else "thing")
    match kind:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "no directory":
            path = path / "socket"
    with pytest.raises(ListenError, match=r"cannot listen on [^:]*: (?!None)."):
        listen_unix(str(path))
    assert kind != "file" or path.read_text() == "precious"


@pytest.mark.parametrize(("pid", "count"), [("1", "1"), ("self", ""), ("self", "0"), ("self", "²"), ("self", "-1")])
def test_nothing_was_handed_over(monkeypatch: pytest.MonkeyPatch, pid: str, count: str) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()) if pid == "self" else pid)
    monkeypatch.setenv("LISTEN_FDS", count)
    monkeypatch.setenv("LISTEN_FDNAMES", "nbd")
    assert activated_sockets() == []
    assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & os.environ.keys()


# --- through the program ---

HAND_OVER = """
import os, socket, sys
made = []
for word in sys.argv[1].split(","):
    if word == "file":
        made.append(os.open("/dev/null", os.O_RDONLY))
        continue
    if word == "closed":
        continue
    sock = socket.socket(socket.AF_UNIX if "/" in word else socket.AF_INET)
    sock.bind(word if "/" in word else ("127.0.0.1", int(word.removesuffix("q"))))
    if not word.endswith("q"):
        sock.listen()
    made.append(sock.detach())
for place, fd in enumerate([os.dup2(fd, 50 + n) for n, fd in enumerate(made)]):
    os.dup2(fd, 3 + place)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(sys.argv[1].split(","))))
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_sockets_that_are_handed_over(tmp_path: Path, image: Path, engine: str) -> None:
    """Of both kinds; events are told on standard error, since standard output may be the other side's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = tmp_path / "socket"
    words = [sys.executable, "-c", HAND_OVER, f"{port},{path}", *TARGETMODE, "serve", "--json", "--engine", engine]
    process = subprocess.Popen([*words, str(image)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    try:
        wait_until(lambda: listens(str(path)), "start")
        for uri in (f"nbd://127.0.0.1:{port}", f"nbd+unix:///disk.img?socket={path}"):
            assert run("nbdinfo", "--size", uri).out == f"{MIB}\n"
        process.terminate()
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (0, b"")
    events = [json.loads(line) for line in err.splitlines()]
    assert events[0]["event"] == "ready"
    assert events[0]["exports"][0]["uris"] == [
        f"nbd://127.0.0.1:{port}/disk.img",
        f"nbd+unix:///disk.img?socket={path}",
    ]
    assert (events[-1]["event"], events[-1]["safe"]) == ("stopped", True)
    assert path.exists()  # whose it is, is not ours to remove


@pytest.mark.parametrize("what", ["file", "closed", "0q"])
def test_what_is_handed_over_has_to_listen(image: Path, what: str) -> None:
    result = run(sys.executable, "-c", HAND_OVER, what, *TARGETMODE, "serve", image, check=False, cwd=ROOT)
    assert (result.status, result.out) == (1, "")
    assert "handed over" in result.err
    assert len(result.err.splitlines()) == 1


def inside(server: Serving, *command: str | Path) -> Result:
    return run("nsenter", f"--target={server.process.pid}", "--net", *command)


def test_by_default_it_is_loopback_on_the_usual_ports(root: None, image: Path, serve: Callable[..., Serving]) -> None:
    """Both families; a second server finds the control port taken, takes another, and says so in-band."""
    first = serve(image, options=[], prefix=ALONE)
    assert first.ready["control"] == 10810
    assert first.ready["exports"][0]["uris"] == ["nbd://127.0.0.1/disk.img"]
    for uri in ("nbd://127.0.0.1", "nbd://[::1]/disk.img"):
        told = json.loads(inside(first, "nbdinfo", "--json", "--no-content", uri).out)
        assert "targetmode:control=10810" in told["exports"][0]["contexts"]
    other = image.with_name("other.img")
    other.write_bytes(b"y" * 8192)
    join = ["nsenter", f"--target={first.process.pid}", "--net"]
    second = serve(other, options=["--listen=127.0.0.1:12000", "--listen=[::1]:12000"], prefix=join)
    port = second.ready["control"]
    assert port not in (10809, 10810, 12000)
    for uri in ("nbd://127.0.0.1:12000", "nbd://[::1]:12000/other.img"):
        told = json.loads(inside(second, "nbdinfo", "--json", "--no-content", uri).out)
        assert f"targetmode:control={port}" in told["exports"][0]["contexts"]
    for host in ("127.0.0.1", "[::1]"):
        assert json.loads(inside(second, *get(f"http://{host}:{port}/v1/exports")).out)["exports"][0]["size"] == 8192
    third = other.with_name("third.img")
    third.write_bytes(b"z" * 4096)
    taken = run(*join, *TARGETMODE, "serve", "--control=off", third, check=False, cwd=ROOT)
    assert (taken.status, taken.err) == (1, "targetmode: cannot listen on 127.0.0.1:10809: Address already in use\n")


def test_somebody_elses_server_on_the_ipv6_side_is_no_reason_to_go_without(
    root: None, image: Path, serve: Callable[..., Serving]
) -> None:
    first = serve(image, options=["--listen=::1", "--control=off"], prefix=ALONE)
    other = image.with_name("other.img")
    other.write_bytes(b"y" * 8192)
    join = ["nsenter", f"--target={first.process.pid}", "--net"]
    result = run(*join, *TARGETMODE, "serve", "--control=off", other, check=False, cwd=ROOT)
    assert (result.status, result.err) == (1, "targetmode: cannot listen on ::1:10809: Address already in use\n")


def get(url: str) -> list[str]:
    return [sys.executable, "-c", f"import urllib.request as r; print(r.urlopen({url!r}, timeout=10).read().decode())"]


@pytest.mark.parametrize("option", ["--listen=192.0.2.10:0", "--listen=0.0.0.0:0", "--listen=[::]:0"])
def test_an_address_that_others_reach_needs_consent_and_is_warned_of(
    root: None, image: Path, serve: Callable[..., Serving], option: str, engine: str
) -> None:
    words = ["serve", "--engine", engine, "--control=off", option]
    result = run(*ALONE, *TARGETMODE, *words, image, check=False, cwd=ROOT)
    assert (result.status, result.out) == (1, "")
    (line,) = result.err.splitlines()
    host = option.removeprefix("--listen=").removesuffix(":0").strip("[]")
    assert line.startswith(f"targetmode: {host} can be reached from other machines")
    assert "--insecure" in line

    server = serve(image, engine=engine, options=["--insecure", "--control=off", option], prefix=ALONE, clean=False)
    warning = server.errors
    assert warning.startswith(f"targetmode: warning: {host} is not loopback")
    assert len(warning.splitlines()) == 1
    if "0.0.0.0" not in option and "::" not in option:
        assert inside(server, "nbdinfo", "--size", server.uri(None, "192.0.2.10")).out == f"{MIB}\n"
    assert server.stop() == 0
    assert server.errors == warning


def test_the_control_api_needs_consent_too(root: None, image: Path) -> None:
    words = ["serve", "--control=192.0.2.10:0", "--listen=127.0.0.1:0"]
    result = run(*ALONE, *TARGETMODE, *words, image, check=False, cwd=ROOT)
    assert result.status == 1
    assert "192.0.2.10 can be reached" in result.err


def test_without_a_control_api_nothing_listens_and_nothing_is_told(image: Path, serve: Callable[..., Serving]) -> None:
    server = serve(image)
    assert server.ready["control"] is None
    assert contexts(server) == ["base:allocation"]


def contexts(server: Serving) -> list[str]:
    """The metadata contexts that are listed for the queries `base:` and `targetmode:`."""
    code = """
h.set_opt_mode(True)
h.connect_uri(args[0])
h.add_meta_context("base:")
h.add_meta_context("targetmode:")
found = []
h.opt_list_meta_context(lambda name: found.append(name))
print(*found)
h.opt_abort()
"""
    return nbdsh(code, server.uri()).out.split()


def test_contexts_say_where_the_control_api_is(image: Path, serve: Callable[..., Serving]) -> None:
    server = serve(image, options=["--listen=127.0.0.1:0", "--control=127.0.0.1:0"])
    port, session = server.ready["control"], server.ready["session"]
    assert contexts(server) == ["base:allocation", f"targetmode:control={port}", f"targetmode:session={session}"]
    told = json.loads(run(*get(f"{server.control}/v1/exports")).out)
    assert (told["session"], told["exports"][0]["name"]) == (session, "disk.img")


def test_under_nbdkit_descriptions_say_where_the_control_api_is(image: Path, serve: Callable[..., Serving]) -> None:
    server = serve(image, options=["--listen=127.0.0.1:0", "--control=127.0.0.1:0"], engine="nbdkit")
    told = json.loads(run("nbdinfo", "--list", "--json", "--no-content", server.uri("")).out)
    end = f" targetmode:control={server.ready['control']} targetmode:session={server.ready['session']}"
    assert told["exports"][0]["description"].endswith(end)


def test_a_unix_socket_through_the_program(
    tmp_path: Path, image: Path, serve: Callable[..., Serving], engine: str
) -> None:
    path = tmp_path / "with space's"
    options: list[Any] = [f"--socket={path}", "--control=off"]
    server = serve(image, options=options, engine=engine, clean=False)
    uri = server.uri(None, "unix")
    assert uri == f"nbd+unix:///disk.img?socket={tmp_path}/with%20space%27s"
    assert run("nbdinfo", "--size", uri).out == f"{MIB}\n"
    other = tmp_path / "other.img"
    other.write_bytes(b"y" * 4096)
    result = targetmode("serve", *options, other)
    assert (result.status, result.err) == (
        1,
        f"targetmode: cannot listen on {path}: a server or a file is there already\n",
    )
    assert run("nbdinfo", "--size", uri).out == f"{MIB}\n"

    server.stop(signal.SIGKILL)
    assert path.is_socket()
    wait_until(lambda: not listens(str(path)), "the end of the engine")
    again = serve(other, options=options, engine=engine)
    assert run("nbdinfo", "--size", again.uri(None, "unix")).out == "4096\n"
    again.stop()
    assert not path.exists()


def test_a_failure_leaves_no_unix_socket(tmp_path: Path, image: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = [f"--socket={tmp_path / 'socket'}", f"--listen=127.0.0.1:{taken.getsockname()[1]}"]
        assert targetmode("serve", "--control=off", *options, image).status == 1
    assert not (tmp_path / "socket").exists()


def test_one_client_more_than_there_may_be_is_turned_away(
    image: Path, serve: Callable[..., Serving], engine: str
) -> None:
    options = ["--listen=127.0.0.1:0", "--control=off", "--max-connections=2"]
    server = serve(image, options=options, engine=engine)
    with RawClient(server) as first, RawClient(server) as second:
        with pytest.raises((ConnectionError, AssertionError)), RawClient(server, timeout=5) as third:
            third.read(0, 512)
        for client in (first, second):
            assert client.read(0, 512) == image.read_bytes()[:512]
    deadline = time.monotonic() + 5
    while True:  # when they have left, others may come
        try:
            with RawClient(server) as client:
                assert client.size == MIB
                break
        except ConnectionError:
            assert time.monotonic() < deadline
