"""Images of virtual machines' disks, decoded by a child `qemu-nbd` and read as an export.

The child is told which files there are and in which format each is; it opens what it has been told, and nothing that an
image names. It ends with us, however we end.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from nbd.client import Client
from nbd.errors import NBDError, RequestFailed, URIError
from nbd.uri import NBDURI
from restore import tools
from restore.errors import Refused, say
from restore.exports import SCHEMES
from restore.source import SourceError, SourceSettings
from restore.source.export.image import ExportImage, ExportSource
from restore.source.qemu.headers import FORMATS, Header, Others, Part, others, vhd_footer
from restore.source.qemu.whole import check_lock, check_whole
from restore.source.storage.file import LocalFile
from targetmode.disks.text import printable

CONNECTIONS: Final = 2
_START: Final = 20.0  # seconds until qemu-nbd has to serve
_END: Final = 5.0  # seconds that it has to end in
_DEPTH: Final = 32  # backing files under one another
_PROTOCOL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+._-]*:")

# Whoever began it has to be there still when it has been told to end with that.
_WITH_US: Final = '[ "$PPID" -eq "$1" ] || exit 1; shift; exec "$@"'


def open_qemu(file: LocalFile, form: str, settings: SourceSettings) -> ExportSource:
    """Open an image in one of qemu's formats.

    Args:
        file: it; taken over unless this fails.
        form: one of `virtual.FORMATS`.
        settings: how.

    Raises:
        Refused: it is encrypted, or other files hold a part of it; or qemu-nbd is not installed.
        SourceError: it is damaged.
    """
    with ExitStack() as stack:
        files = [file]
        node = _Nodes(files, stack, allowed=settings.allow_backing).node(file, form)
        number = settings.connections or CONNECTIONS
        server = _Server(file.name, node, files, number)
        stack.callback(server.close)
        clients = [server.connect(settings) for _ in range(number)]
        server.hide()
        opened = ExitStack()
        opened.callback(file.close)  # last
        opened.push(stack.pop_all())
        image = _QemuImage(clients, server, files, opened)
    return ExportSource(image, number)


class _QemuImage(ExportImage):
    """An image that a child of ours decodes."""

    def __init__(
        self, clients: Sequence[Client], server: _Server, files: Sequence[LocalFile], opened: ExitStack
    ) -> None:
        self._server = server
        self._opened = opened

        def check_files() -> None:
            for file in files:
                file.check_unchanged()

        super().__init__(clients, server.name, again=check_files, explain=server.explain)
        server.watch(self.stop)

    def close(self) -> None:
        """End the child, and let go of the files."""
        self._server.expect_end()
        super().close()
        self._opened.close()


class _Nodes:
    """Images and what lies under them, as qemu's block layer is told of it (`BlockdevOptions` of its QAPI)."""

    def __init__(self, files: list[LocalFile], stack: ExitStack, *, allowed: bool) -> None:
        self._files = files
        self._stack = stack
        self._allowed = allowed

    def node(self, file: LocalFile, form: str) -> dict[str, Any]:
        """What to open for an image, with all that has to be opened with it.

        Raises:
            Refused, SourceError: as `open_qemu`.
        """
        node: dict[str, Any] = {"driver": form, "read-only": True, "file": _file(file)}
        if form == "raw":
            return node
        header = Header(file.name, form, file.read, file.size)
        named = others(header)
        if form in ("qcow2", "vmdk"):
            node["backing"] = self._backing(file, named)
        elif named.backing is not None:
            raise Refused(f"{file.name} is the difference to a parent image; merge the two first")
        if form == "vpc" and (footer := vhd_footer(file.read, file.size)) and footer[28:32] == b"vbox":
            node["force_size_calc"] = "current_size"  # VirtualBox does not round to its cylinders
        for part in named.data:
            data = self._data(file, form, part)
            if form == "qcow2":
                node["data-file"] = _file(data)
            else:  # qemu takes the names from the descriptor, and looks beside it
                node["file"]["filename"] = str(Path(file.name).absolute())
        alone = {**node, "backing": None} if "backing" in node else node
        check_whole(header, _json(alone), self._begin)
        return node

    def _begin(self, words: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*_with_us(), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=tools.environment(),
            pass_fds=[file.fd for file in self._files],
        )

    def _backing(self, file: LocalFile, named: Others) -> dict[str, Any] | None:
        if named.backing is None:
            return None
        name = printable(named.backing)
        if not named.backing:
            raise Refused(f"{file.name} is the difference to a parent image that it does not name; merge the two first")
        if not self._allowed:
            raise Refused(
                f"{file.name} has the backing file {name}, which holds a part of it; --allow-backing reads that too"
            )
        form = named.backing_format
        if form not in (*FORMATS, "raw"):
            raise Refused(
                f"{file.name} does not say in which format its backing file {name} is; "
                "tell it: qemu-img rebase -u -F FORMAT -b BACKING IMAGE"
            )
        if form == "raw":
            if named.backing.startswith(SCHEMES):
                return self._export(file, named.backing)
            device = Path(file.name).parent / named.backing
            if device.is_block_device():
                return {"driver": "raw", "file": {"driver": "host_device", "filename": str(device)}}
        return self.node(self._open(file, named.backing), form)

    def _export(self, file: LocalFile, name: str) -> dict[str, Any]:
        """An export that a backing file is; qemu itself takes its name from the image, and none of ours beside it."""
        try:
            NBDURI.parse(name)
        except URIError as error:
            raise Refused(f"{file.name} has a backing file that cannot be: {error}") from None
        return {"driver": "raw", "read-only": True}

    def _data(self, file: LocalFile, form: str, part: Part) -> LocalFile:
        """A file that holds data of an image. Those of a vmdk lie beside it, where they are what they seem to be."""
        name = part.name
        beside = name not in ("", ".", "..") and not {"/", ":"} & set(name)
        beside = beside and not (Path(file.name).parent / name).is_symlink()
        if not (form == "vmdk" and beside) and not self._allowed:
            what = printable(name) or "a file that it does not name"
            raise Refused(f"{file.name} keeps its data in {what}; --allow-backing reads that too")
        found = self._open(file, name)
        if found.size < part.least:
            raise SourceError(f"{found.name} is cut short: it has {found.size} bytes, and has to have {part.least}")
        if form == "vmdk":
            check_whole(Header(found.name, form, found.read, found.size), "", self._begin)
        return found

    def _open(self, file: LocalFile, name: str) -> LocalFile:
        name = name.removeprefix("file:")
        if not name or _PROTOCOL.match(name):
            raise Refused(
                f"{file.name} names {printable(name) or 'nothing'}, which is no file; qemu-img convert it first"
            )
        if len(self._files) > _DEPTH:
            raise Refused(f"{file.name} lies on more than {_DEPTH} other files, or on itself")
        found = LocalFile(str(Path(file.name).parent / name))
        self._stack.callback(found.close)
        self._files.append(found)
        return found


def _file(file: LocalFile) -> dict[str, Any]:
    """The very file that was looked at, whatever has its name by then."""
    return {"driver": "file", "read-only": True, "filename": f"/proc/self/fd/{file.fd}"}


def _json(node: dict[str, Any]) -> str:
    """A node as a file name that says all of it."""
    return f"json:{json.dumps(node)}"


def _with_us() -> list[str]:
    """What to put before a command so that it ends with the thread that starts it, however that ends."""
    return [tools.find("setpriv"), "--pdeathsig", "KILL", "sh", "-c", _WITH_US, "sh", str(os.getpid())]


class _Server:
    """A child `qemu-nbd` over one image, on a socket that nobody else can reach.

    It ends when its last connection does, and when we do.
    """

    def __init__(self, name: str, node: dict[str, Any], files: Sequence[LocalFile], connections: int) -> None:
        """Start it; `name` is the image's.

        Raises:
            Refused: it is not installed.
            OSError: it cannot be started.
        """
        program = (*_with_us(), tools.find("qemu-nbd"))
        self.name = name
        self._files = files
        self._image = _json(node)
        self._directory = tempfile.TemporaryDirectory(prefix="asr-")  # of mode 0700
        self._socket = Path(self._directory.name) / "socket"
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._gone: Callable[[BaseException], None] = lambda reason: None
        self._expected = False
        self._lock = threading.Lock()
        self._started = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        options = ["--read-only", f"--shared={connections}", f"--socket={self._socket}"]
        self._command = [*program, *options, self._image]
        # That signal is sent when the thread ends that has started the child: so this one stays as long.
        self._thread = threading.Thread(target=self._keep, name="qemu-nbd", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self.close()
            raise self._failure

    def connect(self, settings: SourceSettings) -> Client:
        """A connection to it, as soon as it serves.

        Raises:
            Refused: the image is in use.
            SourceError: it does not come to that; says what it said.
        """
        uri = NBDURI(socket=str(self._socket))
        deadline = time.monotonic() + _START
        while True:
            try:
                return Client(uri, timeout=settings.timeout, reconnect=False)
            except NBDError as error:
                early = isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError)
                if not early:  # it listens before it opens the image
                    self._thread.join(_END)
                if not self._thread.is_alive():
                    words = self._words() or say(error)
                    check_lock(self.name, words)
                    raise SourceError(f"{self.name}: qemu-nbd: {words}") from None
                if not early or time.monotonic() > deadline:
                    raise SourceError(f"{self.name}: qemu-nbd does not serve it: {error}") from None
            time.sleep(0.005)

    def hide(self) -> None:
        """There will be no more connections. If we are killed, nothing is left."""
        self._directory.cleanup()

    def watch(self, gone: Callable[[BaseException], None]) -> None:
        """Have `gone` called, with what is to be said, when it ends before it is told to."""
        with self._lock:
            self._gone = gone
        if not self._thread.is_alive():
            gone(self._ended())

    def expect_end(self) -> None:
        """From now on it may end."""
        with self._lock:
            self._expected = True

    def explain(self, error: NBDError) -> str:
        """An error of one of its connections, for people."""
        words = self._words()
        if isinstance(error, RequestFailed):
            return f"{self.name}: {error}{words and f' (qemu-nbd: {words})'}"
        return str(self._ended())

    def close(self) -> None:
        """End it."""
        self.expect_end()
        process = self._process
        if process is not None:
            process.terminate()
            self._thread.join(_END)
            if self._thread.is_alive():
                process.kill()
        self._thread.join()
        self._directory.cleanup()
        self._said.close()

    def _keep(self) -> None:
        """Start it, and wait for its end."""
        try:
            with subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                env=tools.environment(),
                pass_fds=[file.fd for file in self._files],
            ) as self._process:
                self._started.set()
        except OSError as error:
            self._failure = error
        finally:
            self._started.set()
        with self._lock:
            gone = None if self._expected else self._gone
        if gone is not None:
            gone(self._ended())

    def _ended(self) -> SourceError:
        return SourceError(f"{self.name}: qemu-nbd failed: {self._words() or 'it was ended'}")

    def _words(self) -> str:
        """The first of what it said, without the names that only we gave."""
        try:
            text = os.pread(self._said.fileno(), 1 << 20, 0).decode("utf-8", "replace")
        except ValueError:  # closed
            return ""
        text = text.replace(self._image, self.name)
        for file in self._files:
            text = text.replace(f"/proc/self/fd/{file.fd}", file.name)
        lines = [line.strip().removeprefix("qemu-nbd: ") for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith("warning: ")]
        return printable(lines[0].removeprefix(f"Failed to blk_new_open '{self.name}': ")) if lines else ""
