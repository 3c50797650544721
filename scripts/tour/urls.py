"""Images on servers: the same that the tests are run against, each with its usual program."""

from __future__ import annotations

import getpass
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.tour.images import IMAGE, SIZE
from scripts.tour.stage import LeftOut, Stage
from tests.restore.source.storage.servers import moto, nginx, smbd, sshd

_PACKED = f"{IMAGE}.zst"
_PASSWORD = "word of mouth"  # noqa: S105 - of a server that lives for a moment


def web(stage: Stage) -> None:
    """nginx: http with ranges, https, and what a web server without ranges can do."""
    stage.need("nginx", "openssl")
    with nginx(_directory(stage, "web")) as server:
        _pack(stage, server.files)
        shutil.copyfile(stage.work / IMAGE, server.files / IMAGE)
        shown = [f"http://127.0.0.1:{server.port}/{IMAGE}", f"http://127.0.0.1:{server.port}/whole/{_PACKED}"]
        stage.say(
            "an image as it is, in ranges over several connections; a compressed one, from a place without ranges"
        )
        for url in shown:
            _restore(stage, url)
        stage.say("https, of an authority that this machine is told of")
        with _environment(SSL_CERT_FILE=str(server.authority)):
            _restore(stage, f"https://127.0.0.1:{server.tls}/{IMAGE}")


def sftp(stage: Stage) -> None:
    """sshd."""
    stage.need("sshd", "ssh-keygen")
    directory = _directory(stage, "sftp")
    with sshd(directory) as share, _environment(HOME=str(directory / "home")):
        _pack(stage, share.files)
        stage.say("with the key in ~/.ssh, and the server's in ~/.ssh/known_hosts")
        _restore(stage, f"sftp://127.0.0.1:{share.port}{share.files}/{_PACKED}")


def smb(stage: Stage) -> None:
    """smbd."""
    stage.need("smbd", "smbpasswd")
    with smbd(_directory(stage, "smb"), getpass.getuser(), _PASSWORD) as share:
        _pack(stage, share.files)
        login = stage.work / "home/.netrc"
        login.write_text(f'machine 127.0.0.1 login {getpass.getuser()} password "{_PASSWORD}"\n')
        login.chmod(0o600)
        stage.say("user name and password are in ~/.netrc")
        _restore(stage, f"smb://127.0.0.1:{share.port}/images/{_PACKED}")
        login.unlink()


def s3(stage: Stage) -> None:
    """An object store: moto's server, which speaks S3."""
    with moto(_directory(stage, "s3")) as (port, put):
        _pack(stage, stage.work)
        put(_PACKED, (stage.work / _PACKED).read_bytes())
        stage.say("AWS_ENDPOINT_URL and the keys are in the environment, as aws(1) has them")
        with _environment(
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
            AWS_ACCESS_KEY_ID="testing",
            AWS_SECRET_ACCESS_KEY="testing",  # noqa: S106 - moto takes any
            AWS_DEFAULT_REGION="us-east-1",
        ):
            _restore(stage, f"s3://bucket/{_PACKED}")


def _directory(stage: Stage, name: str) -> Path:
    """A server's directory, gone with the stop."""
    path = stage.work / name
    path.mkdir(mode=0o755)
    stage.stack.callback(shutil.rmtree, path, ignore_errors=True)
    return path


def _pack(stage: Stage, directory: Path) -> None:
    """The compressed image, there."""
    path = stage.work / _PACKED
    if not path.exists():
        stage.need("zstd")
        stage.quiet("zstd", "-q", IMAGE, "-o", _PACKED)
    if directory != stage.work:
        shutil.copy(path, directory)


def _restore(stage: Stage, url: str) -> None:
    disk = stage.disk(SIZE)
    stage.show(f"asr restore --source {url} --target {disk.name} --erase --noprompt", says="verified", last=1)
    stage.check(f"cmp {IMAGE} {disk.name}", "not a byte differs")


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """More of it, for as long as the context lasts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ |= values
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def reachable(stop: Callable[[Stage], None]) -> Callable[[Stage], None]:
    """A stop that is left out where its server does not start."""

    def make(stage: Stage) -> None:
        try:
            stop(stage)
        except AssertionError as error:
            raise LeftOut(f"its server does not run here: {error}") from None

    return make
