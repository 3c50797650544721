"""What people see of places: no password, no query of a URL, one line whatever a name has in it."""

from __future__ import annotations

import json
import plistlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from restore import cli
from restore.report.shown import shown, without_secrets

SECRETS = ("secretpw", "tok123")
GONE = "http://user:secretpw@127.0.0.1:1/disk.img?token=tok123"
BUCKET = "s3://key:secretpw@127.0.0.1:1/bucket/disk.img?token=tok123"
FILE = "file://user:secretpw@localhost/disk.img?token=tok123"
ODD = ["ctl\x01.img", "-x y\t\udcff.img", "a\n\x1b[2J.img"]


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.fixture
def served(image: Path) -> Iterator[str]:
    """A URL of the image, with a password and a query."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=str(image.parent))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://user:secretpw@127.0.0.1:{server.server_port}/disk.img?token=tok123"
        server.shutdown()


def run(words: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    try:
        status = cli.main(words)
    except SystemExit as end:
        assert isinstance(end.code, int)
        status = end.code
    return status, *capfd.readouterr()


@pytest.mark.parametrize("output", ["", "--json", "--puppetstrings"])
@pytest.mark.parametrize(
    "line",
    [
        "imagescan SERVED",
        "imagescan GONE",
        "imagescan IMAGE --minimize GONE",
        "imagescan IMAGE --sign GONE",
        "info SERVED --erase",
        "info SERVED GONE",
        "info IMAGE --source GONE",
        "GONE",
        "GONE --erase",
        "restore --source SERVED --target OTHER --erase --noprompt --SHA256",
        "restore --source SERVED --target OTHER --erase --noprompt --keep-unmapped",
        "restore --source SERVED --target SERVED --erase --noprompt",
        "restore --source IMAGE --target GONE --target BUCKET --erase --noprompt",
        "restore --source IMAGE --target GONE --erase --noprompt",
        "restore --source IMAGE --target BUCKET --erase --noprompt",
        "restore --source IMAGE --target FILE --erase --noprompt",
        "restore --source IMAGE --target GONE",
        "restore --source IMAGE --target GONE --erase=GONE",
        "verify --source IMAGE --target GONE",
        "verify --source FILE --target OTHER --verbose",
        "verify --source SERVED --target OTHER --verify-signature GONE",
        "capture --source IMAGE --target GONE",
        "capture --source GONE --target OTHER --debug",
    ],
)
def test_no_secret_is_printed(
    line: str, output: str, served: str, image: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.img"
    other.write_bytes(bytes(1 << 20))
    names = {"SERVED": served, "GONE": GONE, "BUCKET": BUCKET, "FILE": FILE, "IMAGE": str(image), "OTHER": str(other)}
    for name, place in names.items():
        line = line.replace(name, place)
    status, out, err = run([*line.split(), *([output] if output else [])], capfd)
    assert status in (1, 2)
    assert out + err
    for secret in SECRETS:
        assert secret not in out + err


@pytest.mark.parametrize("output", ["", "--json", "--plist"])
def test_info_has_a_name_without_secrets(output: str, served: str, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(["info", served, *([output] if output else [])], capfd)
    assert (status, err) == (0, "")
    assert served.replace("user:secretpw@", "").partition("?")[0] in out
    for secret in SECRETS:
        assert secret not in out


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("http://h/x: it is not there", "http://h/x: it is not there"),
        ("http://u:p@h:8/a@b: gone", "http://h:8/a@b: gone"),
        ("http://h:8080/a@b", "http://h:8080/a@b"),
        ("http://u:p/w?@h/x", "http://h/x"),
        ("(as 'https://h/x?a=1&b=2'); say", "(as 'https://h/x'); say"),
        ("http://h/x?a: gone", "http://h/x: gone"),
        ("http:/u:p@h/x is no directory", "http:/h/x is no directory"),
        ("nbd+unix:///x?socket=/run/s, nbd://h/y", "nbd+unix:///x?socket=/run/s, nbd://h/y"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ("/tmp/what?x@y", "/tmp/what?x@y"),
    ],
)
def test_without_secrets(text: str, seen: str) -> None:
    assert without_secrets(text) == seen


def test_shown_is_one_line() -> None:
    assert shown("a\n\x1b[2Jb\udcff\u202e é") == r"a\n\x1b[2Jb\xff\u202e é"


@pytest.mark.parametrize("name", ODD)
def test_an_odd_name_that_is_not_there(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = str(tmp_path / name)
    assert run(["info", place], capfd) == (1, "", f"asr: {shown(place)}: No such file or directory\n")
    status, out, err = run(["imagescan", place, "--json"], capfd)
    assert (status, err) == (1, "")
    assert json.loads(out)["message"] == f"{place}: No such file or directory"
    status, out, err = run(["info", "x", place], capfd)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.removesuffix("\n").isprintable()


@pytest.mark.parametrize("name", ODD)
def test_info_of_an_odd_name(name: str, image: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = str(image.with_name(name))
    image.rename(place)
    status, out, err = run(["info", place], capfd)
    assert (status, err, out.splitlines()[0]) == (0, "", f"Image:        {shown(place)}")
    assert json.loads(run(["info", place, "--json"], capfd)[1])["name"] == place
    assert plistlib.loads(run(["info", place, "--plist"], capfd)[1].encode())["name"] == shown(place)
