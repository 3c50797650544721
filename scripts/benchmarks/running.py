"""Programs to measure: servers that are started before the clock is, and commands timed as whole processes."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent


@contextmanager
def our_server(image: Path, *arguments: str) -> Iterator[str]:
    """`targetmode serve`; the URI of its one export."""
    port, control = free_port(), free_port()
    command: list[Any] = [BIN / "targetmode", "serve", image, "--listen", f"127.0.0.1:{port}"]
    command += ["--control", f"127.0.0.1:{control}", "--json", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            ready = json.loads(server.stdout.readline())
            wait_for(control)
            yield ready["exports"][0]["uris"][0]
        finally:
            server.terminate()


@contextmanager
def nbdkit(image: Path) -> Iterator[str]:
    """Debian's nbdkit with its file plugin; its URI."""
    port = free_port()
    program = shutil.which("nbdkit") or "/usr/sbin/nbdkit"
    command = [program, "--foreground", "--ipaddr", "127.0.0.1", "--port", str(port), "file", str(image)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(port)
            yield f"nbd://127.0.0.1:{port}/"
        finally:
            server.terminate()


def wait_for(port: int) -> None:
    """Until somebody listens."""
    for _ in range(500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise TimeoutError(f"nothing listens on port {port}")


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def timed(command: list[Any]) -> float:
    """Seconds that a whole process takes."""
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def asr(source: Path | str, target: str, *arguments: str) -> list[Any]:
    """The command line of a restore."""
    return [BIN / "asr", "restore", "--source", source, "--target", target, "--erase", "--noprompt", *arguments]


def copying(command: list[Any]) -> float:
    """Seconds that a restore itself takes, by its own account: from the first erased byte to the last flush."""
    output = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True).stdout
    return float(json.loads(output.splitlines()[-1])["seconds"])


def fio(uri: str, mode: str, depth: int, seconds: int) -> float:
    """Operations of 4 KiB per second."""
    command = ["fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}", f"--rw={mode}", "--bs=4k"]
    command += [f"--iodepth={depth}", "--time_based", f"--runtime={seconds}", "--size=1G", "--output-format=json"]
    run = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tempfile.gettempdir())
    job = json.loads(run.stdout[run.stdout.index("{") :])["jobs"][0]
    return float(job["read"]["iops"] + job["write"]["iops"])
