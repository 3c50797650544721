"""What tests of several packages need: ports, processes, loop devices, small file systems. Loopback and /tmp only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pytest
from hypothesis import HealthCheck, settings


def examples(count: int) -> settings:
    """Settings of a hypothesis test: so many examples, however long each takes."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, suppress_health_check=checks)


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


def wait_until(condition: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    """Wait until a condition holds; the test fails if that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} seconds"
        time.sleep(0.005)


def listens(address: str | int) -> bool:
    """Whether somebody listens on a Unix socket's path or a TCP port; nobody is disturbed by a connection."""
    if isinstance(address, int):
        lines = [*Path("/proc/net/tcp").read_text().splitlines(), *Path("/proc/net/tcp6").read_text().splitlines()]
        fields = (line.split() for line in lines)
        return any(state == "0A" and local.endswith(f":{address:04X}") for _, local, _, state, *_ in fields)
    accepting = "00010000"
    lines = Path("/proc/net/unix").read_text().splitlines()
    return any(line.split()[3] == accepting and line.endswith(f" {address}") for line in lines)


def assert_same_bytes(have: bytes | bytearray | memoryview, want: bytes | bytearray | memoryview) -> None:
    """Fail with where they begin to differ. Of `assert have == want` pytest would print a diff, which takes minutes."""
    if have == want:
        return
    left, right = memoryview(have), memoryview(want)
    most, step = min(len(left), len(right)), 1 << 16
    coarse = next((at for at in range(0, most, step) if left[at : at + step] != right[at : at + step]), most)
    first = next((at for at in range(coarse, most) if left[at] != right[at]), most)
    there, wanted = bytes(left[first : first + 16]).hex(), bytes(right[first : first + 16]).hex()
    raise AssertionError(
        f"{len(left)} bytes are to be the same as {len(right)} others, and differ from offset {first} on: "
        f"{there or 'nothing'} instead of {wanted or 'nothing'}"
    )


@contextmanager
def running(
    command: Sequence[str | Path],
    *,
    ready: Callable[[], object] = lambda: True,
    environment: Mapping[str, str] | None = None,
    stdout: int | IO[bytes] | None = subprocess.DEVNULL,
    stderr: int | IO[bytes] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs until the block is left, and is ready when the block begins."""
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **(environment or {})},
    )
    try:

        def is_ready() -> object:
            assert process.poll() is None, f"{command} ended with status {process.returncode}"
            return ready()

        wait_until(is_ready, f"start of {command[0]}")
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes], number: int = signal.SIGTERM, seconds: float = 10.0) -> int:
    """End a process, by force if it does not go; returns its status."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()
    return process.returncode


def is_attached(device: Path, image: Path) -> bool:
    """Whether a loop device is over an image now; it may be detached, or taken by another test, at any moment."""
    with suppress(OSError):
        return (Path("/sys/block") / device.name / "loop" / "backing_file").read_text().startswith(str(image))
    return False


@contextmanager
def loop_device(image: Path, *, sector: int = 512) -> Iterator[Path]:
    """A loop device over a file, with a logical sector size; without root the test is skipped."""
    if os.geteuid() != 0:
        pytest.skip("needs root for loop devices")
    command = ["losetup", "--find", "--show", f"--sector-size={sector}", str(image)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}: {result.stderr}"
    device = Path(result.stdout.strip())
    subprocess.run(["blockdev", "--setrw", str(device)], check=True)  # a flag that outlives an earlier attachment
    try:
        yield device
    finally:
        subprocess.run(["blockdev", "--setrw", str(device)], capture_output=True, check=False)

        def gone() -> bool:
            if not is_attached(device, image):
                return True
            subprocess.run(["losetup", "--detach", str(device)], capture_output=True)
            return False

        wait_until(gone, f"detaching {device}")


@contextmanager
def small_filesystem(directory: Path, size: int) -> Iterator[Path]:
    """A tmpfs of that many bytes on a new directory; needs root."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)
