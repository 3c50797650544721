"""Servers that images are read from: nginx, smbd and sshd of the system, moto; what meddles with a connection; liars.

Debian packages: nginx-light, openssh-server, openssl, samba.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self
from urllib.request import Request, urlopen

from tests.serving import run
from tests.support import free_port, listens, running

_SBIN: Final = "/usr/sbin"
_PIECE: Final = 16 << 10


@dataclass(frozen=True, slots=True)
class Nginx:
    """An nginx that runs.

    Attributes:
        files: the directory that it serves.
        port: of http, on 127.0.0.1 and ::1.
        tls: port of https.
        authority: the certificate that vouches for it.
    """

    files: Path
    port: int
    tls: int
    authority: Path
    log: Path

    def url(self, name: str) -> str:
        """Where a file is."""
        return f"http://127.0.0.1:{self.port}/{name}"

    def requests(self) -> list[str]:
        """What was asked of it so far, as `status range request`."""
        return self.log.read_text().splitlines()


@contextmanager
def nginx(directory: Path) -> Iterator[Nginx]:
    """Start one; its configuration below says what is where."""
    files = directory / "files"
    files.mkdir()
    port, tls = free_port(), free_port()
    authority = _certificates(directory)
    (directory / "users").write_text("ann:{PLAIN}secret word\n")
    temporary = "".join(
        f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = directory / "nginx.conf"
    config.write_text(f"""
        daemon off; pid {directory}/pid; error_log {directory}/errors; worker_processes 1;
        {"user root;" if os.geteuid() == 0 else ""}
        events {{ worker_connections 128; }}
        http {{
          {temporary}
          log_format short '$status $http_range $request';
          access_log {directory}/log short;
          sendfile on; default_type application/octet-stream;
          server {{
            listen 127.0.0.1:{port}; listen [::1]:{port};
            root {files};
            location /whole/ {{ alias {files}/; max_ranges 0; }}
            location /blind/ {{ alias {files}/; max_ranges 0; etag off; }}
            location /private/ {{ alias {files}/; auth_basic "images"; auth_basic_user_file {directory}/users; }}
            location /moved/ {{ rewrite ^/moved/(.*)$ /$1 redirect; }}
            location /upgrade/ {{ rewrite ^/upgrade/(.*)$ https://127.0.0.1:{tls}/$1 redirect; }}
            location /loop {{ return 302 /loop; }}
            location /forbidden {{ return 403; }}
            location /failing {{ return 503; }}
            location /encoded/ {{ alias {files}/; add_header Content-Encoding gzip; }}
          }}
          server {{
            listen 127.0.0.1:{tls} ssl;
            ssl_certificate {directory}/server.pem; ssl_certificate_key {directory}/server.key;
            root {files};
            location /downgrade/ {{ rewrite ^/downgrade/(.*)$ http://127.0.0.1:{port}/$1 redirect; }}
          }}
        }}
        """)
    command: list[str | Path] = [f"{_SBIN}/nginx", "-c", config, "-p", directory, "-e", directory / "errors"]
    with running(command, ready=lambda: listens(port) and listens(tls)):
        yield Nginx(files, port, tls, authority, directory / "log")


def _certificates(directory: Path) -> Path:
    """An authority, and a server's certificate of it."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "2")
    authority, request, server = (directory / name for name in ("authority.pem", "server.csr", "server.pem"))
    run("openssl", "req", "-x509", *key, "-subj", "/CN=tests", "-keyout", directory / "ca.key", "-out", authority)
    run("openssl", "req", *key, "-subj", "/CN=127.0.0.1", "-keyout", directory / "server.key", "-out", request)
    extension = directory / "extension"
    extension.write_text("subjectAltName=IP:127.0.0.1\n")
    signing = ("-CA", authority, "-CAkey", directory / "ca.key", "-CAcreateserial", "-days", "2", "-extfile", extension)
    run("openssl", "x509", "-req", "-in", request, *signing, "-out", server)
    return authority


class Meddler:
    """Stands between a client and a server on a port, and lets through what it is told to.

    Attributes:
        port: where it listens.
        cut_after: bytes of the server's that a connection brings before it is cut; None for no end.
        stall_after: the same, before nothing comes any more.
        rate: bytes a second of one connection; None for no limit.
        cuts: connections that may still be cut or stalled.
        refusing: connections are closed at once.
        connections: how many there were.
        most: how many there were at once.
    """

    def __init__(self, to: int) -> None:
        """Begin."""
        self.cut_after: int | None = None
        self.stall_after: int | None = None
        self.rate: int | None = None
        self.cuts = 1 << 30
        self.refusing = False
        self.connections = self.most = self._open = 0
        self._to = to
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Cut every connection there is."""
        with self._lock:
            for sock in self._sockets:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(5)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                client.close()
                continue
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._to))
        with self._lock:
            self._sockets += [client, server]
            self._open += 1
            self.most = max(self.most, self._open)
        up = threading.Thread(target=self._pass_on, args=(client, server, False), daemon=True)
        up.start()
        self._pass_on(server, client, True)
        up.join()
        with self._lock:
            self._open -= 1
            for sock in (client, server):
                self._sockets.remove(sock)
                sock.close()

    def _pass_on(self, source: socket.socket, sink: socket.socket, down: bool) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(_PIECE):
                limit = self.cut_after if self.stall_after is None else self.stall_after
                if down and limit is not None and passed + len(data) > limit and self.cuts > 0:
                    self.cuts -= 1
                    sink.sendall(data[: max(limit - passed, 0)])
                    if self.stall_after is not None:
                        while source.recv(_PIECE):
                            pass  # until somebody gives up
                    break
                sink.sendall(data)
                passed += len(data)
                if down and self.rate is not None:
                    self._ended.wait(len(data) / self.rate)
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


@dataclass
class Liar:
    """A web server that answers as the test says.

    Attributes:
        answer: given a request's head and its number, from 0 on, what to send before the connection is closed.
        heads: the requests so far.
    """

    answer: Callable[[str, int], Iterable[bytes]]
    heads: list[str] = field(default_factory=list)
    port: int = 0

    def url(self, name: str = "image") -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}/{name}"

    @contextmanager
    def started(self) -> Iterator[Self]:
        """Run it until the block is left."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(listener.getsockname()[1])
        threads: list[threading.Thread] = []

        def serve(sock: socket.socket) -> None:
            with suppress(OSError), closing(sock), sock.makefile("rb") as lines:
                head = b"".join(iter(lambda: lines.readline(), b"\r\n"))
                self.heads.append(head.decode("latin-1"))
                for data in self.answer(self.heads[-1], len(self.heads) - 1):
                    sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                sock.settimeout(5)
                while lines.read(_PIECE):
                    pass

        def accept() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                threads.append(threading.Thread(target=serve, args=(sock,), daemon=True))
                threads[-1].start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield self
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(5)
            listener.close()
            for thread in threads:
                thread.join(5)
                assert not thread.is_alive()


def asked(head: str) -> tuple[int, int]:
    """Start and end, exclusive, of the range that a request asks for."""
    field = next(line for line in head.splitlines() if line.lower().startswith("range:"))
    start, _, last = field.partition("=")[2].partition("-")
    return int(start), int(last) + 1


def partial(data: bytes, start: int, end: int, *fields: str, total: int | None = None) -> bytes:
    """The head of an answer with a range of `data`, which is not in it."""
    lines = (
        "HTTP/1.1 206 Partial Content",
        f"Content-Range: bytes {start}-{end - 1}/{len(data) if total is None else total}",
        f"Content-Length: {end - start}",
        *fields,
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


@dataclass(frozen=True, slots=True)
class Share:
    """A server with a directory.

    Attributes:
        files: that directory.
        port: where it listens.
    """

    files: Path
    port: int


@contextmanager
def smbd(directory: Path, user: str, password: str) -> Iterator[Share]:
    """A samba with the share `images` of a local user; needs root, as its way of changing users does."""
    files = directory / "files"
    files.mkdir()
    port = free_port()
    config = directory / "smb.conf"
    config.write_text(f"""
        [global]
        workgroup = TESTS
        server role = standalone server
        interfaces = 127.0.0.1
        bind interfaces only = yes
        smb ports = {port}
        disable netbios = yes
        private dir = {directory}/private
        lock directory = {directory}/lock
        state directory = {directory}/state
        cache directory = {directory}/cache
        pid directory = {directory}/pid
        ncalrpc dir = {directory}/ncalrpc
        passdb backend = smbpasswd:{directory}/passwords
        log file = {directory}/log
        load printers = no
        disable spoolss = yes
        rpc start on demand helpers = no
        [images]
        path = {files}
        read only = yes
        force user = {user}
        """)
    for name in ("private", "lock", "state", "cache", "pid", "ncalrpc"):
        (directory / name).mkdir()
    run("smbpasswd", "-c", config, "-L", "-a", "-s", user, stdin=f"{password}\n{password}\n")
    command: list[str | Path] = [f"{_SBIN}/smbd", "--foreground", "-s", config]
    with running(command, ready=lambda: listens(port)):
        yield Share(files, port)


@contextmanager
def sshd(directory: Path) -> Iterator[Share]:
    """An sshd with sftp for whoever runs the tests; `directory/home/.ssh` has a key that it accepts, and knows it."""
    files, home = directory / "files", directory / "home" / ".ssh"
    files.mkdir()
    home.mkdir(parents=True, mode=0o700)
    port = free_port()
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / "host")
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / "id_ed25519")
    public = (directory / "host.pub").read_text().split()
    (home / "known_hosts").write_text(f"[127.0.0.1]:{port} {public[0]} {public[1]}\n")
    config = directory / "sshd_config"
    config.write_text(f"""
        ListenAddress 127.0.0.1:{port}
        HostKey {directory}/host
        PidFile {directory}/pid
        AuthorizedKeysFile {home}/id_ed25519.pub
        StrictModes no
        UsePAM no
        PasswordAuthentication no
        KbdInteractiveAuthentication no
        PermitRootLogin prohibit-password
        Subsystem sftp internal-sftp
        """)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # it insists, and no service has made it
    with running([f"{_SBIN}/sshd", "-D", "-e", "-f", config], ready=lambda: listens(port), stderr=subprocess.DEVNULL):
        yield Share(files, port)


@contextmanager
def moto(directory: Path) -> Iterator[tuple[int, Callable[[str, bytes], None]]]:
    """An object store with the bucket `bucket`: its port, and what puts an object there."""
    port = free_port()
    log = directory / "log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as errors, running(command, ready=lambda: listens(port), stderr=errors):

        def put(name: str, data: bytes) -> None:
            scope = "Credential=testing/20260101/us-east-1/s3/aws4_request"
            who = f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0"
            fields = {"Content-Type": "application/octet-stream", "Authorization": who}
            request = Request(f"http://127.0.0.1:{port}/{name}", data, fields, method="PUT")
            with urlopen(request, timeout=10) as answer:
                assert answer.status == 200

        put("bucket", b"")
        yield port, lambda name, data: put("bucket/" + name.replace("%", "%25").replace(" ", "%20"), data)
